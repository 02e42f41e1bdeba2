"""Changes between two runs over the prompts that both have, with intervals.

A change is the ratio, B over A, of a figure: tokens per second, or a speed-up. Prompts are resampled with replacement,
all times of a prompt in both runs together (paired bootstrap). On the log scale such a ratio is nearly normal, so the
bootstrap's standard error and Student's t with one degree of freedom less than there are prompts make the interval.

All intervals of one table hold at once: each is at ``1 - (1 - LEVEL) / comparisons`` (Bonferroni), so that twelve
presets are not twelve chances of a false alarm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np

from outrider.bench.result import Interval

LEVEL = 0.95
MIN_PROMPTS = 5
"""Fewer prompts in common give no interval, and so no verdict."""

FASTER, SLOWER = "faster", "slower"
SAME = "no difference that the data can show"

SPEED, SPEEDUP = (1.0, -1.0, 0.0, 0.0), (1.0, -1.0, -1.0, 1.0)
"""Figures as exponents of the sums of tokens, seconds, the baseline's tokens and the baseline's seconds."""

RESAMPLES = 2000
_SEED = 20_001
_ROUNDING = 1e-9
"""Sums of the same times in another order are no difference."""


@dataclass(frozen=True)
class Change:
    """A figure in A and in B over ``prompts`` common prompts, and their ratio. ``interval`` None: too few prompts."""

    before: float
    after: float
    ratio: float
    interval: Interval | None
    prompts: int

    @property
    def verdict(self) -> str:
        """``FASTER`` or ``SLOWER`` where the whole interval is on one side of 1, else ``SAME``."""
        if self.interval is not None and self.interval.low > 1 + _ROUNDING:
            return FASTER
        return SLOWER if self.interval is not None and self.interval.high < 1 - _ROUNDING else SAME

    def as_dict(self) -> dict[str, Any]:
        interval = self.interval.model_dump() if self.interval else None
        return asdict(self) | {"interval": interval, "verdict": self.verdict}


def change(sums: np.ndarray, exponents: Sequence[float], comparisons: int = 1) -> Change | None:
    """The change of a figure, as one of ``comparisons`` made together; None without prompts.

    ``sums`` f64[prompts,2,4] holds A's and B's tokens, seconds, baseline tokens and baseline seconds, all above 0; the
    figure is the product of their totals, each to its power in ``exponents`` (``SPEED``, ``SPEEDUP``).
    """
    prompts = len(sums)
    if not prompts:
        return None
    powers = np.array(exponents)
    before, after = np.exp(np.log(sums.sum(0)) @ powers).tolist()
    ratio = after / before
    interval = None
    if prompts >= MIN_PROMPTS:
        quantile = student_quantile(1 - (1 - LEVEL) / 2 / comparisons, prompts - 1)
        reach = math.exp(quantile * standard_error(sums, powers))
        interval = Interval(low=ratio / reach, high=ratio * reach)
    return Change(before, after, ratio, interval, prompts)


def standard_error(sums: np.ndarray, powers: np.ndarray) -> float:
    """Of the logarithm of B's figure over A's. The factor makes up for a sample's spread about its own mean."""
    prompts = len(sums)
    totals = (_times(prompts) @ sums.reshape(prompts, -1)).reshape(-1, *sums.shape[1:])  # f64[RESAMPLES,2,4]
    sides = np.log(totals) @ powers
    return float((sides[:, 1] - sides[:, 0]).std()) * math.sqrt(prompts / (prompts - 1))


@lru_cache(maxsize=8)
def _times(prompts: int) -> np.ndarray:
    """How often each prompt is drawn, f64[RESAMPLES,prompts]: the same draws for every preset."""
    rng = np.random.default_rng(_SEED)
    return rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=RESAMPLES).astype(np.float64)


def student_quantile(probability: float, dof: int) -> float:
    """Of Student's t with at least 4 degrees of freedom: the expansion around the normal quantile (Abramowitz and
    Stegun, 26.7.5), right to 3 % in tails of 0.001 and closer in thicker ones or with more degrees of freedom."""
    z = NormalDist().inv_cdf(probability)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92_160,
    )
    return sum(term / dof**power for power, term in enumerate(terms))
