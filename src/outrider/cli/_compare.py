"""``outrider run --compare``: the same prompt with and without drafting, over the same weights, in fair turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from outrider.cli._answer import Answer, decode

if TYPE_CHECKING:
    from outrider.cli._open import Opened
    from outrider.params import SamplingParams

WARM_UP = 16


class Interrupted(Exception):
    """Ctrl-C during a comparison; the answer that was shown stays valid."""


def warm_up(opened: Opened, tokens: Sequence[int], params: SamplingParams) -> None:
    """A few untimed tokens with and without drafting. The engines are thrown away: nothing learnt carries over."""
    short = replace(params, max_tokens=WARM_UP, min_tokens=min(params.min_tokens, WARM_UP))
    for preset in (opened.preset, "plain"):
        _finished(decode(opened.again(preset), tokens, short))


def compare(
    opened: Opened,
    tokens: Sequence[int],
    params: SamplingParams,
    first: Answer,
    runs: int,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Run the rest of ``runs`` turns (preset, plain, plain, preset, ...) and set both sides against each other.

    ``first`` is the preset's first run. Every run gets an engine of its own, so that a drafter that learns starts
    from nothing each time. Raises :class:`Interrupted`.
    """
    sides: dict[str, list[Answer]] = {opened.preset: [first], "plain": []}
    for turn in range(runs):
        order = (opened.preset, "plain") if turn % 2 == 0 else ("plain", opened.preset)
        for preset in order:
            if len(sides[preset]) <= turn:
                tell(f"measuring {preset} ({turn + 1} of {runs})")
                sides[preset].append(_finished(decode(opened.again(preset), tokens, params)))
    fast, slow = sides[opened.preset], sides["plain"]
    block: dict[str, Any] = {
        "runs": runs,
        "order": "alternating, after a warm-up",
        "preset": _side(fast),
        "plain": _side(slow),
    }
    block["speedup"] = _ratio(block, "tokens_per_second")
    block["speedup_with_prompt"] = _ratio(block, "tokens_per_second_with_prompt")
    different = [run for run in fast if run.token_ids != slow[0].token_ids]
    block["identical"] = not different
    block["tokens"] = len(slow[0].token_ids)
    block["dtype"] = str(opened.llm.language_model.dtype).removeprefix("torch.")
    block["first_difference"] = None
    if different:
        block["first_difference"] = difference(opened, list(tokens), params, different[0], slow[0])
    return block


def difference(
    opened: Opened, prompt: list[int], params: SamplingParams, fast: Answer, plain: Answer
) -> dict[str, Any]:
    """Where two answers part, and whether rounding explains it; the fields of ``Difference`` and both tokens' text."""
    from outrider.certify.identity import classify

    guarantee = opened.llm.parts.guarantee
    found = classify(opened.llm, prompt, fast.token_ids, plain.token_ids, params, guarantee)
    assert found is not None  # the two are known to differ

    def text(token: int | None) -> str:
        return "" if token is None else str(opened.llm.tokenizer.decode([token]))

    texts = {"preset_text": text(found.found), "plain_text": text(found.wanted)}
    return found.as_dict() | texts | {"why": found.words()}


def _finished(answer: Answer) -> Answer:
    if answer.interrupted:
        raise Interrupted
    return answer


def _side(runs: list[Answer]) -> dict[str, Any]:
    """Totals over the runs of one side; tokens per second first without, then with the prompt's time."""
    emitted = sum(run.stats.emitted_tokens for run in runs)
    seconds = sum(run.stats.decode_seconds for run in runs)
    prompt = sum(run.stats.seconds["prefill"] for run in runs)
    calls = sum(run.stats.target_calls for run in runs)
    return {
        "tokens_per_second": emitted / seconds if seconds else 0.0,
        "tokens_per_second_with_prompt": emitted / (seconds + prompt) if seconds else 0.0,
        "mean_accepted_length": emitted / calls if calls else 0.0,
        "seconds": seconds / len(runs),
        "each": [run.stats.tokens_per_second for run in runs],
    }


def _ratio(block: dict[str, Any], key: str) -> float:
    slow = float(block["plain"][key])
    return float(block["preset"][key]) / slow if slow else 0.0
