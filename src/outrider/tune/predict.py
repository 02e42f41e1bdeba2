"""From steps and costs to tokens per second.

    seconds of a step = draft + T(nodes, context) + host(nodes)

summed over the steps that a candidate would take, each with its own number of nodes and its own context: the mean of
T over the nodes that occur, not T of their mean. Reading the prompt is apart. The speed-up is over plain decoding of
the same texts, priced by the same curve.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from outrider.policy.cost import DraftCost

if TYPE_CHECKING:
    from outrider.tune.curve import Costs
    from outrider.tune.trial import Trial


@dataclass(frozen=True)
class Prediction:
    """What a candidate is expected to do. ``seconds`` per step, by part: draft, target, host."""

    name: str
    tokens_per_second: float
    speedup: float
    mean_accepted_length: float
    """Emitted tokens per step; plain is 1."""
    mean_nodes: float
    """Nodes per forward, the root included."""
    seconds: dict[str, float]
    prompts: int
    """Prompts behind it."""
    live: bool = False
    """Whether its acceptance comes from a short run of the engine, not from a replay of recorded text."""


def predict(trial: Trial, plain: Trial, costs: Costs, mix: Mapping[str, int] | None = None) -> Prediction:
    """Tokens per second of ``trial``, and its speed-up over ``plain`` on the same texts.

    ``mix`` weighs groups of prompts: ``{group: prompts}`` of the work that the prediction is for; groups that the trial
    has not seen are left out. Without it every recorded prompt counts once.
    """
    beside = trial.beside(plain)
    weights = _weights(trial, mix)
    mine, other = _sum(trial, costs, weights), _sum(beside, costs, weights)
    speedup = (mine.tokens / mine.whole) / (other.tokens / other.whole)
    everywhere = _sum(plain, costs, _weights(plain, mix))
    return Prediction(
        name=trial.name,
        tokens_per_second=speedup * everywhere.tokens / everywhere.whole,
        speedup=speedup,
        mean_accepted_length=mine.tokens / mine.calls,
        mean_nodes=mine.nodes / mine.calls,
        seconds={part: total / mine.calls for part, total in mine.seconds.items()},
        prompts=sum(1 for weight in weights if weight),
        live=trial.live,
    )


@dataclass
class _Sum:
    """Weighted totals over the steps of a trial."""

    tokens: float
    calls: float
    nodes: float
    seconds: dict[str, float]

    @property
    def whole(self) -> float:
        return sum(self.seconds.values())


def _sum(trial: Trial, costs: Costs, weights: Sequence[float]) -> _Sum:
    total = _Sum(0.0, 0.0, 0.0, {"draft": 0.0, "target": 0.0, "host": 0.0})
    for steps, weight in zip(trial.steps, weights, strict=True):
        for number, step in enumerate(steps):
            forward, host = costs.parts(step.nodes, step.context, first=number == 0 and trial.reads_along)
            for part, seconds in (("draft", step.draft), ("target", forward), ("host", host)):
                total.seconds[part] += weight * seconds
            total.tokens += weight * step.emitted
            total.calls += weight
            total.nodes += weight * step.nodes
    return total


def _weights(trial: Trial, mix: Mapping[str, int] | None) -> list[float]:
    """How much each prompt counts, so that groups have the shares of ``mix``."""
    seen = Counter(prompt.group for prompt in trial.prompts)
    if mix is None or not any(mix.get(group) for group in seen):
        return [1.0] * len(trial.prompts)
    return [mix.get(prompt.group, 0) / seen[prompt.group] for prompt in trial.prompts]


def draft_cost(trial: Trial, by_level: bool) -> DraftCost:
    """What the drafter of a trial takes: seconds per proposal, or, for a second model, per drafted level and per token
    of a prompt that it reads first."""
    if not by_level:
        steps = [step for each in trial.steps for step in each]
        return DraftCost(proposal=sum(step.draft for step in steps) / len(steps))
    first = [(prompt, each[0]) for prompt, each in zip(trial.prompts, trial.steps, strict=True) if each]
    later = [step for each in trial.steps for step in each[1:] if step.levels]
    if not later:
        return DraftCost(level=median(step.draft / max(1, step.levels) for _, step in first))
    level = sum(step.draft for step in later) / sum(step.levels for step in later)
    reading = [max(0.0, step.draft - level * step.levels) / len(prompt.tokens) for prompt, step in first]
    return DraftCost(level=level, token=median(reading))


def hopeless(smaller: Prediction, nodes: int, costs: Costs, context: int) -> bool:
    """Whether a larger tree of the same drafter cannot repay itself: granted that every doubling of its drafted nodes
    adds as much as all nodes of the smaller one did, which is more than trees do, it is still slower than plain."""
    drafted = max(1.0, smaller.mean_nodes - 1)
    if nodes <= drafted:
        return False
    granted = smaller.mean_accepted_length + (smaller.mean_accepted_length - 1) * math.log2(nodes / drafted)
    return granted * costs.seconds(1, context) < costs.seconds(nodes + 1, context)


@dataclass(frozen=True)
class Check:
    """What was measured of a candidate, in turns with plain, on prompts that the prediction had not seen.
    ``predicted`` is the prediction for the mix of groups of these prompts."""

    name: str
    tokens_per_second: float
    speedup: float
    prompts: int
    predicted: Prediction

    @property
    def error(self) -> float:
        """Of the predicted tokens per second, relative to the measured: 0.1 is 10 % too high."""
        return self.predicted.tokens_per_second / self.tokens_per_second - 1

    @property
    def speedup_error(self) -> float:
        """The same of the speed-up, in which the machine's mood cancels."""
        return self.predicted.speedup / self.speedup - 1


@dataclass(frozen=True)
class Ranked:
    """A candidate's place in the ranking: ``speedup`` is what is believed of it in the end."""

    name: str
    speedup: float
    predicted: Prediction
    check: Check | None = None


def rank(predictions: Sequence[Prediction], checks: Sequence[Check] = ()) -> list[Ranked]:
    """Best first. A measurement corrects its prediction by measured / predicted (on the measured prompts), with the
    weight that its prompts have among all prompts behind the two."""
    by_name = {check.name: check for check in checks}
    ranked = []
    for prediction in predictions:
        check = by_name.get(prediction.name)
        believed = prediction.speedup
        if check is not None and prediction.name != "plain":
            weight = check.prompts / (check.prompts + prediction.prompts)
            believed *= (1 + check.speedup_error) ** -weight
        ranked.append(Ranked(prediction.name, believed, prediction, check))
    return sorted(ranked, key=lambda one: -one.speedup)


WORTH_IT = 1.02
"""A candidate must be believed to gain at least this much: less is within what such measurements can tell."""


def choose(ranking: Sequence[Ranked]) -> Ranked:
    """The best candidate that was checked (any, if none was), or plain where it does not gain enough."""
    checked = [one for one in ranking if one.check is not None and one.name != "plain"]
    for best in (checked or [one for one in ranking if one.name != "plain"])[:1]:
        if best.speedup >= WORTH_IT:
            return best
    return next(one for one in ranking if one.name == "plain")
