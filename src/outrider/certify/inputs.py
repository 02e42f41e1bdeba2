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


def subjects(presets: str | Make | Sequence[str | Make], llm: LLM) -> list[Subject]:
    """The methods named or built by ``presets``, in that order; "auto" is what it is for ``llm``, a tuned profile
    included. Raises ``ConfigError`` for none, or one given twice."""
    several = [presets] if isinstance(presets, str) or callable(presets) else list(presets)
    found: list[Subject] = []
    for each in several:
        one = Subject(each, partial(_build, each, llm)) if isinstance(each, str) else Subject(each().name, each)
        if any(one.name == other.name for other in found):
            raise ConfigError(f"preset {one.name!r} is given twice", hint="Name it once.")
        found.append(one)
    if not found:
        raise ConfigError("no presets", hint="Name one.")
    return found


def _build(name: str, llm: LLM) -> Parts:
    from outrider.run.llm import AUTO

    if name == AUTO:
        from outrider.tune.lookup import tuned

        found = tuned(llm.language_model, None if llm.draft is None else llm.draft.model)
        if found.parts is not None:
            return found.parts
    return preset(name)


def gather(
    llm: LLM, prompts: Suite | Sequence[Any] | None, count: int, max_tokens: int
) -> tuple[Prompts, tuple[Ask, ...]]:
    """Token ids of ``count`` prompts (of the first turn, where a prompt has several) and what to say of them.

    ``prompts`` is a suite, a list of what ``LLM.encode`` takes, or None for the suite "own". Those that leave no room
    for ``max_tokens`` in the context are left out first. Raises ``ConfigError`` if none is left."""
    if prompts is None:
        from outrider.bench.suite import load_suite

        prompts = load_suite(SUITE)
    room = llm.engine.max_context - max_tokens
    if isinstance(prompts, Sequence):
        named = [Ask(f"prompt {number}", tuple(llm.encode(each))) for number, each in enumerate(prompts, start=1)]
        asks = [ask for ask in named if 0 < len(ask.tokens) <= room]
        digest = hashlib.sha256(repr([ask.tokens for ask in named]).encode()).hexdigest()
        facts, whole, fit = ("given prompts", "", digest), len(named), len(asks)
        asks = asks[:count]
    else:
        from outrider.bench.runners import Conversation
        from outrider.bench.suite import pick

        ids = {each.id: tuple(Conversation(llm, each).ids(0)) for each in prompts.prompts}
        fitting = [each for each in prompts.prompts if 0 < len(ids[each.id]) <= room]
        asks = [Ask(each.id, ids[each.id]) for each in pick(fitting, count)]
        facts, whole, fit = (prompts.name, prompts.version, prompts.sha256), len(ids), len(fitting)
    reason = f"with {max_tokens} new tokens they do not fit the context of {llm.engine.max_context}"
    if not asks:
        why = reason if whole else "none were given"
        raise ConfigError("no prompt can be decoded", why=why, hint="Give other prompts, or lower --max-tokens.")
    out = (LeftOut(f"{whole - fit} of {whole} prompts", reason),) if fit < whole else ()
    return Prompts(*facts, ids=tuple(ask.name for ask in asks), left_out=out), tuple(asks)
