"""Are two samples of one law? Tests, what they would have found, and how far apart laws are."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from outrider.testing.stats import SMALLEST_EXPECTATION, ChiSquare, chi_square_tail

POWER = 0.9
"""Probability with which a stated distance would have been found."""


def two_sample(first: Iterable[Hashable], second: Iterable[Hashable]) -> ChiSquare:
    """Pearson's test that two samples come from one law. Outcomes that are too rare in both together are merged, the
    rarest first, until each bin expects enough in the smaller sample; ``samples`` is the effective size
    2 n m / (n + m), which is n where both have n."""
    a, b = _binned(first, second)
    n, m = a.sum(), b.sum()
    weight = math.sqrt(m / n)
    statistic = float((((weight * a - b / weight) ** 2) / (a + b)).sum())
    dof = len(a) - 1
    return ChiSquare(statistic, dof, chi_square_tail(statistic, dof), len(a), round(2 * n * m / (n + m)))


def _binned(first: Iterable[Hashable], second: Iterable[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    """f64[K], f64[K]: counts of both samples in merged bins. Bins are chosen by the counts of both together, which
    says nothing about where the two differ."""
    a, b = Counter(first), Counter(second)
    n, m = sum(a.values()), sum(b.values())
    if not n or not m:
        raise ValueError(f"samples of {n} and {m} outcomes")
    need = SMALLEST_EXPECTATION * (n + m) / min(n, m)
    outcomes = sorted(a | b, key=lambda key: (a[key] + b[key], repr(key)))
    bins: list[list[int]] = [[0, 0]]
    for key in outcomes:
        if sum(bins[-1]) >= need:
            bins.append([0, 0])
        bins[-1][0] += a[key]
        bins[-1][1] += b[key]
    if len(bins) > 1 and sum(bins[-1]) < need:
        last = bins.pop()
        bins[-1] = [bins[-1][0] + last[0], bins[-1][1] + last[1]]
    table = np.array(bins, dtype=np.float64)
    return table[:, 0], table[:, 1]


def pooled(tests: Sequence[ChiSquare]) -> ChiSquare:
    """One test of independent ones: statistics and degrees of freedom add up."""
    statistic, dof = sum(test.statistic for test in tests), sum(test.dof for test in tests)
    p_value = chi_square_tail(statistic, dof)
    return ChiSquare(statistic, dof, p_value, sum(test.bins for test in tests), sum(test.samples for test in tests))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (1979): rejecting those below a level keeps the chance of any false rejection among all
    of them below that level."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = least
    return adjusted


def detectable(dof: int, level: float, samples: int, *, against_law: bool = False, power: float = POWER) -> float:
    """The total-variation distance, on the bins of a test, from which on it would have been found with probability
    ``power`` at ``level``. 1 where the test can find nothing.

    Whatever its shape, a distance of d gives Pearson's statistic a noncentrality of at least 2 n d^2 for two samples of
    n (``samples``), 4 n d^2 for one sample against a known law: by Cauchy and Schwarz,
    sum (p - q)^2 / m >= (sum |p - q|)^2 / sum m = (2 d)^2.
    """
    if dof < 1 or samples < 1:
        return 1.0
    bound = critical_value(dof, level)
    low, high = 0.0, 1.0
    while noncentral_tail(bound, dof, high) < power:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if noncentral_tail(bound, dof, middle) < power else (low, middle)
    return min(1.0, math.sqrt(high / ((4 if against_law else 2) * samples)))


def critical_value(dof: int, level: float) -> float:
    """The value that a chi-square variable on ``dof`` degrees of freedom exceeds with probability ``level``."""
    low, high = 0.0, float(dof) + 1
    while chi_square_tail(high, dof) > level:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if chi_square_tail(middle, dof) > level else (low, middle)
    return high


def noncentral_tail(value: float, dof: int, noncentrality: float) -> float:
    """P(X > value) for a noncentral chi-square variable: central ones, mixed by a Poisson law."""
    half = noncentrality / 2
    if half == 0:
        return chi_square_tail(value, dof)
    terms = torch.arange(math.ceil(half + 12 * math.sqrt(half) + 40), dtype=torch.float64)
    logs = terms * math.log(half) - half - torch.lgamma(terms + 1)
    tails = torch.special.gammaincc(dof / 2 + terms, torch.tensor(value / 2, dtype=torch.float64))
    return float((logs.exp() * tails).sum())


@dataclass(frozen=True)
class Distance:
    """Total variation between the laws of two samples, on bins. ``noise`` is what two samples of *one* law would show
    on average; ``low`` and ``high`` bound the distance with 95 % confidence (``low`` takes the noise off)."""

    estimate: float
    low: float
    high: float
    noise: float
    samples: int


def total_variation(
    first: Sequence[Hashable], second: Sequence[Hashable], seed: int = 0, rounds: int = 400
) -> Distance:
    """See ``Distance``. The noise comes from random splits of both samples together, the spread from resampling."""
    a, b = _binned(first, second)
    n, m = int(a.sum()), int(b.sum())
    rng = np.random.default_rng(seed)

    def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.abs(x / n - y / m).sum(-1) / 2

    both = (a + b).astype(np.int64)
    split = rng.multivariate_hypergeometric(both, n, size=rounds, method="marginals")
    noise = float(distance(split, both - split).mean())
    again = distance(rng.multinomial(n, a / n, size=rounds), rng.multinomial(m, b / m, size=rounds))
    estimate, spread = float(distance(a, b)), 1.96 * float(again.std())
    return Distance(estimate, max(0.0, estimate - noise - spread), min(1.0, estimate + spread), noise, min(n, m))
