"""Costs learnt from the steps themselves: medians of what was measured, over what was assumed."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from outrider.policy.acceptance import EDGES
from outrider.policy.cost import Cost, DraftCost, ForwardCost

if TYPE_CHECKING:
    from outrider.draft.base import DraftContext

_PLAIN, _DRAFTED = 15, 9
"""How many of the latest steps a median looks at."""
_HALF_LIFE = 256
"""Steps after which a measurement of a size that is no longer met counts half."""
_BEHIND = 8
"""Tokens a drafter may lack without that being a catching-up: what one step emits."""

GPU = ForwardCost((1, 64, 256), (((1.0, 1.15, 1.8),),))
MATRIX_CPU = ForwardCost((1, 8, 48, 80), (((1.0, 1.1, 1.35, 1.8),),))
PLAIN_CPU = ForwardCost((1, 8, 16, 80), (((1.0, 1.7, 2.2, 5.7),),))
"""What a forward of n nodes costs, plain decoding being 1, where nothing has been measured: SmolLM2 in bfloat16 on
processors that multiply it in hardware, and in float32 on AVX2."""


def assumed(context: DraftContext) -> ForwardCost:
    """The curve to start from on this device."""
    from outrider.model.load import default_dtype

    if context.device.type != "cpu":
        return GPU
    dtype = context.target.dtype
    half = dtype in (torch.bfloat16, torch.float16) and default_dtype(context.device)[0] is dtype
    return MATRIX_CPU if half else PLAIN_CPU


class Window:
    """The median of the latest values; with ``warm`` the very first one is not counted, since the first call of a kind
    allocates."""

    __slots__ = ("_values", "count", "median")

    def __init__(self, size: int, warm: bool = True) -> None:
        self._values: deque[float] = deque(maxlen=size)
        self.count = -1 if warm else 0
        self.median = 0.0

    def add(self, value: float) -> None:
        self.count += 1
        if self.count > 0:
            self._values.append(value)
            ordered = sorted(self._values)
            middle = len(ordered) // 2
            # Of two, the smaller: what disturbs a measurement makes it longer.
            self.median = ordered[middle if len(ordered) % 2 else middle - 1]


class LearntCost(Cost):
    """A ``prior`` curve that follows what steps really take: prior * e^(u + v).

    u is the level, by number of rows and length of context, read off plain steps; v corrects the shape, by number of
    rows and bucket of nodes, read off drafted steps relative to the level. Both are medians, so that a step that was
    interrupted changes nothing. v is smoothed over neighbouring buckets, counts little while it rests on few steps, and
    fades when a size is no longer met: what was measured in a bad moment is not believed for ever. With a prior from a
    profile this is the correction of the day; with one in relative units the level makes it seconds.
    """

    def __init__(self, prior: Cost) -> None:
        self._prior = lru_cache(maxsize=4096)(prior.seconds)
        self._level: dict[tuple[int, int], Window] = {}
        self._shape: dict[int, dict[int, Window]] = {}
        self._met: dict[tuple[int, int], int] = {}  # the step in which a bucket was last measured
        self._steps = 0
        self._stand_in = Window(_DRAFTED)

    def observe(self, rows: int, nodes: int, context: float, seconds: float) -> None:
        """A step of ``rows`` rows with ``nodes`` nodes each (the root included) took ``seconds``."""
        if seconds <= 0:
            return
        self._steps += 1
        size, group = rows.bit_length(), (rows.bit_length(), _far(context))
        off = math.log(seconds / self._prior(rows, nodes, _round(context)))
        if nodes == 1:
            self._level.setdefault(group, Window(_PLAIN, warm=False)).add(off)
        elif not self._level:  # nothing plain so far: the shape is taken for right
            self._stand_in.add(off)
        else:
            bucket = bisect_left(EDGES, nodes - 1)
            self._shape.setdefault(size, {}).setdefault(bucket, Window(_DRAFTED)).add(off - self._find(group))
            self._met[size, bucket] = self._steps

    def plain_steps(self, rows: int, context: float) -> int:
        """How many steps without a draft the level of such a batch rests on."""
        found = self._level.get((rows.bit_length(), _far(context)))
        return 0 if found is None else found.count

    def seconds(self, rows: int, nodes: float, context: float) -> float:
        return self.curve(rows, context, (0, max(math.ceil(nodes) - 1, 0)))[-1]

    def curve(self, rows: int, context: float, drafted: Sequence[int]) -> list[float]:
        """Seconds with each number of drafted nodes per row (ascending), never falling."""
        level = self._find((rows.bit_length(), _far(context)))
        shape = self._corrections(rows.bit_length())
        near, found, most = _round(context), [], 0.0
        for nodes in drafted:
            off = level + _smooth(shape, bisect_left(EDGES, nodes)) if nodes and shape else level
            most = max(most, self._prior(rows, nodes + 1, near) * math.exp(off))
            found.append(most)
        return found

    def _corrections(self, size: int) -> dict[int, tuple[float, float]]:
        """(v, weight) of each measured bucket."""
        found = {}
        for bucket, window in self._shape.get(size, {}).items():
            if window.count > 0:
                faded = 0.5 ** ((self._steps - self._met[size, bucket]) / _HALF_LIFE)
                found[bucket] = (window.median, min(window.count, _DRAFTED) * faded)
        return found

    def _find(self, group: tuple[int, int]) -> float:
        """The level of such a batch, or of the measured one most like it."""
        exact = self._level.get(group)
        if exact is not None:
            return exact.median
        if not self._level:
            return self._stand_in.median
        return self._level[min(self._level, key=lambda g: (abs(g[0] - group[0]), abs(g[1] - group[1])))].median


class LearntDraft:
    """What one drafter takes: ``DraftCost`` from its proposals, starting from ``known`` where a profile has it.

    Medians per class of depth, and a straight line through the least and the most that were drafted: level for look-up,
    steep for a model that drafts token by token. From one depth alone the cost is taken to be proportional.
    """

    def __init__(self, known: DraftCost | None = None) -> None:
        self.known = known
        self._proposals: dict[int, Window] = {}
        self._levels: dict[int, int] = {}  # latest of each class
        self._token = Window(_DRAFTED)

    @property
    def measured(self) -> bool:
        return self.known is not None or any(window.count > 0 for window in self._proposals.values())

    def observe(self, levels: int, behind: int, seconds: float) -> None:
        """A proposal of ``levels`` levels (0: nothing to say) after reading ``behind`` tokens took ``seconds``."""
        if behind > _BEHIND:
            self._token.add(max(seconds - self.seconds(levels), 0.0) / behind)
            return
        self._proposals.setdefault(levels.bit_length(), Window(_DRAFTED)).add(seconds)
        self._levels[levels.bit_length()] = levels

    def seconds(self, levels: float, behind: float = 0.0) -> float:
        """Of a proposal ``levels`` deep after reading ``behind`` tokens."""
        token = self._token.median if self._token.count > 0 or self.known is None else self.known.token
        return self._drafting(levels) + (token * behind if behind > _BEHIND else 0.0)

    def _drafting(self, levels: float) -> float:
        points = [(self._levels[size], w.median) for size, w in sorted(self._proposals.items()) if w.count > 0]
        if not points:
            return 0.0 if self.known is None else self.known.seconds(levels)
        (least, low), (most, high) = points[0], points[-1]
        if least == most:
            return low * levels / least if least else low
        return max(low + max(high - low, 0.0) / (most - least) * (levels - least), 0.0)


def _smooth(shape: dict[int, tuple[float, float]], bucket: int) -> float:
    """v at ``bucket``: the mean of it and its neighbours, each of which counts a quarter of the one before, and of no
    correction with half a step's weight."""
    total, weights = 0.0, 0.5
    for other, (value, weight) in shape.items():
        weight *= 0.25 ** abs(other - bucket)
        total += weight * value
        weights += weight
    return total / weights


def _far(context: float) -> int:
    """Class of a context length: each is twice the one before, from 256 tokens on."""
    return (int(context) >> 8).bit_length()


def _round(context: float) -> float:
    """Context to steps of 64 tokens, so that curves repeat."""
    return int(context) // 64 * 64.0
