"""Trying candidates: those that cost least first, those that cannot win not at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from outrider.errors import SpecError
from outrider.tune import agreement, predict, trial
from outrider.tune.candidates import PLAIN, Candidate, Dropped, Effort
from outrider.tune.predict import Prediction

if TYPE_CHECKING:
    from outrider.params import SamplingParams
    from outrider.policy.cost import DraftCost
    from outrider.run.llm import LLM
    from outrider.tune.curve import Costs
    from outrider.tune.timing import Deadline

_DEAR = 0.4
"""Share of the time left for its kind that one candidate may take, unless it is a look-up."""
_TOLD = 8
"""Steps below which a trial that was cut short tells nothing: the first of them reads the prompt."""
_JUDGED = 48
"""Steps of a live run below which it tells nothing about larger trees."""
_NO_TIME = "no time was left to try it"


@dataclass
class Trials:
    """Trials of candidates on ``records`` until the ``deadline``; ``dropped`` were not tried to the end."""

    llm: LLM
    params: SamplingParams
    records: Sequence[trial.Record]
    costs: Costs
    deadline: Deadline
    done: dict[str, trial.Trial] = field(default_factory=dict)
    dropped: list[Dropped] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.plain = self.done[PLAIN] = trial.plain_steps(self.records)
        self._found: dict[str, Prediction] = {}
        self._tried: Sequence[Candidate] = ()
        self._drafting: Deadline | None = None
        self._read: tuple[list[agreement.Agreement], DraftCost] | None = None

    def run(
        self, tried: Sequence[Candidate], tell: Callable[[float], None], strict: bool, hopeless: bool
    ) -> list[Prediction]:
        """Predictions of all there is time for: look-ups, which cost next to nothing, then draft models, then live
        runs; simple ones before combinations, small trees before large ones. ``strict``: one that cannot serve the
        target raises; ``hopeless``: those that cannot win are tried too."""
        self._tried = sorted(tried, key=lambda one: (one.effort, one.combined, one.nodes))
        for number, one in enumerate(self._tried):
            tell(number / len(self._tried))
            reason = "" if hopeless else self._hopeless(one)
            try:
                reason = reason or self._try(one)
            except SpecError as error:  # a drafter that cannot serve this target
                if strict:
                    raise
                reason = str(error)
            if reason:
                self.dropped.append(Dropped(one.name, reason))
        return list(self._found.values())

    def _hopeless(self, one: Candidate) -> str:
        """Why trying it would be a waste of time; empty if it would not."""
        if one.effort is Effort.LOOK_UP:
            return ""
        if one.combined and any(other.name == one.fallback for other in self._tried):
            alone = self._found.get(one.fallback)
            if alone is None:
                untimely = Dropped(one.fallback, _NO_TIME) in self.dropped
                return _NO_TIME if untimely else f"{one.fallback} alone was not worth a try"
            return f"{one.fallback} alone was slower than plain" if alone.speedup < 1 else ""
        context = sum(step.context for each in self.plain.steps for step in each) // self.plain.calls
        for other in self._tried:
            smaller = self._found.get(other.name)
            if smaller is None or not _same_kind(one, other) or self.done[other.name].calls < _JUDGED:
                continue
            if predict.hopeless(smaller, one.nodes, self.costs, context):
                return f"a tree of {one.nodes} nodes cannot repay its cost here, judging by {other.name}"
        return ""

    def _try(self, one: Candidate) -> str:
        """Try it and predict; why not, if there was no time."""
        limit = self._limit(one)
        if self._found and not limit.left:
            return _NO_TIME
        found = self._trial(one, limit)
        if found.tokens < self.plain.tokens and found.calls < _TOLD:
            return _NO_TIME
        self.done[one.name] = found
        self._found[one.name] = predict.predict(found, self.plain, self.costs)
        return ""

    def _limit(self, one: Candidate) -> Deadline:
        """Until when candidates of this kind are tried: drafting with a second model leaves half for live runs."""
        if one.effort is not Effort.DRAFT_MODEL:
            return self.deadline
        if self._drafting is None:
            live = any(other.effort is Effort.LIVE for other in self._tried)
            self._drafting = self.deadline.part(0.5 if live else 1.0)
        return self._drafting

    def _trial(self, one: Candidate, limit: Deadline) -> trial.Trial:
        if one.effort is Effort.LOOK_UP:
            return trial.replay(self.llm, one.name, self.records, self.params, limit)
        if one.effort is Effort.CHAIN:
            return self._chains(one, limit)
        run = trial.live if one.effort is Effort.LIVE else trial.replay
        return run(self.llm, one.name, self.records, self.params, limit.part(_DEAR))

    def _chains(self, one: Candidate, limit: Deadline) -> trial.Trial:
        """The draft model reads the texts once, for all candidates that draft chains with it."""
        if self._read is None:
            assert self.llm.draft is not None
            cost = agreement.level_cost(self.llm, self.records, self.params, limit.part(_DEAR / 2))
            vocab = self.llm.language_model.vocab_size
            found = agreement.agreements(self.llm.draft.model, self.records, vocab, limit.part(_DEAR))
            self._read = (found, cost)
        found, cost = self._read
        return agreement.chains(one.name, one.depth, found, cost, self.params.max_tokens)


def _same_kind(one: Candidate, other: Candidate) -> bool:
    """Whether both are run live alone and differ in their settings only."""
    live = one.effort is other.effort is Effort.LIVE and not one.combined and not other.combined
    return live and one.method == other.method
