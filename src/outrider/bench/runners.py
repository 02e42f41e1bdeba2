"""Who answers: presets over weights that are loaded once, peers beside them, all behind one method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from outrider.bench.observe import Watch
from outrider.bench.result import AtContext, AtDepth
from outrider.errors import RequestError

if TYPE_CHECKING:
    from outrider.bench.suite import SuitePrompt
    from outrider.params import SamplingParams
    from outrider.run.llm import LLM
    from outrider.types import Guarantee

WARM_UP = 16
"""Tokens that everybody answers, untimed, before anything is measured."""


@dataclass(frozen=True)
class Answer:
    """What came of one prompt; the fields are those of ``result.Record``."""

    token_ids: list[int]
    text: str
    finish_reason: str | None
    seconds: dict[str, float]
    prefill_measured: bool = True
    target_calls: int | None = None
    draft_tokens: int | None = None
    accepted_tokens: int | None = None
    acceptance_histogram: list[int] = field(default_factory=list)
    by_depth: list[AtDepth] = field(default_factory=list)
    by_context: list[AtContext] = field(default_factory=list)


class Runner(Protocol):
    """Someone who answers prompts. ``guarantee`` is what it promises relative to plain decoding."""

    name: str

    @property
    def guarantee(self) -> Guarantee: ...

    def answer(self, prompt: Sequence[int], params: SamplingParams) -> Answer:
        """Decode ``prompt`` (token ids). Raises ``RequestError`` if it cannot be served."""

    def renew(self) -> None:
        """Forget what earlier prompts taught."""


class PresetRunner:
    """A preset over the weights of ``llm``. Building one raises what the preset has against this model.

    ``spec`` is the preset. Keys and values of earlier prompts are never reused, so that every answer reads its whole
    prompt; what a drafter learns it keeps until ``renew``.
    """

    def __init__(self, llm: LLM, spec: str) -> None:
        self.name = self.spec = spec
        self._weights, self._watch = llm, Watch()
        self.renew()

    def renew(self) -> None:
        """A new engine, over the same weights."""
        self.llm = engine_over(self._weights, self.spec)
        self.llm.listen(self._watch)

    @property
    def guarantee(self) -> Guarantee:
        return self.llm.parts.guarantee

    def answer(self, prompt: Sequence[int], params: SamplingParams) -> Answer:
        """See ``Runner``."""
        self._watch.take()  # what an answer that failed left behind
        output = self.llm.generate([list(prompt)], params)[0]
        by_depth, by_context = self._watch.take()
        stats = output.stats
        return Answer(
            token_ids=output.token_ids,
            text=output.text,
            finish_reason=output.finish_reason,
            seconds=dict(stats.seconds),
            target_calls=stats.target_calls,
            draft_tokens=stats.draft_tokens,
            accepted_tokens=stats.accepted_tokens,
            acceptance_histogram=stats.acceptance_histogram,
            by_depth=by_depth,
            by_context=by_context,
        )


def engine_over(llm: LLM, spec: str) -> LLM:
    """A fresh engine of one row for the preset ``spec``, over the weights that ``llm`` holds.

    Raises ``IncompatibleParts`` or ``ConfigError`` if the preset cannot be run on them.
    """
    from outrider.run.llm import LLM

    limits = replace(llm.limits, max_rows=1, prefix_entries=0)
    draft = None if llm.draft is None else llm.draft.model
    return LLM(llm.language_model, preset=spec, draft_model=draft, tokenizer=llm.tokenizer, limits=limits)


class Conversation:
    """A prompt of a suite turn by turn, with the answers that were given fed back."""

    def __init__(self, llm: LLM, prompt: SuitePrompt) -> None:
        self._llm, self._prompt = llm, prompt
        self._said: list[str] = []

    def ids(self, turn: int) -> list[int]:
        """Token ids of everything up to the user's turn ``turn``. Raises ``RequestError``."""
        llm, prompt = self._llm, self._prompt
        if prompt.raw or not has_template(llm):
            begin = [] if prompt.system is None else [prompt.system]
            return llm.encode("\n\n".join([*begin, *self._pieces(turn)]))
        messages = [
            {"role": "assistant" if number % 2 else "user", "content": piece}
            for number, piece in enumerate(self._pieces(turn))
        ]
        if prompt.system is None:
            return llm.encode(messages)
        from jinja2 import TemplateError

        try:
            return llm.encode([{"role": "system", "content": prompt.system}, *messages])
        except TemplateError:  # templates that know no system role
            messages[0]["content"] = f"{prompt.system}\n\n{messages[0]['content']}"
            return llm.encode(messages)

    def feed(self, answer: str) -> None:
        """The answer to the last turn, as the model gave it without drafting."""
        self._said.append(answer)

    def _pieces(self, turn: int) -> list[str]:
        """User, answer, user, ... up to the user's turn ``turn``."""
        if len(self._said) < turn:
            raise RequestError(f"turn {turn} of {self._prompt.id!r}", why="an earlier turn has no answer")
        pieces: list[str] = []
        for said, answer in zip(self._prompt.turns[:turn], self._said, strict=False):
            pieces += [said, answer]
        return [*pieces, self._prompt.turns[turn]]


def has_template(llm: LLM) -> bool:
    """Whether the model's tokenizer knows how a conversation is written."""
    return bool(getattr(llm.tokenizer, "chat_template", None))
