"""What a step costs here: whole steps of the real engine, with drafts of chosen sizes that the target rejects.

Timed inside the engine's loop, a forward meets the caches as a forward of decoding does, and what a step costs beside
it (checking, committing, text) is measured along with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from outrider.draft.base import DraftContext, Drafter
from outrider.draft.lookup import chain_tree
from outrider.params import SamplingParams
from outrider.parts import Parts
from outrider.policy.cost import ForwardCost, StepCost
from outrider.policy.fixed import Fixed
from outrider.run.engine import Engine
from outrider.run.scheduler import Limits
from outrider.tune.timing import Deadline
from outrider.verify.match import Match

if TYPE_CHECKING:
    from outrider.model.base import LanguageModel
    from outrider.rng import Draws
    from outrider.run.row import Row
    from outrider.types import Budget, DraftTree, Outcome

SIZES = (1, 2, 3, 4, 6, 8, 11, 16, 24, 41, 64, 81)
"""Nodes per forward, the root included. Small ones lie close together: kernels change there."""
_FEW_SWEEPS, _MANY_SWEEPS = 2, 12
_FEW_SIZES = 4
_SPARSE = 3
"""Behind a long context every third size is measured; the ratio to the short context is drawn through them."""


class Probe(Drafter):
    """Proposes a chain of as many nodes as it is told, of one token over and over."""

    name = "probe"

    def __init__(self) -> None:
        self.nodes = 1
        self._context: DraftContext | None = None

    def bind(self, context: DraftContext) -> None:
        self._context = context

    def propose(self, rows: Sequence[Row], budget: Budget, draws: Draws) -> DraftTree:
        assert self._context is not None
        chains = [[(row.tokens[-1] + 1) % self._context.vocab_size] * (self.nodes - 1) for row in rows]
        return chain_tree(rows, chains, self.name, self._context)


@dataclass(frozen=True)
class StepTime:
    """One timed step: ``nodes`` nodes behind ``context`` stored tokens, in seconds."""

    nodes: int
    context: int
    forward: float
    host: float
    """Everything else in the step but the draft."""


@dataclass(frozen=True)
class Costs:
    """``step`` as a profile keeps it, and how many seconds each drafted node adds to its ``host`` time."""

    step: StepCost
    host_per_node: float = 0.0
    prompt_token: float | None = None
    """Seconds per token of a prompt. A row that is alone reads the end of its prompt along with its first draft, and
    that forward is divided by tokens: the first step costs as much per node. None: the target reads prompts apart."""
    unrest: float = 1.0
    """What a plain step usually takes over what the fastest took: 1 on a machine that does nothing else."""
    times: tuple[StepTime, ...] = field(default=(), repr=False)
    """What it was made from."""

    def seconds(self, nodes: int, context: int) -> float:
        """A step of one row without its draft. ``nodes`` count the root."""
        return sum(self.parts(nodes, context))

    def parts(self, nodes: int, context: int, first: bool = False) -> tuple[float, float]:
        """The same as ``(target, host)``; ``first``: the step that reads the end of the prompt."""
        host = self.step.host + self.host_per_node * (nodes - 1)
        if first and self.prompt_token is not None:
            return self.prompt_token * nodes, host
        return self.step.forward.seconds(1, nodes, context), host


def sizes_up_to(nodes: int) -> tuple[int, ...]:
    """The sizes worth measuring for trees of at most ``nodes`` nodes, the root included."""
    fits = [size for size in SIZES if size < nodes]
    return (*fits, max(nodes, 1)) if nodes > 1 else (1,)


def measure(
    target: LanguageModel,
    text: Sequence[int],
    sizes: Sequence[int],
    contexts: Sequence[int],
    deadline: Deadline,
    tell: Callable[[float], None] = lambda done: None,
) -> Costs:
    """Sweep over ``sizes`` (ascending, from 1) behind the first ``contexts`` (ascending) tokens of ``text``, as often
    as the deadline allows; a context that there is no time for is left out.

    Sweeps are interleaved: each goes once through all sizes, and contexts take turns, so that a slow second hits all of
    them alike.
    """
    stands: list[_Stand] = []
    share = deadline.left / len(contexts) / _FEW_SWEEPS
    for number, context in enumerate(contexts):
        if stands and not deadline.left:
            break
        stand = _Stand(target, text[:context], sizes, deadline)
        ends = stand.warm_up()
        wanted = sizes if number == 0 else sorted({*sizes[::_SPARSE], sizes[-1]})
        stand.sizes = affordable(wanted, ends, share)
        stands.append(stand)
    times = _sweeps(stands, deadline, tell)
    return fit(times, stands[-1].prompt_token)  # of the longest, where the fixed cost of a forward weighs least


def affordable(sizes: Sequence[int], seconds: tuple[float, float], budget: float) -> list[int]:
    """As many of ``sizes`` as one sweep of ``budget`` seconds has room for, when the smallest and the largest take
    ``seconds``; never fewer than four, and always the first two and the last."""
    kept = list(sizes)
    low, high = seconds
    while len(kept) > _FEW_SIZES:
        span = max(kept[-1] - kept[0], 1)
        if low + sum(low + (high - low) * (size - kept[0]) / span for size in kept) <= budget:
            break
        gaps = {size: after / before for before, size, after in zip(kept[1:], kept[2:], kept[3:], strict=False)}
        kept.remove(min(gaps, key=lambda size: (gaps[size], -size)))
    return kept


class _Stand:
    """An engine with one row, kept at about one context, and a probe."""

    def __init__(self, target: LanguageModel, prompt: Sequence[int], sizes: Sequence[int], deadline: Deadline) -> None:
        self.probe, self.sizes, self.clock = Probe(), list(sizes), deadline.clock
        self.prompt = list(prompt)
        longest = target.max_positions or 1 << 20
        steps = (_MANY_SWEEPS + 1) * len(sizes)
        room = min(longest, len(self.prompt) + 2 * steps + max(sizes) + 8)
        parts = Parts(verifier=Match(), policy=Fixed(room), drafter=self.probe, name="probe")
        limits = Limits(max_rows=1, max_context=room, max_nodes=max(sizes) + 1)
        self.engine = Engine(target, parts, limits=limits)
        self.on_host = target.device.type == "cpu"
        self.engine.listen(self._look)
        self._outcome: Outcome | None = None
        self.prompt_token: float | None = None
        self._start()

    def _start(self) -> None:
        tokens = self.engine.max_context - len(self.prompt)
        params = SamplingParams(max_tokens=max(1, tokens), ignore_eos=True)
        self.request = self.engine.submit(self.prompt, params, stream=False)

    def _look(self, outcome: Outcome) -> None:
        self._outcome = outcome

    def step(self, nodes: int) -> StepTime:
        """One step with a draft of ``nodes`` nodes, the root included. A row that has come to an end starts again,
        untimed."""
        if self.request.finished:
            self._start()
            self.probe.nodes = 1
            self.engine.step()
        self.probe.nodes = nodes
        began = self.clock()
        self.engine.step()
        whole = self.clock() - began
        assert self._outcome is not None
        seconds = self._outcome.seconds
        # An accelerator works on while the host goes ahead; the verifier is where it is waited for.
        forward = seconds["target"] + (0.0 if self.on_host else seconds["verify"])
        context = len(self._outcome.rows[0].tokens) - len(self._outcome.emitted[0]) - 1
        if self.on_host and seconds.get("prefill"):
            self.prompt_token = (seconds["prefill"] + seconds["target"]) / (context + 1)
        return StepTime(self._outcome.tree.shape[1], context, forward, max(0.0, whole - forward - seconds["draft"]))

    def warm_up(self) -> tuple[float, float]:
        """Read the prompt and take a few untimed steps; seconds of a plain step and of the largest."""
        self.step(1)
        self.step(self.sizes[-1])
        small, large = self.step(1), self.step(self.sizes[-1])
        return small.forward + small.host, large.forward + large.host

    def sweep(self) -> list[StepTime]:
        """All sizes once, and the plain step, on which every speed-up rests, twice. They are filed under the length of
        the prompt; near the end of the context, where a draft is cut short, a step is left out."""
        found = [(nodes, self.step(nodes)) for nodes in (*self.sizes, 1)]
        return [replace(time, context=len(self.prompt)) for nodes, time in found if time.nodes == nodes]


def _sweeps(stands: Sequence[_Stand], deadline: Deadline, tell: Callable[[float], None]) -> list[StepTime]:
    """Timed sweeps of all stands in turns, each filed under its context: one at least, more while there is time."""
    times: list[StepTime] = []
    whole = max(deadline.left, 1e-9)
    last = 0.0
    for turn in range(_MANY_SWEEPS):
        if turn >= _FEW_SWEEPS and deadline.left < last:
            break
        began = deadline.clock()
        for stand in stands:
            if times and not deadline.left:
                break
            times += stand.sweep()
        last = deadline.clock() - began
        tell(min(1.0, max((turn + 1) / _MANY_SWEEPS, 1 - deadline.left / whole)))
    return times


def fit(times: Sequence[StepTime], prompt_token: float | None = None) -> Costs:
    """A curve, and the host's time as a straight line over the nodes.

    What disturbs a step only ever makes it slower, so the *shape* of the curve comes from the fastest step of each
    size. Its *level* is put back to what is usual by the median, over all steps, of their time over the fastest of
    their size.
    """
    fastest = {key: min(t.forward for t in times if (t.nodes, t.context) == key) for key in _keys(times)}
    usual = median(t.forward / fastest[t.nodes, t.context] for t in times)
    forward = {key: seconds * usual for key, seconds in fastest.items()}
    contexts = sorted({context for _, context in forward})
    short = contexts[0]
    if len(contexts) == 1:  # level, whatever the context
        forward, contexts, short = {(nodes, 0): seconds for (nodes, _), seconds in forward.items()}, [0], 0
    sizes = sorted(nodes for nodes, context in forward if context == short)
    points = {(1, nodes, short): forward[nodes, short] for nodes in sizes}
    for context in contexts[1:]:
        known = [nodes for nodes in sizes if (nodes, context) in forward]
        ratios = [forward[nodes, context] / forward[nodes, short] for nodes in known]
        for nodes in sizes:
            ratio = float(np.interp(math.log(nodes), np.log(known), ratios))
            points[1, nodes, context] = forward[nodes, short] * ratio
    host, slope = _line([(nodes, median(t.host for t in times if t.nodes == nodes)) for nodes in sizes])
    return Costs(StepCost(ForwardCost.measured(points), {}, host), slope, prompt_token, _unrest(times), tuple(times))


def _unrest(times: Sequence[StepTime]) -> float:
    """Median over fastest time of plain steps, of the context where that is largest."""
    plain = [[t.forward for t in times if (t.nodes, t.context) == key] for key in _keys(times) if key[0] == 1]
    return max(median(some) / min(some) for some in plain)


def _keys(times: Sequence[StepTime]) -> list[tuple[int, int]]:
    return sorted({(time.nodes, time.context) for time in times})


def _line(points: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """``(seconds at one node, seconds per further node)``, neither below 0."""
    x = np.array([nodes - 1 for nodes, _ in points], dtype=np.float64)
    y = np.array([seconds for _, seconds in points])
    slope = 0.0
    if len(points) > 1:
        slope = max(0.0, float(np.polyfit(x, y, 1)[0]))
    return max(0.0, float(np.mean(y - slope * x))), slope
