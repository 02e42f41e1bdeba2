"""Keyed randomness: uniform, independent from key to key, and inversion that follows the law."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from outrider.rng import Draws, Purpose, _mix_int, block_size, inverse_cdf, mix

ROWS = 200_000


def _draws(rows: int, seed: int = 0) -> Draws:
    index = torch.arange(rows)
    return Draws.of(index + seed, torch.zeros(rows, dtype=torch.int64), torch.full((rows,), 17))


def _uniform_p(u: Tensor, bins: int = 100) -> float:
    counts = np.histogram(u.numpy().ravel(), bins=bins, range=(0, 1))[0]
    return float(stats.chisquare(counts).pvalue)


def _independent_p(u: Tensor, v: Tensor, bins: int = 20) -> float:
    """p-value of uniformity over bins x bins cells of the pair."""
    counts = np.histogram2d(u.numpy().ravel(), v.numpy().ravel(), bins=bins, range=[(0, 1), (0, 1)])[0]
    return float(stats.chisquare(counts.ravel()).pvalue)


def test_known_values_of_the_finaliser() -> None:
    # SplitMix64 with seed 0: first output, from the reference implementation.
    golden = torch.tensor(-7046029254386353131)
    assert int(mix(golden)) & (2**64 - 1) == 0xE220A8397B1DCDAF
    for word in (0, 1, 4, -1, 2**63 - 1, -(2**63)):
        assert _mix_int(word) == int(mix(torch.tensor(word) + golden))


def test_uniform_over_seeds_positions_and_indices() -> None:
    depth = torch.zeros(ROWS, 1, dtype=torch.int64)
    assert _uniform_p(_draws(ROWS).text(depth)) > 1e-4
    one = Draws.of(torch.tensor([5]), torch.tensor([0]), torch.tensor([3]))
    assert _uniform_p(one.text(torch.arange(ROWS)[None])) > 1e-4
    assert _uniform_p(one.uniform(Purpose.ACCEPT, torch.arange(ROWS)[None])) > 1e-4
    u = _draws(ROWS).text(depth)
    assert u.dtype == torch.float64
    assert 0 <= float(u.min()) < 1e-4
    assert 1 - 1e-4 < float(u.max()) < 1


def _by_position(draws: Draws, depth: int) -> Tensor:
    return draws.text(torch.full((draws.stream.shape[0], 1), depth))


def _without_position(draws: Draws, depth: int) -> Tensor:
    """The broken twin: a draw whose key lacks the position."""
    blind = Draws(draws.stream, torch.zeros_like(draws.position))
    return blind.text(torch.zeros(draws.stream.shape[0], 1, dtype=torch.int64))


@pytest.mark.parametrize(("draw", "independent"), [(_by_position, True), (_without_position, False)])
def test_neighbouring_positions_are_independent(draw: Callable[[Draws, int], Tensor], independent: bool) -> None:
    draws = _draws(ROWS)
    p = _independent_p(draw(draws, 0), draw(draws, 1))
    assert (p > 1e-4) == independent


def test_neighbouring_keys_are_independent() -> None:
    draws, none = _draws(ROWS), torch.zeros(ROWS, 1, dtype=torch.int64)
    here = draws.uniform(Purpose.ACCEPT, none)
    others = {
        "text key": draws.text(none),
        "purpose": draws.uniform(Purpose.RESIDUAL, none),
        "index": draws.uniform(Purpose.ACCEPT, none + 1),
        "seed": _draws(ROWS, seed=1).uniform(Purpose.ACCEPT, none),
        "round": Draws(draws.stream, draws.position + 1).uniform(Purpose.ACCEPT, none),
        "sample": Draws.of(torch.arange(ROWS), torch.ones(ROWS, dtype=torch.int64), draws.position).uniform(
            Purpose.ACCEPT, none
        ),
    }
    for name, other in others.items():
        assert not (here == other).any(), name
        assert _independent_p(here, other) > 1e-4, name


def test_text_key_is_the_position_and_nothing_else() -> None:
    """The token at a position meets the same number whether it hangs deep in a tree or is drawn plainly."""
    early = Draws.of(torch.tensor([7]), torch.tensor([0]), torch.tensor([10]))
    late = Draws.of(torch.tensor([7]), torch.tensor([0]), torch.tensor([13]))
    assert torch.equal(early.text(torch.tensor([[3, 4]])), late.text(torch.tensor([[0, 1]])))
    # ... while round draws of two rounds never meet, though they cover the same positions.
    index = torch.arange(50)[None]
    both = torch.cat([early.uniform(Purpose.ACCEPT, index), late.uniform(Purpose.ACCEPT, index)])
    assert both.unique().numel() == 100


def test_gumbel_noise() -> None:
    noise = _draws(2000).gumbel(Purpose.DRAFT, torch.zeros(2000, 1, dtype=torch.int64), 50)
    assert noise.shape == (2000, 1, 50)
    assert torch.isfinite(noise).all()
    assert stats.kstest(noise.numpy().ravel(), "gumbel_r").pvalue > 1e-4


LAWS = {
    "small": [0.0, 0.1, 0.0, 0.25, 0.3, 0.0, 0.35, 0.0],
    "unnormalised": [3.0, 0.0, 1.0, 4.0, 0.0],
    "two of many": [0.0, 0.0, 1.0, 1e-3],
}


@pytest.mark.parametrize("name", LAWS)
def test_inversion_follows_the_law(name: str) -> None:
    p = torch.tensor(LAWS[name], dtype=torch.float64)
    u = _draws(ROWS).text(torch.zeros(ROWS, 1, dtype=torch.int64))[:, 0]
    counts = torch.bincount(inverse_cdf(p.expand(ROWS, -1), u), minlength=len(p))
    assert counts[p == 0].sum() == 0
    some = p > 0
    expected = (p / p.sum() * ROWS)[some]
    assert stats.chisquare(counts[some].numpy(), expected.numpy()).pvalue > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inversion_by_blocks_follows_the_law(dtype: torch.dtype) -> None:
    """A vocabulary large enough for the two-level search, most of it of probability zero."""
    vocab, rows = 2048, ROWS // 40
    assert block_size(vocab) < vocab
    p = torch.zeros(vocab, dtype=dtype)
    g = torch.Generator().manual_seed(0)
    some = torch.randperm(vocab, generator=g)[:60].sort().values
    p[some] = torch.rand(60, generator=g, dtype=dtype) + 0.1
    u = _draws(ROWS).text(torch.zeros(ROWS, 1, dtype=torch.int64))[:, 0].view(-1, rows)[:10]
    counts = torch.zeros(vocab, dtype=torch.int64)
    for part in u:
        counts += torch.bincount(inverse_cdf(p.expand(rows, -1), part), minlength=vocab)
    assert counts[p == 0].sum() == 0
    expected = (p.double() / p.double().sum() * 10 * rows)[some]
    assert stats.chisquare(counts[some].numpy(), expected.numpy()).pvalue > 1e-4


@pytest.mark.parametrize("vocab", [5, 4096, 50257])
def test_the_ends_of_the_unit_interval(vocab: int) -> None:
    p = torch.zeros(4, vocab)
    p[0, 2] = p[1, 0] = p[2, -1] = 1e-30
    p[3, 1], p[3, 3] = 0.5, 1e-12
    for u in (0.0, 2.0**-53, 0.5, 1 - 2.0**-53):
        got = inverse_cdf(p, torch.full((4,), u, dtype=torch.float64)).tolist()
        assert got[:3] == [2, 0, vocab - 1]
        assert got[3] == (3 if u > 0.6 else 1)


@pytest.mark.parametrize("vocab", [6, 4096])
def test_nothing_to_draw_from_is_said(vocab: int) -> None:
    p = torch.zeros(3, vocab)
    p[1, 3] = torch.nan
    p[2, 3] = 1.0
    assert inverse_cdf(p, torch.full((3,), 0.3, dtype=torch.float64)).tolist() == [-1, -1, 3]


def test_inversion_does_not_depend_on_the_batch() -> None:
    g = torch.Generator().manual_seed(1)
    for dtype in (torch.float32, torch.float64):
        p = torch.rand(8, 5, 4096, generator=g, dtype=dtype)
        u = torch.rand(8, 5, generator=g, dtype=torch.float64)
        whole = inverse_cdf(p, u)
        for b in range(8):
            assert torch.equal(whole[b : b + 1, 2:3], inverse_cdf(p[b : b + 1, 2:3], u[b : b + 1, 2:3]))


def test_block_size_divides() -> None:
    for vocab in (100, 2048, 32000, 49152, 50257, 50261, 128256, 151936):
        assert vocab % block_size(vocab) == 0
    assert block_size(49152) == 512
    assert block_size(50261) == 50261  # a prime: one level
