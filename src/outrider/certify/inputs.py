"""What a certificate is made over: prompts as token ids, and methods by name or by function."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from outrider.certify.decode import Ask, Subject
from outrider.certify.result import LeftOut, Prompts
from outrider.errors import ConfigError
from outrider.registry import preset

if TYPE_CHECKING:
    from outrider.bench.suite import Suite
    from outrider.parts import Parts
    from outrider.run.llm import LLM

    Make = Callable[[], Parts]

SUITE = "own"


def subjects(presets: str | Make | Sequence[str | Make]) -> list[Subject]:
    """The methods named or built by ``presets``, in that order. Raises ``ConfigError`` for none, or one given twice."""
    several = [presets] if isinstance(presets, str) or callable(presets) else list(presets)
    found: list[Subject] = []
    for each in several:
        one = Subject(each, partial(preset, each)) if isinstance(each, str) else Subject(each().name, each)
        if any(one.name == other.name for other in found):
            raise ConfigError(f"preset {one.name!r} is given twice", hint="Name it once.")
        found.append(one)
    if not found:
        raise ConfigError("no presets", hint="Name one.")
    return found


def gather(
    llm: LLM, prompts: Suite | Sequence[Any] | None, count: int, max_tokens: int
) -> tuple[Prompts, tuple[Ask, ...]]:
    """Token ids of ``count`` prompts (of the first turn, where a prompt has several) and what to say of them.

    ``prompts`` is a suite, a list of what ``LLM.encode`` takes, or None for the suite "own". Those that leave no room
    for ``max_tokens`` in the context are left out; raises ``ConfigError`` if that is all of them."""
    if prompts is None:
        from outrider.bench.suite import load_suite

        prompts = load_suite(SUITE, limit=count)
    if isinstance(prompts, Sequence):
        items = list(prompts)[:count]
        asks = [Ask(f"prompt {number}", tuple(llm.encode(each))) for number, each in enumerate(items, start=1)]
        digest = hashlib.sha256(repr([ask.tokens for ask in asks]).encode()).hexdigest()
        facts = ("prompts of the caller", "", digest)
    else:
        from outrider.bench.runners import Conversation

        asks = [Ask(each.id, tuple(Conversation(llm, each).ids(0))) for each in prompts.prompts[:count]]
        facts = (prompts.name, prompts.version, prompts.sha256)
    room = llm.engine.max_context - max_tokens
    kept = tuple(ask for ask in asks if 0 < len(ask.tokens) <= room)
    out = [
        LeftOut(ask.name, f"{len(ask.tokens)} tokens and {max_tokens} new ones do not fit the context")
        for ask in asks
        if ask not in kept
    ]
    if not kept:
        why = out[0].reason if out else "none were given"
        raise ConfigError("no prompt can be decoded", why=why, hint="Give other prompts, or lower --max-tokens.")
    return Prompts(*facts, ids=tuple(ask.name for ask in kept), left_out=tuple(out)), kept
