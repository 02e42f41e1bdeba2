"""``certify``: runs every check and every control, and says what they amount to."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from outrider.certify.checks import Checks, Raw
from outrider.certify.compare import given
from outrider.certify.decode import Decoder, Subject
from outrider.certify.ground import Ground, Plan, Progress
from outrider.certify.inputs import gather, subjects
from outrider.certify.law import judged
from outrider.certify.result import Certificate, Check, Findings, LeftOut, worst
from outrider.certify.statistics import holm
from outrider.certify.words import findings_summary, summary, verdict_of
from outrider.provenance import provenance
from outrider.types import Guarantee

if TYPE_CHECKING:
    from outrider.bench.suite import Suite
    from outrider.parts import Law, Parts
    from outrider.run.llm import LLM

    Make = Callable[[], Parts]
    Presets = str | Make | Sequence[str | Make]


def certify(
    model: LLM | Any,
    presets: Presets | None = None,
    prompts: Suite | Sequence[Any] | None = None,
    plan: Plan | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Certificate:
    """Check that ``presets`` change nothing about what ``model`` says.

    ``model`` is an ``LLM`` (its weights, draft model, tokenizer and limits are used; its own preset is the default), or
    anything that holds one as ``llm``. Presets are names and combinations as for ``LLM``, or functions that build fresh
    ``Parts``. ``prompts`` is a suite or a list of whatever ``LLM.encode`` takes; by default the suite "own".

    Raises ``ConfigError`` for presets, prompts and settings that cannot work, before anything has run.
    """
    certifier = Certifier(model, presets, prompts, plan, progress)
    certifier.run()
    return certifier.certificate()


class Certifier:
    """``certify`` in two steps, so that what an interruption leaves can be had: ``run``, then ``certificate``."""

    def __init__(
        self,
        model: LLM | Any,
        presets: Presets | None = None,
        prompts: Suite | Sequence[Any] | None = None,
        plan: Plan | None = None,
        progress: Callable[[Progress], None] | None = None,
        left_out: Sequence[LeftOut] = (),
    ) -> None:
        self.llm: LLM = getattr(model, "llm", model)
        self.plan = plan or Plan()
        self.left_out = tuple(left_out)
        self._progress = progress or (lambda _: None)
        named = getattr(model, "preset", None) or self.llm.parts.name
        self.subjects = subjects(named if presets is None else presets, self.llm)
        self.decoder = Decoder(self.llm)
        for each in self.subjects:
            self.decoder.engine(each.make(), 1)  # raises what the parts have against this model
        self.prompts, self.asks = gather(self.llm, prompts, self.plan.prompts, self.plan.max_tokens)
        self._grounds: dict[Law | None, Ground] = {}
        self._raw: list[tuple[Subject, Raw]] = []
        self._began = time.monotonic()

    def run(self) -> None:
        """All checks of all presets. What is finished stays, whatever ends it early."""
        for number, each in enumerate(self.subjects):
            parts = each.make()
            if parts.law not in self._grounds:
                self._grounds[parts.law] = Ground(self.decoder, parts.law, self.asks, self.plan, self._tell)
            raw = Raw(parts.name, parts.guarantee, parts.verifier.bound)
            self._raw.append((each, raw))
            Checks(each, self._grounds[parts.law], raw, self._tell, number).run()
            raw.complete = True

    def _tell(self, stage: str, done: int, total: int) -> None:
        number = len(self._raw)
        self._progress(Progress(self.subjects[number - 1].name, number, len(self.subjects), stage, done, total))

    def certificate(self) -> Certificate:
        """What was found so far; p-values are adjusted for all tests made."""
        tests = [test for _, raw in self._raw for test, _ in raw.tests.values()]
        adjusted = holm([test.p_value for test in tests])
        presets = []
        for each, raw in self._raw:
            mine, adjusted = adjusted[: len(raw.tests)], adjusted[len(raw.tests) :]
            presets.append(self._findings(each, raw, mine, self.plan.level / max(1, len(tests))))
        complete = len(presets) == len(self.subjects) and all(found.complete for found in presets)
        verdict = worst([found.verdict for found in presets] + ([] if complete else ["incomplete"]))
        draft = None if self.llm.draft is None else self.llm.draft.model
        plan = {f.name: getattr(self.plan, f.name) for f in fields(Plan)}
        return Certificate(
            verdict=verdict,
            summary=summary(verdict, presets),
            model=self.llm.language_model.name,
            draft_model=None if draft is None else draft.name,
            presets=tuple(presets),
            left_out=self.left_out,
            prompts=self.prompts,
            settings=plan | {"sampling": given(self.plan.sampling)},
            provenance=provenance(target=self.llm.language_model, draft=draft).as_dict(),
            seconds=time.monotonic() - self._began,
            complete=complete,
        )

    def _findings(self, each: Subject, raw: Raw, adjusted: list[float], level: float) -> Findings:
        checks: list[Check] = list(raw.checks)
        if raw.sampling is not None:
            tests = judged(raw.tests, adjusted, level)
            rejected = any(test.adjusted < self.plan.level for test in tests) or raw.failed > 0
            checks.append(replace(raw.sampling, tests=tests, status="wrong" if rejected else "passed"))
        controls = [control.judged(level) for control in raw.controls]
        relaxed = raw.guarantee is Guarantee.RELAXED
        verdict = verdict_of(relaxed, raw.complete, checks, controls)
        return Findings(
            name=each.name,
            parts=raw.parts,
            guarantee=str(raw.guarantee),
            verdict=verdict,
            summary=findings_summary(verdict, raw.guarantee, checks, controls),
            checks=tuple(checks),
            controls=tuple(controls),
            complete=raw.complete,
        )
