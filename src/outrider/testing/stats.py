"""Statistics for law tests: does a sample come from the law that was claimed?

Nothing beyond torch is needed, so that authors of plug-ins can use it wherever outrider runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST_EXPECTATION = 5.0
"""Bins that expect fewer are merged: below it the chi-square law is a poor approximation (Cochran 1954)."""


@dataclass(frozen=True)
class ChiSquare:
    """Result of Pearson's test. ``bins`` are left after merging; ``p_value`` is the chance of a statistic at
    least this large when the claimed law is the true one."""

    statistic: float
    dof: int
    p_value: float
    bins: int
    samples: int

    def __str__(self) -> str:
        return (
            f"chi-square {self.statistic:.1f} on {self.dof} degrees of freedom "
            f"({self.samples} samples, p = {self.p_value:.3g})"
        )


def chi_square(counts: Tensor, law: Tensor, smallest: float = SMALLEST_EXPECTATION) -> ChiSquare:
    """Pearson's goodness-of-fit test of ``counts`` i64[...] against ``law`` f[...] of the same shape.

    ``law`` sums to 1. Bins whose expectation is below ``smallest`` are merged, smallest first, into bins that
    reach it. Counts where the law is zero are impossible outcomes: the statistic is then infinite.
    """
    counts, law = counts.flatten().double(), law.flatten().double()
    if counts.shape != law.shape:
        raise ValueError(f"counts have {counts.numel()} bins, the law has {law.numel()}")
    if abs(float(law.sum()) - 1) > 1e-6:
        raise ValueError(f"the law sums to {float(law.sum())}, not to 1")
    samples = counts.sum()
    impossible = bool((counts[law <= 0] > 0).any())
    order = law[law > 0].argsort()
    observed, expected = merge(counts[law > 0][order], law[law > 0][order] * samples, smallest)
    if impossible:
        return ChiSquare(float("inf"), max(1, len(expected) - 1), 0.0, len(expected), int(samples))
    statistic = float(((observed - expected) ** 2 / expected).sum())
    dof = len(expected) - 1
    return ChiSquare(statistic, dof, chi_square_tail(statistic, dof), len(expected), int(samples))


def merge(observed: Tensor, expected: Tensor, smallest: float) -> tuple[Tensor, Tensor]:
    """Join neighbouring bins of ``observed`` f64[K] and ``expected`` f64[K] (ascending) until each expects
    ``smallest``; what is left over joins the last bin."""
    bins: list[list[float]] = []
    seen = want = 0.0
    for o, e in zip(observed.tolist(), expected.tolist(), strict=True):
        seen, want = seen + o, want + e
        if want >= smallest:
            bins.append([seen, want])
            seen = want = 0.0
    if want > 0:
        if bins:
            bins[-1] = [bins[-1][0] + seen, bins[-1][1] + want]
        else:
            bins.append([seen, want])
    table = torch.tensor(bins, dtype=torch.float64).view(-1, 2)
    return table[:, 0], table[:, 1]


def chi_square_tail(statistic: float, dof: int) -> float:
    """P(X >= statistic) for X chi-square distributed on ``dof`` degrees of freedom; 1 when there are none."""
    if dof < 1:
        return 1.0
    half = torch.tensor([dof / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def histogram(tokens: Tensor, vocab_size: int) -> Tensor:
    """i64[V,...,V]: counts of the K-tuples in ``tokens`` i64[R,K]."""
    k = tokens.shape[1]
    weights = vocab_size ** torch.arange(k - 1, -1, -1)
    codes = (tokens.cpu() * weights).sum(1)
    return torch.bincount(codes, minlength=vocab_size**k).view([vocab_size] * k)


def mean_within(values: Tensor, mean: float, errors: float = 3.0) -> bool:
    """Whether the sample mean of ``values`` f[R] is within ``errors`` standard errors of ``mean``."""
    values = values.double()
    return abs(float(values.mean()) - mean) <= errors * float(values.std()) / values.numel() ** 0.5 + 1e-12
