"""Drafting as much as pays."""

from __future__ import annotations

from outrider.errors import ConfigError
from outrider.parts import Parts
from outrider.policy.goodput import Goodput
from outrider.registry import preset, register


@register("smartspec", paper="2406.14066", aliases=("goodput",), wraps="of")
def smartspec(of: str = "pld", leave: float = 1.02, back: float = 1.08, explore: float = 0.01) -> Parts:
    """SmartSpec: in each step the draft length that maximises the goodput of the whole batch, plain steps included.

    ``of`` is what drafts: a preset, with settings or in combination, for example ``of="spec-decode(depth=8)"``; its own
    lengths are the most that is drafted. Goodput is the expected number of emitted tokens per second, from the
    acceptance seen lately and the seconds that steps of each length take on this machine. Verifier and guarantee are
    those of ``of``: lengths are all that changes.

    Drafting ends when it comes to less than ``leave`` times plain decoding and is taken up again above ``back`` times.
    ``explore`` bounds the share of time that is spent on trying again where nothing shows what acceptance would be.
    """
    if not isinstance(of, str):
        raise ConfigError(f"of={of!r}", hint='Give the name of a preset, for example of="pld".')
    parts = preset(of)
    if parts.drafter is None or parts.policy.core() is not parts.policy:
        raise ConfigError(
            f"of={of!r}",
            why="it drafts nothing" if parts.drafter is None else "its lengths are chosen by goodput already",
            hint="Give a preset that drafts in lengths of its own, for example 'pld' or 'sam'.",
        )
    return parts.with_(policy=Goodput(parts.policy, leave=leave, back=back, explore=explore))
