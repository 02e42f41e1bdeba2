"""The certificate's statistics: right under one law, powerful under two, honest about what they see."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from outrider.certify.statistics import (
    critical_value,
    detectable,
    holm,
    noncentral_tail,
    pooled,
    total_variation,
    two_sample,
)
from outrider.testing.stats import chi_square_tail


def draws(law, count, rng):
    return rng.choice(len(law), size=count, p=law).tolist()


LAW = np.array([0.4, 0.2, 0.15, 0.1, 0.06, 0.04, 0.02, 0.01, 0.01, 0.005, 0.003, 0.002])


def test_p_values_are_uniform_under_one_law():
    rng = np.random.default_rng(1)
    values = [two_sample(draws(LAW, 300, rng), draws(LAW, 300, rng)).p_value for _ in range(400)]
    assert stats.kstest(values, "uniform").pvalue > 0.001


def test_p_values_are_uniform_for_samples_of_unlike_size():
    rng = np.random.default_rng(2)
    values = [two_sample(draws(LAW, 200, rng), draws(LAW, 700, rng)).p_value for _ in range(400)]
    assert stats.kstest(values, "uniform").pvalue > 0.001


def test_statistic_is_pearsons():
    first, second = [0] * 30 + [1] * 50 + [2] * 20, [0] * 45 + [1] * 35 + [2] * 20
    found = two_sample(first, second)
    right = stats.chi2_contingency([[30, 50, 20], [45, 35, 20]], correction=False)
    assert (found.statistic, found.dof) == (pytest.approx(right.statistic), right.dof)
    assert found.p_value == pytest.approx(right.pvalue)
    assert found.samples == 100


def test_rare_outcomes_are_merged():
    found = two_sample([*range(40)], [*range(40)])
    assert found.bins == 8  # of 10 outcomes in both samples together: 5 expected in each
    assert two_sample([1] * 9, [1] * 9).dof == 0
    assert two_sample([1] * 9, [1] * 9).p_value == 1.0
    with pytest.raises(ValueError, match="0 and 3"):
        two_sample([], [1, 2, 3])


def test_two_laws_are_told_apart():
    rng = np.random.default_rng(3)
    other = LAW.copy()
    other[0], other[1] = 0.3, 0.3
    assert two_sample(draws(LAW, 1000, rng), draws(other, 1000, rng)).p_value < 1e-4


def test_pooling_adds_up():
    rng = np.random.default_rng(4)
    each = [two_sample(draws(LAW, 300, rng), draws(LAW, 300, rng)) for _ in range(3)]
    whole = pooled(each)
    assert whole.statistic == pytest.approx(sum(test.statistic for test in each))
    assert whole.dof == sum(test.dof for test in each)
    assert whole.samples == 900


@pytest.mark.parametrize(
    ("values", "adjusted"),
    [
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.5], [0.5]),
        ([0.9, 0.8], [1.0, 1.0]),
        ([], []),
    ],
)
def test_holm(values, adjusted):
    assert holm(values) == pytest.approx(adjusted)


@pytest.mark.parametrize("dof", [1, 7, 150])
@pytest.mark.parametrize("noncentrality", [0.0, 0.3, 12.0, 400.0])
def test_noncentral_tail_is_scipys(dof, noncentrality):
    for value in (0.5 * dof, dof + 5.0, 3.0 * dof + noncentrality):
        right = stats.ncx2.sf(value, dof, noncentrality) if noncentrality else stats.chi2.sf(value, dof)
        assert noncentral_tail(value, dof, noncentrality) == pytest.approx(right, abs=1e-8)


@pytest.mark.parametrize("level", [0.05, 1e-3, 1e-6])
def test_critical_value(level):
    assert critical_value(12, level) == pytest.approx(stats.chi2.isf(level, 12))
    assert chi_square_tail(critical_value(12, level), 12) == pytest.approx(level)


def test_a_stated_distance_is_found_nine_times_in_ten():
    """The least favourable shape: the distance spread over bins in proportion to them. Others are found more often."""
    rng = np.random.default_rng(5)
    law = np.full(10, 0.1)
    distance = detectable(9, 0.01, 500)
    other = law + np.where(np.arange(10) % 2 == 0, 1, -1) * 2 * distance / 10
    assert abs(other - law).sum() / 2 == pytest.approx(distance)
    found = [two_sample(draws(law, 500, rng), draws(other, 500, rng)).p_value < 0.01 for _ in range(500)]
    assert 0.86 < np.mean(found) < 0.95
    other = law.copy()
    other[0], other[1:] = law[0] + distance, law[1:] - distance / 9
    found = [two_sample(draws(law, 500, rng), draws(other, 500, rng)).p_value < 0.01 for _ in range(200)]
    assert np.mean(found) > 0.97


def test_more_samples_see_smaller_distances():
    assert detectable(9, 0.01, 2000) == pytest.approx(detectable(9, 0.01, 500) / 2)
    assert detectable(9, 0.01, 500, against_law=True) == pytest.approx(detectable(9, 0.01, 500) / 2**0.5)
    assert detectable(9, 1e-6, 500) > detectable(9, 0.01, 500)
    assert detectable(0, 0.01, 500) == detectable(9, 0.01, 0) == 1.0


def test_distance_between_samples_of_one_law_is_noise():
    rng = np.random.default_rng(6)
    found = total_variation(draws(LAW, 800, rng), draws(LAW, 800, rng))
    assert found.low == 0.0
    assert found.estimate < found.high < 0.1
    assert found.noise == pytest.approx(found.estimate, abs=0.03)


def test_intervals_hold_the_true_distance():
    rng = np.random.default_rng(7)
    law, other = np.array([0.5, 0.3, 0.2]), np.array([0.3, 0.3, 0.4])
    inside = 0
    for seed in range(60):
        found = total_variation(draws(law, 500, rng), draws(other, 500, rng), seed)
        inside += found.low <= 0.2 <= found.high
        assert found.low > 0.05
    assert inside >= 54
