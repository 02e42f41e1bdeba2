"""What a step costs: seconds of a target forward as a measured curve, and of a proposal per drafter.

Two models of the forward have the same face (``Cost``):

* ``ForwardCost``, a grid of measurements over rows, nodes and context, straight between its points: what a machine
  really does, steps and plateaus included;
* ``LinearCost``, T = a * N_context + b * N_batched + c fitted by least squares: the model of SmartSpec (Liu et al.,
  arXiv 2406.14066, section 4.2), which needs nothing but the steps of a running server.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations, pairwise
from typing import Any

import numpy as np

from outrider.errors import ConfigError, check_number, nearest


class Cost(ABC):
    """Seconds of one forward of the target."""

    @abstractmethod
    def seconds(self, rows: int, nodes: float, context: float) -> float:
        """``rows`` rows with ``nodes`` nodes each (the root included: 1 is plain decoding) behind ``context`` stored
        tokens per row."""


@dataclass(frozen=True)
class ForwardCost(Cost):
    """The measured curve. ``table[r][c][n]`` is the seconds of a forward of ``rows[r]`` rows with ``nodes[n]`` nodes
    each behind ``contexts[c]`` tokens; all three axes ascend, and ``nodes`` begins with 1.

    Between its points the curve is straight, below the first it is level. Beyond the last number of nodes or tokens of
    context it goes on with the slope of its last piece, or of the whole axis where that is steeper. Beyond the last
    number of rows it counts their nodes as nodes of the rows it knows, and their context as more of the same.
    """

    nodes: tuple[int, ...]
    table: tuple[tuple[tuple[float, ...], ...], ...]
    contexts: tuple[int, ...] = (0,)
    rows: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        for name, low in (("nodes", 1), ("contexts", 0), ("rows", 1)):
            axis = getattr(self, name)
            if not axis or any(a >= b for a, b in pairwise(axis)) or axis[0] < low:
                raise ConfigError(f"{name}={axis} of a cost curve", hint=f"Give ascending numbers of at least {low}.")
        if self.nodes[0] != 1 or len(self.nodes) < 2:
            raise ConfigError(
                f"a cost curve over nodes={self.nodes}",
                why="plain decoding is a forward of 1 node, speculation one of more",
                hint="Measure 1 and at least one larger number.",
            )
        shape = (len(self.rows), len(self.contexts), len(self.nodes))
        found = {(len(self.table), len(plane), len(line)) for plane in self.table for line in plane}
        if found != {shape} or any(len(plane) != shape[1] for plane in self.table):
            raise ConfigError(
                f"a cost table of another shape than its axes, which have {shape} points (rows, contexts, nodes)",
                hint="Give table[rows][contexts][nodes].",
            )
        wrong = [s for plane in self.table for line in plane for s in line if not 0 < s < math.inf]
        if wrong:
            raise ConfigError(f"a forward of {wrong[0]} seconds", hint="Seconds are positive and finite.")

    @classmethod
    def measured(cls, points: Mapping[tuple[int, int, int], float]) -> ForwardCost:
        """From ``{(rows, nodes, context): seconds}``, which must fill a grid. More nodes, rows or context never cost
        less: where noise says so, the nearest curve that ascends is taken (isotonic regression).

        Raises ``ConfigError`` naming the first point of the grid that is missing.
        """
        rows, nodes, contexts = (tuple(sorted({point[i] for point in points})) for i in range(3))
        missing = [(r, n, c) for r in rows for c in contexts for n in nodes if (r, n, c) not in points]
        if missing:
            r, n, c = missing[0]
            raise ConfigError(
                f"no time for {r} rows x {n} nodes behind {c} tokens of context",
                why=f"the others span {len(rows)} x {len(nodes)} x {len(contexts)} points",
                hint="Measure every combination.",
            )
        times = np.array([[[points[r, n, c] for n in nodes] for c in contexts] for r in rows], dtype=np.float64)
        for axis in range(3):  # the later ones keep what the earlier ones made: isotonic regression is monotone
            times = np.apply_along_axis(ascending, axis, times)
        table = tuple(tuple(tuple(line) for line in plane) for plane in times.tolist())
        return cls(nodes, table, contexts, rows)

    def seconds(self, rows: int, nodes: float, context: float) -> float:
        most = self.rows[-1]
        if rows > most:
            seen = self.seconds(most, nodes * rows / most, context)
            alone = self.seconds(most, nodes, context) - self.seconds(most, nodes, self.contexts[0])
            return seen + alone * (rows / most - 1)
        planes = [self._plane(plane, nodes, context) for plane in self.table]
        return _between(self.rows, planes, rows)

    def _plane(self, plane: Sequence[Sequence[float]], nodes: float, context: float) -> float:
        return _between(self.contexts, [_between(self.nodes, line, nodes) for line in plane], context)

    def as_dict(self) -> dict[str, Any]:
        """Plain lists, for a profile."""
        return {
            "rows": list(self.rows),
            "contexts": list(self.contexts),
            "nodes": list(self.nodes),
            "table": [[list(line) for line in plane] for plane in self.table],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ForwardCost:
        """The inverse of ``as_dict``. Raises ``ConfigError`` for unknown keys and for values of another kind."""
        _check_keys(data, {"rows", "contexts", "nodes", "table"}, "a cost curve")
        try:
            axes = {name: tuple(int(x) for x in data[name]) for name in ("nodes", "contexts", "rows")}
            table = tuple(tuple(tuple(float(s) for s in line) for line in plane) for plane in data["table"])
        except (TypeError, ValueError) as error:
            raise ConfigError("a cost curve that cannot be read", why=str(error)) from None
        return cls(table=table, **axes)


@dataclass(frozen=True)
class LinearCost(Cost):
    """T = ``per_context`` * N_context + ``per_token`` * N_batched + ``fixed``, in seconds: N_context tokens are stored
    for all rows together, N_batched are in the forward."""

    per_context: float
    per_token: float
    fixed: float

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            check_number(name, value, 0)

    @classmethod
    def fit(cls, samples: Iterable[tuple[float, float, float]]) -> LinearCost:
        """Least squares over ``(N_context, N_batched, seconds)``, no coefficient below 0.

        Raises ``ConfigError`` for fewer than three samples.
        """
        points = np.array(list(samples), dtype=np.float64).reshape(-1, 3)
        if len(points) < 3:
            raise ConfigError(f"{len(points)} steps to fit a cost model to", hint="Give at least three, better dozens.")
        columns = np.column_stack([points[:, :2], np.ones(len(points))])
        best, smallest = np.zeros(3), math.inf
        for size in (3, 2, 1):  # the constrained optimum is the best of the free optima that obey: there are seven
            for used in map(list, combinations(range(3), size)):
                found = np.linalg.lstsq(columns[:, used], points[:, 2], rcond=None)[0]
                error = float(((columns[:, used] @ found - points[:, 2]) ** 2).sum())
                if (found >= 0).all() and error < smallest:
                    best, smallest = np.zeros(3), error
                    best[used] = found
        return cls(*best.tolist())

    def seconds(self, rows: int, nodes: float, context: float) -> float:
        return self.per_context * rows * context + self.per_token * rows * nodes + self.fixed

    def as_dict(self) -> dict[str, float]:
        """Plain numbers, for a profile."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LinearCost:
        """The inverse of ``as_dict``."""
        _check_keys(data, {"per_context", "per_token", "fixed"}, "a linear cost model")
        return cls(**data)


