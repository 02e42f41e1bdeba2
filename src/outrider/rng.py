"""Keyed randomness: every number is a function of its key, never of how many numbers were drawn before.

Two families of key must not be confused:

* **text** draws choose the text. Key: (seed, sample, *position*). With them `match` makes the text a function
  of prompt, seed, model and sampling parameters alone.
* **round** draws serve drafting and acceptance. Key: (seed, sample, *root position of the round*, purpose,
index).
  Keyed by position alone they would not be exact: a rule that looks beyond the accepted point, or a drafter
  that learns from rejected drafts, would meet the same coin again in the next round.

The generator is SplitMix64's finaliser (Steele, Lea and Flood, 2014) over a running hash of the key, written
in wrapping int64 arithmetic so that it runs on any device. The package never touches torch's own generators.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from functools import cached_property, lru_cache

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX2 = -7723592293110705685  # 0x94D049BB133111EB


class Purpose(IntEnum):
    """What a round draw is for; part of its key."""

    TEXT = 0
    DRAFT = 1
    ACCEPT = 2
    RESIDUAL = 3
    POLICY = 4


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical (zero-filling) right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser: a bijection of int64 in which every input bit reaches every output bit."""
    x = (x ^ _shift(x, 30)) * _MIX1
    x = (x ^ _shift(x, 27)) * _MIX2
    return x ^ _shift(x, 31)


def absorb(state: Tensor, word: Tensor | int) -> Tensor:
    """Hash one more word of the key into ``state`` (both i64, broadcast together)."""
    return mix((state + _GOLDEN) ^ (mix(word + _GOLDEN) if isinstance(word, Tensor) else _mix_int(word)))


def to_uniform(state: Tensor) -> Tensor:
    """f64 in [0, 1) from the top 53 bits of the hash."""
    return _shift(state, 11).to(torch.float64) * 2.0**-53


@lru_cache(maxsize=4096)
def _mix_int(word: int) -> int:
    """``mix(word + golden)`` in Python integers: a constant word of a key should not cost a dozen tensor
    calls."""
    mask = (1 << 64) - 1
    x = (word + _GOLDEN) & mask
    x = ((x ^ (x >> 30)) * (_MIX1 & mask)) & mask
    x = ((x ^ (x >> 27)) * (_MIX2 & mask)) & mask
    x ^= x >> 31
    return x - (1 << 64) if x >> 63 else x


class Draws:
    """Random numbers of B rows. ``stream`` i64[B] is the hash of (seed, sample); ``position`` i64[B] is the
    position of the root, that is the index of the last emitted token in prompt plus output.

    Both may be given as lists: a step in which nobody draws then never makes tensors of them."""

    def __init__(
        self,
        stream: Tensor | Sequence[int],
        position: Tensor | Sequence[int],
        device: torch.device | str = "cpu",
    ) -> None:
        self._stream, self._position, self._device = stream, position, device

    @cached_property
    def stream(self) -> Tensor:
        return self._tensor(self._stream)

    @cached_property
    def position(self) -> Tensor:
        return self._tensor(self._position)

    def _tensor(self, words: Tensor | Sequence[int]) -> Tensor:
        return words if isinstance(words, Tensor) else torch.tensor(words, device=self._device)

    @classmethod
    def of(cls, seeds: Tensor, samples: Tensor, positions: Tensor) -> Draws:
        """From i64[B] seeds, sample numbers (0 unless ``n`` > 1) and root positions."""
        return cls(absorb(absorb(torch.zeros_like(seeds), seeds), samples), positions)

    def text(self, depth: Tensor) -> Tensor:
        """f64[B,N] in [0,1): the draw that chooses the token after a node of ``depth`` i64[B,N]."""
        return to_uniform(absorb(absorb(self.stream[:, None], int(Purpose.TEXT)), self.position[:, None] + depth))

    def uniform(self, purpose: Purpose, index: Tensor) -> Tensor:
        """f64, the shape of ``index`` i64[B,...]: one number per (round, purpose, index)."""
        state = absorb(absorb(self.stream, self.position), int(purpose))
        state = state.view(-1, *([1] * (index.dim() - 1)))
        return to_uniform(absorb(state, index))

    def gumbel(self, purpose: Purpose, index: Tensor, size: int) -> Tensor:
        """f64[..., size] standard Gumbel noise, one vector per (round, purpose, index)."""
        state = absorb(absorb(self.stream, self.position), int(purpose))
        state = absorb(state.view(-1, *([1] * (index.dim() - 1))), index)
        lanes = torch.arange(size, device=index.device)
        u = to_uniform(absorb(state[..., None], lanes))
        return -torch.log(-torch.log(u.clamp(min=2.0**-54)))


def inverse_cdf(probs: Tensor, u: Tensor) -> Tensor:
    """Draw tokens by inversion: ``probs`` f[...,V] >= 0 (not necessarily normalised), ``u`` f64[...] in
    [0,1).

    Returns i64[...]. A token of probability zero is never drawn; -1 stands where there is nothing to draw
    from (no mass at all, or a NaN), so that a missing law is seen and never turns into some token.

    Two levels, since a running sum over a whole vocabulary is slow: first a block of the vocabulary by the
    sums of the blocks, then a token inside it. Both running sums are in float64: a float32 one over 150,000
    tokens is off by more than the smallest probabilities that matter."""
    vocab = probs.shape[-1]
    size = block_size(vocab)
    if size == vocab:
        return _invert(probs, u)[0]
    blocks = probs.unflatten(-1, (vocab // size, size))
    which, rest = _invert(blocks.sum(-1), u)
    chosen = which.clamp(min=0)[..., None, None].expand(*which.shape, 1, size)
    inside, _ = _invert(blocks.gather(-2, chosen).squeeze(-2), rest)
    return torch.where((which >= 0) & (inside >= 0), which * size + inside, -1)


def _invert(mass: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Index i64[...] at which the running sum of ``mass`` f[...,M] passes u (-1: no mass), and how far into
    that entry the point lies, f64[...] in [0,1]."""
    bounds = mass.double().cumsum(-1)
    total = bounds[..., -1]
    # u * total may round up to the total: the largest number below it still falls on an entry that has mass.
    point = torch.minimum(u * total, torch.nextafter(total, torch.zeros_like(total)))
    index = torch.searchsorted(bounds, point.unsqueeze(-1), right=True)
    index = index.clamp(max=mass.shape[-1] - 1)
    start = torch.where(index > 0, bounds.gather(-1, (index - 1).clamp(min=0)), 0.0)
    width = bounds.gather(-1, index) - start
    rest = ((point.unsqueeze(-1) - start) / width).squeeze(-1)
    drawable = (total > 0) & (total < torch.inf)
    return torch.where(drawable, index.squeeze(-1), -1), torch.where(drawable, rest, 0.0)


@lru_cache(maxsize=64)
def block_size(vocab: int) -> int:
    """The divisor of ``vocab`` nearest to 512, for two-level passes; ``vocab`` itself where none is suitable.

    A function of the vocabulary alone, so that a row's result cannot depend on who shares the batch.
    """
    if vocab < 2048:
        return vocab
    divisors = [d for d in range(32, min(vocab // 8, 8192) + 1) if vocab % d == 0]
    return min(divisors, key=lambda d: max(d / 512, 512 / d), default=vocab)
