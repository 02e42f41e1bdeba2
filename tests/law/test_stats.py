"""The statistics themselves: known tails, merging, and both kinds of answer."""

from __future__ import annotations

import pytest
import torch

from outrider.rng import absorb, inverse_cdf, to_uniform
from outrider.testing.stats import chi_square, chi_square_tail, histogram, mean_within, merge


@pytest.mark.parametrize(
    ("statistic", "dof", "tail"),
    # Abramowitz and Stegun, table 26.8
    [(3.84146, 1, 0.05), (10.828, 1, 0.001), (18.3070, 10, 0.05), (135.807, 100, 0.01), (0.0, 7, 1.0)],
)
def test_tails_are_those_of_the_tables(statistic: float, dof: int, tail: float) -> None:
    assert chi_square_tail(statistic, dof) == pytest.approx(tail, rel=1e-3)


def test_small_bins_are_merged_until_each_expects_enough() -> None:
    observed, expected = merge(torch.tensor([1.0, 2, 3, 50]), torch.tensor([2.0, 2, 4, 48]), 5)
    assert observed.tolist() == [6, 50]
    assert expected.tolist() == [8, 48]
    observed, expected = merge(torch.tensor([4.0, 6, 1]), torch.tensor([5.0, 5, 1]), 5)
    assert (observed.tolist(), expected.tolist()) == ([4, 7], [5, 6])


def test_the_right_law_passes_and_a_wrong_one_fails() -> None:
    law = torch.tensor([0.4, 0.3, 0.2, 0.1, 0.0], dtype=torch.float64)
    u = to_uniform(absorb(torch.tensor(1), torch.arange(50_000)))
    counts = histogram(inverse_cdf(law.expand(50_000, 5), u)[:, None], 5)
    assert int(counts.sum()) == 50_000
    assert chi_square(counts, law).p_value > 0.001
    assert chi_square(counts, torch.tensor([0.39, 0.31, 0.2, 0.1, 0.0])).p_value < 1e-3
    assert chi_square(counts, torch.tensor([0.0, 0.7, 0.2, 0.1, 0.0])).p_value == 0, "impossible outcomes"


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="sums to"):
        chi_square(torch.ones(2), torch.tensor([0.5, 0.4]))
    with pytest.raises(ValueError, match="bins"):
        chi_square(torch.ones(3), torch.tensor([0.5, 0.5]))


def test_pairs_are_counted_by_their_tokens() -> None:
    counts = histogram(torch.tensor([[0, 2], [0, 2], [1, 0]]), 3)
    assert counts.tolist() == [[0, 0, 2], [1, 0, 0], [0, 0, 0]]


def test_means() -> None:
    values = to_uniform(absorb(torch.tensor(2), torch.arange(10_000)))
    assert mean_within(values, 0.5)
    assert not mean_within(values, 0.52)
