"""All checks and controls of one method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from outrider.certify.compare import Comparer, Reference, given
from outrider.certify.controls import plant, unchecked
from outrider.certify.decode import Subject
from outrider.certify.ground import WARMER, Counter, Ground, Tell
from outrider.certify.law import Sampled, law_tests, stripes
from outrider.certify.result import (
    Check,
    Context,
    Control,
    Divergence,
    IdentityCheck,
    NotRun,
    SamplingCheck,
)
from outrider.certify.statistics import Distance, total_variation
from outrider.parts import Parts
from outrider.run.request import Choice
from outrider.testing.stats import ChiSquare
from outrider.types import Guarantee

GREEDY = "Greedy texts, one prompt after the other, against plain decoding of the same prompts."
BATCH = "The same prompts decoded together in one batch, against plain decoding one by one."
IN_FULL = "Here and below it drafts in full, also where its policy would find that it does not pay."
SEEDED = "Texts drawn with a seed, in one batch, against plain decoding with the same seeds."
PARAMETERS = "The same with every sampling parameter switched on."
PARAMETERS_GREEDY = "Greedy texts with every sampling parameter switched on, in one batch, against plain decoding."
SAMPLING = "Many continuations of a few texts, tested for having the law of plain decoding and of the model itself."
DIVERGENCE = "How far the method's texts are from those of plain decoding, which it does not promise to keep."
_ENDING = 40

Drafting = IdentityCheck | SamplingCheck
Tests = dict[str, tuple[ChiSquare, bool]]


@dataclass
class RawControl:
    """A control before the number of tests is known. ``caught`` None: ``tests`` decide."""

    name: str
    of: str
    about: str
    caught: bool | None
    evidence: str = ""
    tests: Tests = field(default_factory=dict)
    stripes: tuple[int, ...] = ()

    def judged(self, level: float) -> Control:
        """``level`` is that of a single test."""
        if self.caught is not None:
            return Control(self.name, self.of, self.about, self.caught, self.evidence)
        best = min(self.tests, key=lambda name: self.tests[name][0].p_value)
        least = self.tests[best][0].p_value
        shown = f"= {least:.1g}" if least > 0 else "below 1e-300"
        evidence = f"{self.evidence}{best}: p {shown}, to be below {level:.1g}"
        return Control(self.name, self.of, self.about, least < level, evidence, self.stripes)


@dataclass
class Raw:
    """What is known of one method so far. ``sampling`` waits for its tests to be adjusted."""

    parts: str
    guarantee: Guarantee
    bound: str
    checks: list[Check] = field(default_factory=list)
    controls: list[RawControl] = field(default_factory=list)
    sampling: SamplingCheck | None = None
    tests: Tests = field(default_factory=dict)
    failed: int = 0
    complete: bool = False


class Checks:
    """Runs everything for one method, writing into ``raw`` as it goes."""

    def __init__(self, subject: Subject, ground: Ground, raw: Raw, tell: Tell, number: int = 0) -> None:
        self.subject, self.ground, self.raw, self.tell = subject, ground, raw, tell
        self.comparer = Comparer(ground.decoder, ground.judge, raw.guarantee)
        parts = subject.make()
        self.drafts = parts.drafter is not None
        self._batch_about = BATCH if parts.policy.core() is parts.policy else f"{BATCH} {IN_FULL}"
        self._side = 2 + 2 * number

    def run(self) -> None:
        """Checks in the order in which they are shown."""
        if self.raw.guarantee is Guarantee.RELAXED:
            self._divergence()
            return
        self._identity()
        self._drawn()
        self._sampling()
        self._stood()

    # -- the same text ------------------------------------------------------------------------------------

    def _identity(self) -> None:
        ground, raw = self.ground, self.raw
        wanted = ground.greedy
        raw.checks.append(self._compare("greedy", GREEDY, self._alone("greedy texts", wanted), wanted))
        self._planted(wanted)
        raw.checks.append(self._compare("batch", self._batch_about, self._batch("in one batch", wanted), wanted))
        self._unchecked("greedy", wanted)

    def _drawn(self) -> None:
        """Texts with a seed, where the method promises them; else everything on at temperature 0."""
        ground, raw = self.ground, self.raw
        if raw.guarantee is not Guarantee.IDENTICAL:
            about = "its draws are its own above temperature 0: the law is tested below"
            raw.checks.append(NotRun("seeded", SEEDED, about))
            wanted = ground.everything_greedy
            found = self._batch("every parameter on", wanted)
            raw.checks.append(self._compare("parameters", PARAMETERS_GREEDY, found, wanted))
            return
        if ground.plan.sampling.greedy:
            raw.checks.append(NotRun("seeded", SEEDED, "temperature 0 was asked for"))
            wanted = ground.everything_greedy
            found = self._batch("every parameter on", wanted)
            raw.checks.append(self._compare("parameters", PARAMETERS_GREEDY, found, wanted))
            return
        wanted = ground.seeded
        raw.checks.append(self._compare("seeded", SEEDED, self._batch("seeded texts", wanted), wanted))
        self._unchecked("seeded", wanted)
        wanted = ground.everything
        raw.checks.append(self._compare("parameters", PARAMETERS, self._batch("every parameter on", wanted), wanted))

    def _alone(self, stage: str, wanted: Reference) -> list[Choice]:
        tick = Counter(self.tell, stage, sum(map(len, wanted.texts)))
        return self.ground.decoder.one_by_one(self.subject.make(), wanted.asks, wanted.params, tick)

    def _batch(self, stage: str, wanted: Reference, make: Callable[[], Parts] | None = None) -> list[Choice]:
        tick = Counter(self.tell, stage, sum(map(len, wanted.texts)))
        return self.ground.decoder.together((make or self.subject.drafting)(), wanted.asks, wanted.params, tick)

    def _compare(self, name: str, about: str, found: list[Choice], wanted: Reference) -> IdentityCheck:
        tick = Counter(self.tell, f"comparing: {name}", len(found))
        return self.comparer.check(name, about, found, wanted, tick)

    # -- controls -----------------------------------------------------------------------------------------

    def _planted(self, wanted: Reference) -> None:
        """One wrong token in a text that is right: the model's second choice, where it was surest of its first."""
        about = "One token of a right text is replaced by the model's second choice."
        planted = [
            (*change, number)
            for number, along in enumerate(self.ground.along)
            if (change := plant(wanted.texts[number], along)) is not None
        ]
        if not planted:
            self.raw.controls.append(RawControl("planted token", "greedy", about, False, "no text leaves a choice"))
            return
        at, text, number = max(planted, key=lambda found: self.ground.along[found[2]].gap[found[0]])
        ask, right = wanted.asks[number], wanted.choices[number]
        difference = self.comparer.difference(ask, replace(right, token_ids=text), right, wanted.params[number])
        caught = difference is not None and difference.kind == "wrong" and difference.position == at
        told = "not noticed" if difference is None else f"called {difference.kind}; {difference.words()}"
        pair = f"{self.comparer.text([text[at]])!r} for {self.comparer.text([right.token_ids[at]])!r}"
        evidence = f"{ask.name}, token {at}: {pair}, {told}"
        self.raw.controls.append(RawControl("planted token", "greedy", about, caught, evidence))

    def _unchecked(self, of: str, wanted: Reference) -> None:
        """The method with a verifier that accepts whatever was drafted."""
        if not self.drafts:
            return
        found = self._batch(f"control: unchecked drafts ({of})", wanted, self._twin)
        drafted = sum(choice.stats.accepted_tokens for choice in found)
        wrong = self.comparer.first_wrong(found, wanted)
        about = "The same run with a verifier that accepts every drafted token."
        if not drafted:
            evidence = "nothing was drafted: the check has not tested any draft"
        elif wrong is None:
            evidence = f"{drafted} drafted tokens were accepted unchecked, and no text is wrong"
        else:
            evidence = f"{wanted.asks[wrong[0]].name} is wrong from token {wrong[1].position} on"
        self.raw.controls.append(RawControl("unchecked drafts", of, about, wrong is not None, evidence))

    def _stood(self) -> None:
        """Checks in which no draft was ever accepted have not seen what happens when one is."""
        if not self.drafts:
            return
        checks = [check for check in [*self.raw.checks, self.raw.sampling] if isinstance(check, Drafting)]
        drafted, accepted = sum(check.drafted for check in checks), sum(check.accepted for check in checks)
        about = "Some drafted tokens must have been accepted, or the step that keeps them was never taken."
        evidence = f"{accepted} of {drafted} drafted tokens were accepted"
        self.raw.controls.append(RawControl("accepted drafts", "all", about, accepted > 0, evidence))

    def _twin(self) -> Parts:
        return unchecked(self.subject.drafting())

    # -- the same law -------------------------------------------------------------------------------------

    def _sampling(self) -> None:
        ground, raw, plan = self.ground, self.raw, self.ground.plan
        if plan.sampling.greedy or not plan.samples:
            reason = "temperature 0 was asked for" if plan.sampling.greedy else "no samples were asked for"
            raw.checks.append(NotRun("sampling", SAMPLING, reason))
            return
        plain = ground.plain_sample
        found = ground.draw("samples", self.subject.drafting, self._side, self.tell)
        raw.tests, raw.failed = law_tests(found, plain), found.failed
        raw.sampling = self._described(found)
        about = f"Plain decoding at {WARMER:g} times the temperature."
        raw.controls.append(self._drawn_control("warmer", about, ground.warmer_sample))
        if self.drafts:
            about = "The same samples with a verifier that accepts every drafted token."
            twin = ground.draw("control: unchecked drafts (samples)", self._twin, self._side + 1, self.tell)
            if twin.accepted:
                raw.controls.append(self._drawn_control("unchecked drafts", about, twin))
            else:
                evidence = "nothing was drafted: the check has not tested any draft"
                raw.controls.append(RawControl("unchecked drafts", "sampling", about, False, evidence))

    def _drawn_control(self, name: str, about: str, found: Sampled) -> RawControl:
        tests = law_tests(found, self.ground.plain_sample)
        return RawControl(name, "sampling", about, None, tests=tests, stripes=stripes(found))

    def _described(self, found: Sampled) -> SamplingCheck:
        ground = self.ground
        starts = [
            Context(ask.name, at, len(ask.tokens), self.comparer.text(ask.tokens[-_ENDING:]))
            for ask, (_, at) in zip(ground.sampler.contexts, ground.places, strict=True)
        ]
        return SamplingCheck(
            name="sampling",
            about=SAMPLING,
            status="passed",  # until the tests are judged
            contexts=tuple(starts),
            samples=ground.plan.samples,
            tokens=ground.plan.sample_tokens,
            level=ground.plan.level,
            drafted=found.drafted,
            accepted=found.accepted,
            failed=found.failed,
            params=given(ground.sampler.params),
            stripes=stripes(found),
        )

    def _divergence(self) -> None:
        """What a relaxed rule changes, in texts and in laws."""
        ground, raw = self.ground, self.raw
        wanted = ground.greedy
        found = self._alone("greedy texts", wanted)
        checked = self._compare("greedy", GREEDY, found, wanted)
        agreed = tokens = 0
        for ask, params, choice in zip(wanted.asks, wanted.params, found, strict=True):
            if choice.token_ids:
                along = ground.scorer.along(ask, choice.token_ids, params, 1.0)
                agreed += sum(behind <= along.rounding for behind in along.behind)
                tokens += len(choice.token_ids)
        firsts: Distance | None = None
        pairs: Distance | None = None
        if not ground.plan.sampling.greedy and ground.plan.samples:
            sampled, plain = ground.draw("samples", self.subject.drafting, self._side, self.tell), ground.plain_sample
            each = range(len(plain.texts))

            def joined(side: Sampled, of: str) -> list[tuple[int, object]]:
                return [(c, outcome) for c in each for outcome in getattr(side, of)(c)]

            firsts = total_variation(joined(sampled, "firsts"), joined(plain, "firsts"))
            pairs = total_variation(joined(sampled, "pairs"), joined(plain, "pairs"))
        raw.checks.append(
            Divergence(
                name="divergence",
                about=DIVERGENCE,
                bound=raw.bound,
                agreement=agreed / tokens if tokens else 1.0,
                tokens=tokens,
                texts=checked.texts,
                identical=checked.identical + checked.ties,
                first_tokens=firsts,
                pairs=pairs,
                differences=checked.differences,
            )
        )