@dataclass(frozen=True)
class DraftCost:
    """Seconds a drafter takes: ``proposal`` for each step it is asked in, ``level`` for each level it then drafts, and
    ``token`` for each token of a row that it has not read yet (a draft model behind the text)."""

    proposal: float = 0.0
    level: float = 0.0
    token: float = 0.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            check_number(name, value, 0)

    def seconds(self, levels: float, behind: float = 0.0) -> float:
        """Of one proposal ``levels`` deep, after reading ``behind`` tokens."""
        return self.proposal + self.level * levels + self.token * behind


@dataclass(frozen=True)
class StepCost(Cost):
    """All that a step is made of: the target's ``forward``, the ``drafts`` by the drafter's name, and the ``host`` time
    of a step that neither takes (checking, committing, text). As a ``Cost``, a step without its draft."""

    forward: Cost
    drafts: Mapping[str, DraftCost] = field(default_factory=dict)
    host: float = 0.0

    def __post_init__(self) -> None:
        check_number("host", self.host, 0)

    def seconds(self, rows: int, nodes: float, context: float) -> float:
        return self.forward.seconds(rows, nodes, context) + self.host

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a profile. Raises ``ConfigError`` for a forward model that is none of this module's."""
        if not isinstance(self.forward, ForwardCost | LinearCost):
            raise ConfigError(f"a {type(self.forward).__name__} cannot be written to a profile")
        kind = "linear" if isinstance(self.forward, LinearCost) else "curve"
        drafts = {name: asdict(cost) for name, cost in self.drafts.items()}
        return {kind: self.forward.as_dict(), "drafts": drafts, "host": self.host}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StepCost:
        """The inverse of ``as_dict``. Raises ``ConfigError`` for unknown keys and for values of another kind."""
        kind, forward = ("linear", LinearCost) if "linear" in data else ("curve", ForwardCost)
        _check_keys(data, {kind, "drafts", "host"}, "a step cost")
        drafts = {}
        for name, cost in data["drafts"].items():
            _check_keys(cost, {"proposal", "level", "token"}, f"the draft cost of {name!r}")
            drafts[str(name)] = DraftCost(**cost)
        return cls(forward.from_dict(data[kind]), drafts, data["host"])


def ascending(values: np.ndarray) -> np.ndarray:
    """f64[N]: the nondecreasing sequence nearest to ``values`` f64[N] by squares (pool adjacent violators)."""
    blocks: list[list[float]] = []  # [mean, length]
    for value in values.tolist():
        blocks.append([value, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            mean, length = blocks.pop()
            total = blocks[-1][1] + length
            blocks[-1] = [(blocks[-1][0] * blocks[-1][1] + mean * length) / total, total]
    return np.repeat([mean for mean, _ in blocks], [int(length) for _, length in blocks])


def _between(axis: Sequence[int], values: Sequence[float], at: float) -> float:
    """The piecewise straight line through (``axis``, ``values``) at ``at``."""
    if at <= axis[0] or len(axis) == 1:
        return values[0]
    high = min(bisect_right(axis, at), len(axis) - 1)
    low = high - 1
    slope = (values[high] - values[low]) / (axis[high] - axis[low])
    if at > axis[-1]:
        whole = (values[-1] - values[0]) / (axis[-1] - axis[0])
        return values[-1] + max(slope, whole) * (at - axis[-1])
    return values[low] + slope * (at - axis[low])


def _check_keys(data: Any, known: set[str], what: str) -> None:
    """Raise ``ConfigError`` unless ``data`` is a mapping with exactly the ``known`` keys."""
    if not isinstance(data, Mapping):
        raise ConfigError(
            f"{what} that is a {type(data).__name__}, not a table", hint=f"Keys: {', '.join(sorted(known))}."
        )
    for key in data:
        if key not in known:
            raise ConfigError(f"{what} has no {key!r}", hint=nearest(str(key), known))
    missing = sorted(known - set(data))
    if missing:
        raise ConfigError(f"{what} without {missing[0]!r}", hint="Measure it again.")
