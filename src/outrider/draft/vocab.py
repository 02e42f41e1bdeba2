"""Comparing vocabularies by content, before any weights are loaded."""

from __future__ import annotations

from typing import Any

from outrider.errors import IncompatibleParts


def check_same_vocabulary(target: Any, draft: Any, target_name: str, draft_name: str) -> None:
    """Raise ``IncompatibleParts`` unless two tokenizers give every token the same id.

    Sizes may differ by padding rows: only ids that both tokenizers really have are compared, and a token that one
    of them lacks is a difference unless it is an added (special) one.
    """
    if target is None or draft is None:
        return  # models driven by token ids alone: nothing to compare
    left, right = target.get_vocab(), draft.get_vocab()
    if left == right:
        return
    added = {*getattr(target, "added_tokens_encoder", {}), *getattr(draft, "added_tokens_encoder", {})}
    moved = [(token, left[token], right[token]) for token in left.keys() & right.keys() if left[token] != right[token]]
    lacking = [token for token in left.keys() ^ right.keys() if token not in added]
    if not moved and not lacking:
        return
    if moved:
        token, a, b = min(moved, key=lambda entry: entry[1])
        why = f"{len(moved)} tokens have other ids, the first is {token!r} ({a} and {b})"
    else:
        why = f"{len(lacking)} tokens are in one of them only, for example {min(lacking)!r}"
    raise IncompatibleParts(
        f"the draft model {draft_name} speaks another vocabulary than {target_name}",
        why=why,
        hint="Choose a draft model of the same family, or a preset without one such as 'sam|token-recycling'.",
    )
