"""Explaining what an engine does: attach, decode one prompt, read the record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from outrider.explain.listen import Recorder
from outrider.explain.record import Explanation
from outrider.explain.words import Pieces, Texts
from outrider.params import SamplingParams
from outrider.run.request import Choice, Request, Stats

if TYPE_CHECKING:
    from outrider.run.engine import Engine
    from outrider.run.llm import LLM


@dataclass(frozen=True)
class Labels:
    """What an explanation says about where it comes from."""

    model: str
    preset: str
    provenance: dict[str, Any] | None = None
    replayed: bool = False


class Explainer:
    """Records what ``engine`` does from now on. One request at a time: ``begin`` before each.

    >>> explainer = Explainer.of(LLM("smollm2-135m", preset="sam"))            # doctest: +SKIP
    >>> explainer.explain("Count: 1, 2, 3,").as_dict()                        # doctest: +SKIP
    """

    def __init__(
        self, engine: Engine, labels: Labels, texts: Texts | None = None, pieces: Sequence[str] | None = None
    ) -> None:
        """``texts`` and ``pieces`` stand in for the engine's tokenizer."""
        self.engine, self.labels = engine, labels
        self.texts = texts or Texts(engine.tokenizer)
        self.recorder = Recorder(engine, self.texts, lambda: Pieces(engine.tokenizer, pieces))

    @classmethod
    def of(cls, llm: LLM, preset: str = "", model: str = "", provenance: bool = True) -> Explainer:
        """For a model that is loaded; ``preset`` and ``model`` are what to call them. Without ``provenance`` the
        weights need not be read once more for their hash."""
        from outrider.provenance import provenance as collect

        draft = None if llm.draft is None else llm.draft.model
        facts = collect(target=llm.language_model, draft=draft).as_dict() if provenance else None
        return cls(llm.engine, Labels(model or llm.language_model.name, preset or llm.parts.name, facts))

    def begin(self) -> None:
        """Forget the request before."""
        self.recorder.start()

    def explain(self, prompt: Sequence[int], params: SamplingParams | None = None) -> Explanation:
        """Decode token ids ``prompt`` to the end. Raises ``RequestError``."""
        self.begin()
        request = self.engine.submit(prompt, params or SamplingParams())
        while not request.finished:
            self.engine.step()
        return self.result(request)

    def result(self, request: Request, finish_reason: str | None = None) -> Explanation:
        """What is known about ``request`` by now, also where it was interrupted (``finish_reason`` says so)."""
        choice = request.choices[0] if request.choices else Choice(0, stats=Stats(prompt_tokens=len(request.prompt)))
        engine = self.engine
        drafter = engine.parts.drafter
        return Explanation(
            model=self.labels.model,
            preset=self.labels.preset,
            drafters="" if drafter is None else drafter.name,
            guarantee=str(engine.parts.guarantee),
            prompt=tuple(request.prompt),
            prompt_text="".join(map(self.texts, request.prompt)),
            params=plain_params(request.params),
            seed=request.seed,
            steps=tuple(self.recorder.steps),
            text=choice.text,
            finish_reason=finish_reason or choice.finish_reason,
            stop_reason=choice.stop_reason,
            stats=choice.stats,
            replayed=self.labels.replayed,
            provenance=self.labels.provenance,
        )


def plain_params(params: SamplingParams) -> dict[str, Any]:
    """Fields that differ from their defaults, as plain values."""
    default = SamplingParams()
    values = {f.name: getattr(params, f.name) for f in fields(params)}
    found = {name: value for name, value in values.items() if value != getattr(default, name)}
    if "logits_processors" in found:
        found["logits_processors"] = [getattr(x, "__name__", type(x).__name__) for x in params.logits_processors]
    return found
