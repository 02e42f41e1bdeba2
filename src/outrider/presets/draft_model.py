"""Drafting with a second, smaller language model."""

from __future__ import annotations

from typing import Literal

from outrider.draft.model import DraftModel
from outrider.errors import ConfigError, nearest
from outrider.parts import Parts
from outrider.policy.base import Policy
from outrider.policy.fixed import Fixed
from outrider.policy.signals import Confidence
from outrider.registry import register
from outrider.tree.grow import Chain, Structure, Template, TopK
from outrider.tree.static import StaticTree
from outrider.verify.base import Verifier
from outrider.verify.match import Match
from outrider.verify.recursive import Recursive
from outrider.verify.rejection import ChainRejection

Shape = Literal["chain", "top-k", "static", "sampled"]


@register("spec-decode", paper="2211.17192", aliases=("draft-model", "draft_model"), needs=("draft_model",))
def spec_decode(
    depth: int = 5, structure: Shape = "chain", width: int = 4, nodes: int = 24, threshold: float = 0.0
) -> Parts:
    """Speculative decoding: a small model drafts ``depth`` tokens, the target checks them in one pass.

    A drafted token x is kept with probability min(1, p(x)/q(x)); at the first rejection the target draws from
    norm((p - q)+) instead, so that the text has the target's distribution whatever the draft model says (equations
    and proof: Leviathan et al., section 2.3 and appendix A.1).

    ``structure`` is the shape of the draft: "chain"; "top-k" (the ``nodes`` most probable of a beam of ``width``);
    "static" and "sampled" (every node of a level has ``width``, then fewer, children: the most probable ones, or
    drawn without replacement and checked by recursive rejection). ``threshold`` above 0 stops a draft after the
    first token that the draft model gives less than that probability.
    """
    shape, verifier = _structure(structure, depth, width, nodes)
    wide = 1 if structure == "chain" else width
    policy: Policy
    if threshold > 0:
        policy = Confidence(depth, threshold, nodes=depth if structure == "chain" else nodes, width=wide)
    else:
        policy = Fixed(depth, nodes=depth if structure == "chain" else nodes, width=wide)
    return Parts(drafter=DraftModel(shape), policy=policy, verifier=verifier)


def _structure(name: str, depth: int, width: int, nodes: int) -> tuple[Structure, Verifier]:
    """The shape of that name and the rule that uses its draft law best."""
    if name == "chain":
        return Chain(), ChainRejection()
    if name == "top-k":
        return TopK(), Match()
    if name not in ("static", "sampled"):
        raise ConfigError(f"structure={name!r}", hint=nearest(name, ("chain", "top-k", "static", "sampled")))
    # Rank r of a node is worth half of rank r-1: the usual decay of measured acceptance by rank.
    template = StaticTree.best_first([[0.6 * 0.5**r for r in range(width)]] * depth, nodes=nodes, depth=depth)
    return (Template(template), Match()) if name == "static" else (Template(template, "sample"), Recursive())
