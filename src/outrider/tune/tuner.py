"""The whole of tuning: measure costs, record texts, try candidates on them, predict, check the best, choose.

The budget in seconds is shared out among the phases; each takes as many sweeps, prompts or candidates as it has time
for.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from outrider.bench.harness import Harness, Step
from outrider.bench.runners import WARM_UP, Conversation
from outrider.bench.suite import Suite, SuitePrompt
from outrider.errors import ConfigError, check_number
from outrider.params import SamplingParams
from outrider.tune import curve, predict, profile, trial
from outrider.tune.candidates import PLAIN, candidates
from outrider.tune.predict import Check, Prediction
from outrider.tune.timing import Clock, Deadline
from outrider.tune.trying import Trials
from outrider.tune.writing import Findings, as_profile

if TYPE_CHECKING:
    from outrider.run.llm import LLM

MEASURE, RECORD, TRY, CHECK = "measuring steps", "recording texts", "trying candidates", "checking the best"
PHASES = (MEASURE, RECORD, TRY, CHECK)
_SHARES = {MEASURE: 0.2, RECORD: 0.27, TRY: 0.25, CHECK: 1.0}
"""Of the seconds that are left when a phase begins."""
_ROWS = 8
"""Texts recorded side by side."""
_CHECKED = 0.4
"""Share of the prompts that is kept for the check."""
_SURE = 1.5
"""Time that a prompt of the check must have, over what is expected of it, to be begun."""
_ENOUGH = 24
"""Recorded tokens below which nothing can be said."""
_LONG = 1024
"""Tokens of context up to which the curve is measured."""


@dataclass(frozen=True)
class Task:
    """What to tune for, and how long. ``names`` None tries the grid; ``checks`` candidates are measured for real;
    ``hopeless`` ones are tried as well, if asked for."""

    suite: Suite
    names: tuple[str, ...] | None = None
    budget: float = 60.0
    max_tokens: int = 48
    temperature: float = 0.0
    checks: int = 2
    hopeless: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.budget < float("inf"):
            raise ConfigError(f"budget={self.budget!r}", hint="Give a number of seconds above 0.")
        check_number("max_tokens", self.max_tokens, 2)
        check_number("checks", self.checks, 0)
        SamplingParams(temperature=self.temperature)

    @property
    def params(self) -> SamplingParams:
        seed = 0 if self.temperature > 0 else None
        return SamplingParams(max_tokens=self.max_tokens, temperature=self.temperature, seed=seed)


@dataclass(frozen=True)
class Listener:
    """Who is told of the progress: ``phase(name, fraction done)``, and ``predicted(predictions)`` before the check."""

    phase: Callable[[str, float], None] = lambda name, done: None
    predicted: Callable[[Sequence[Prediction]], None] = lambda predictions: None


@dataclass
class Tuner:
    """One run of ``tune``; ``model`` and ``draft_model`` are the names that the profile shows.

    Raises ``ConfigError`` for candidates and prompts that cannot work before anything is measured.
    """

    llm: LLM
    task: Task
    model: str
    draft_model: str | None = None
    listener: Listener = field(default_factory=Listener)
    clock: Clock | None = None

    def __post_init__(self) -> None:
        drafts = self.llm.draft is not None
        self.tried, self.dropped = candidates(self.task.names, self.llm.language_model, drafts, self.task.params)
        recorded, checked = split(self.task.suite)
        self.prompts = self._encode(recorded)
        fits = {prompt.id for prompt in self._encode(checked)}
        self.checked = replace(checked, prompts=tuple(prompt for prompt in checked.prompts if prompt.id in fits))
        if not self.prompts:
            raise ConfigError(
                f"no prompt of {self.task.suite.name!r} fits",
                why=f"the context of {self.llm.engine.max_context} tokens must hold it and {self.task.max_tokens} more",
                hint="Give shorter prompts, or lower --max-tokens.",
            )
        self.trials: dict[str, trial.Trial] = {}

    def run(self) -> profile.Profile:
        """Measure, predict, write the prediction down, check. Nothing is saved."""
        profile.prepare()
        self.deadline = Deadline(self.task.budget, *([self.clock] if self.clock else []))
        costs = self._costs()
        records = self._record()
        predictions = self._try(records, costs)
        expected = self._expect(predictions, costs)
        self._log(predictions, expected)
        self.listener.predicted(predictions)
        checks = self._check(expected, costs)
        ranking = predict.rank(predictions, checks)
        found = Findings(ranking, costs, records, checks, self.trials, self.tried, self.dropped, self.deadline.used)
        return as_profile(found, self.llm, self.task, (self.model, self.draft_model))

    def _encode(self, suite: Suite) -> list[trial.Prompt]:
        """Those that fit into the context together with an answer."""
        found = []
        longest = self.llm.engine.max_context - self.task.max_tokens
        for prompt in suite.prompts:
            tokens = Conversation(self.llm, prompt).ids(0)
            if 0 < len(tokens) <= longest:
                found.append(trial.Prompt(prompt.id, prompt.group, tuple(tokens)))
        return found

    # -- phases -----------------------------------------------------------------------------------------------

    def _phase(self, name: str) -> tuple[Deadline, Callable[[float], None]]:
        self.listener.phase(name, 0.0)
        return self.deadline.part(_SHARES[name]), lambda done: self.listener.phase(name, done)

    def _costs(self) -> curve.Costs:
        own, tell = self._phase(MEASURE)
        most = min(1 + max(one.nodes for one in self.tried), curve.SIZES[-1])
        room = self.llm.engine.max_context
        sizes = curve.sizes_up_to(max(2, min(most, room // 4)))
        longest = max(len(prompt.tokens) for prompt in self.prompts) + self.task.max_tokens
        long = max(1, min(longest, _LONG, room - 2 * sizes[-1] - 2 * len(sizes)))
        short = min(64, max(1, long // 3))
        text = [token for prompt in self.prompts for token in prompt.tokens]
        text *= long // len(text) + 1
        return curve.measure(self.llm.language_model, text, sizes, sorted({short, long}), own, tell)

    def _record(self) -> list[trial.Record]:
        own, tell = self._phase(RECORD)
        records = trial.record(self.llm, self.prompts, self.task.params, own, _ROWS, tell)
        tokens = sum(len(one.output) for one in records)
        if tokens < _ENOUGH and any(len(one.output) < self.task.max_tokens for one in records):
            raise ConfigError(
                f"a budget of {self.task.budget:g} s is too short for this model",
                why=f"it left time for {tokens} tokens of text",
                hint=f"Give --budget {math.ceil(4 * self.task.budget)} or more, or shorter prompts.",
            )
        return records

    def _try(self, records: list[trial.Record], costs: curve.Costs) -> list[Prediction]:
        own, tell = self._phase(TRY)
        trials = Trials(self.llm, self.task.params, records, costs, own)
        plain = predict.predict(trials.plain, trials.plain, costs)
        found = trials.run(self.tried, tell, strict=self.task.names is not None, hopeless=self.task.hopeless)
        self.trials = trials.done
        self.dropped += trials.dropped
        return [plain, *found]

    # -- the check --------------------------------------------------------------------------------------------

    def _expect(self, predictions: Sequence[Prediction], costs: curve.Costs) -> list[Prediction]:
        """Of plain and the best candidates, what the check should find: the same, for its mix of prompts."""
        mix = Counter(prompt.group for prompt in self.checked.prompts)
        best = [one.name for one in predict.rank(predictions) if one.name != PLAIN][: self.task.checks]
        plain = self.trials[PLAIN]
        return [predict.predict(self.trials[name], plain, costs, mix) for name in [PLAIN, *best]]

    def _log(self, predictions: Sequence[Prediction], expected: Sequence[Prediction]) -> None:
        """Write down what is expected before it is measured."""
        entry = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "model": self.model,
            "predictions": [asdict(one) for one in predictions],
            "expected": [asdict(one) for one in expected],
        }
        profile.log(entry)

    def _check(self, expected: Sequence[Prediction], costs: curve.Costs) -> list[Check]:
        """The expected ones for real, in turns, prompt by prompt, as long as there is time."""
        _, tell = self._phase(CHECK)
        expected = self._affordable(expected, costs)
        if len(expected) < 2:
            return []
        names = [one.name for one in expected if one.name != PLAIN]
        harness = Harness(self.llm, self.checked, names, self.task.params)
        watch = _Watch(self.deadline, tell)
        with contextlib.suppress(_TimeIsUp):
            harness.run(tell=watch)
        if not watch.complete:
            return []
        by_name = {one.name: one for one in expected}
        return [
            Check(one.name, one.tokens_per_second, one.speedup or 1.0, one.prompts, by_name[one.name])
            for one in harness.result().presets
        ]

    def _affordable(self, expected: Sequence[Prediction], costs: curve.Costs) -> list[Prediction]:
        """Plain and as many of the best as one prompt, and the warm-up, will probably have time for."""
        if not self.checked.prompts:
            return []
        reading = (costs.prompt_token or 0.0) * len(Conversation(self.llm, self.checked.prompts[0]).ids(0))
        kept: list[Prediction] = []
        left = self.deadline.left
        for one in expected:
            left -= _SURE * (2 * reading + (WARM_UP + self.task.max_tokens) / one.tokens_per_second)
            if left < 0:
                break
            kept.append(one)
        return kept


class _TimeIsUp(Exception):
    """Raised between two answers."""


class _Watch:
    """Ends the check when the next prompt would probably not be finished in time."""

    def __init__(self, deadline: Deadline, tell: Callable[[float], None]) -> None:
        self.deadline, self.tell = deadline, tell
        self.complete = 0
        self._prompt: str | None = None
        self._began = self._longest = 0.0

    def __call__(self, step: Step) -> None:
        now = self.deadline.clock()
        if step.prompt != self._prompt:
            if self._prompt is not None:
                self.complete += 1
                self._longest = max(self._longest, now - self._began)
            self._prompt, self._began = step.prompt, now
            if self.complete and self.deadline.left < self._longest:
                raise _TimeIsUp
        if not self.deadline.left:
            raise _TimeIsUp
        self.tell(step.done / step.total)


def split(suite: Suite) -> tuple[Suite, Suite]:
    """Prompts to record and prompts to check on, disjoint and of the same groups, each in turns from the groups. Only
    the first turn of a conversation is taken: later ones depend on answers."""
    groups: dict[str, list[SuitePrompt]] = {}
    for prompt in suite.prompts:
        groups.setdefault(prompt.group, []).append(replace(prompt, turns=prompt.turns[:1]))
    taken = 0.0
    recorded: list[list[SuitePrompt]] = []
    checked: list[list[SuitePrompt]] = []
    for prompts in groups.values():
        sides: tuple[list[SuitePrompt], list[SuitePrompt]] = ([], [])
        for prompt in prompts:
            taken += _CHECKED
            sides[taken >= 1].append(prompt)
            taken -= taken >= 1
        recorded.append(sides[0])
        checked.append(sides[1])
    return replace(suite, prompts=_in_turns(recorded)), replace(suite, prompts=_in_turns(checked))


def _in_turns(groups: Sequence[Sequence[SuitePrompt]]) -> tuple[SuitePrompt, ...]:
    rounds = max((len(group) for group in groups), default=0)
    return tuple(group[turn] for turn in range(rounds) for group in groups if turn < len(group))
