"""Plain decoding and the published drafters that need no training."""

from __future__ import annotations

from outrider.draft.automaton import SuffixDrafter
from outrider.draft.lookup import PromptLookup
from outrider.draft.recycling import TokenRecycling
from outrider.parts import Parts
from outrider.policy.fixed import Fixed
from outrider.policy.goodput import Goodput
from outrider.registry import preset, register
from outrider.verify.match import Match


@register("plain")
def plain() -> Parts:
    """Ordinary decoding, one token per target call: the honest baseline."""
    return Parts(verifier=Match(), policy=Fixed(0))


@register("auto")
def auto() -> Parts:
    """The best combination known for a model without trained drafters: sam, else token-recycling, as far as they pay.

    sam speaks up from matches of two tokens on; elsewhere token-recycling's tree takes over. Both draft as much as pays
    on this machine and for this text, down to nothing, so that it is never slower than plain (the policy of
    ``smartspec``).
    """
    parts = preset("sam", min_match=2) | preset("token-recycling")
    return parts.with_(policy=Goodput(parts.policy))


@register("pld", paper="https://github.com/apoorvumang/prompt-lookup-decoding", aliases=("ngram", "prompt-lookup"))
def pld(depth: int = 10, max_ngram: int = 3, min_ngram: int = 1) -> Parts:
    """Prompt lookup: copy what followed the last n tokens the previous time they occurred.

    ``depth`` tokens are copied at most; the longest n from ``max_ngram`` down to ``min_ngram`` that occurs wins.
    Good where the answer repeats the prompt: summaries, edits, questions about a document. Costs nothing elsewhere.
    """
    return Parts(drafter=PromptLookup(max_ngram=max_ngram, min_ngram=min_ngram), policy=Fixed(depth), verifier=Match())


@register("sam", paper="2411.10666", aliases=("suffix-automaton",))
def sam(depth: int = 40, alpha: float = 4.0, min_match: int = 1) -> Parts:
    """SAM decoding: a suffix automaton of the text finds the longest earlier match and copies what followed it.

    The draft is ``min(depth, 1 + alpha * match length)`` tokens long, so that a long match is trusted further;
    matches shorter than ``min_match`` propose nothing, which leaves the step to the next drafter of a combination.
    """
    drafter = SuffixDrafter(alpha=alpha, min_match=min_match)
    return Parts(drafter=drafter, policy=Fixed(depth), verifier=Match())


@register("token-recycling", paper="2408.08696", aliases=("recycling",))
def token_recycling(nodes: int = 80, k: int = 8) -> Parts:
    """Token Recycling: a table of the last seen top-k successors of every token fills a fixed tree.

    Every step's logits, those of rejected nodes included, refresh the table, which outlives the request. The tree
    has ``nodes`` nodes over 6 levels; ``k`` is the width of the table.
    """
    return Parts(drafter=TokenRecycling(k=k), policy=Fixed(6, nodes=nodes, width=k), verifier=Match())
