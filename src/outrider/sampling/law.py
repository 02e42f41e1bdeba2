"""The law of a node: probabilities, the token drawn from them, and the truncations between logits and
both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from outrider.params import SamplingParams
from outrider.rng import block_size, inverse_cdf


@dataclass(frozen=True)
class Truncation:
    """top-k, top-p, min-p and typical-p of some rows, one number per row; 0, 1, 0, 1 are off."""

    top_k: tuple[int, ...]
    top_p: tuple[float, ...]
    min_p: tuple[float, ...]
    typical_p: tuple[float, ...]

    @property
    def any(self) -> bool:
        off = ((0,), (1.0,), (0.0,), (1.0,))
        each = (self.top_k, self.top_p, self.min_p, self.typical_p)
        return any(set(mine) - set(none) for mine, none in zip(each, off, strict=True))

    def rows(self, index: Sequence[int]) -> Truncation:
        def pick(values: tuple) -> tuple:
            return tuple(values[i] for i in index)

        return Truncation(pick(self.top_k), pick(self.top_p), pick(self.min_p), pick(self.typical_p))

    @classmethod
    def of(cls, params: Sequence[SamplingParams]) -> Truncation:
        return cls(
            tuple(p.top_k for p in params),
            tuple(p.top_p for p in params),
            tuple(p.min_p for p in params),
            tuple(p.typical_p for p in params),
        )


class Warped:
    """The laws of B x N nodes after all processing. Made by ``warp`` or ``Warped.from_probs``.

    Nothing is computed before it is asked for: a batch in which every row is greedy never sees a softmax.
    A node without a law (NaN logits, or every token forbidden) has probabilities of 0 and token -1; whoever
    reaches such a node must raise ``dead_end``. It is no error before: a tree may well contain drafts that a
    grammar forbids.
    """

    def __init__(
        self,
        logits: Tensor | None,
        greedy: Sequence[bool],
        truncation: Truncation | None = None,
        weights: Tensor | None = None,
        owned: bool = False,
    ) -> None:
        """``logits`` f[B,N,V] with temperature applied, or ``weights`` f[B,N,V] >= 0 of rows that are all
        sampled. ``owned``: nobody else holds ``logits``, so they may be overwritten."""
        self.greedy = tuple(greedy)
        """Per row: temperature 0."""
        self._sampled = not any(self.greedy)
        self._logits = logits
        self._owned = owned
        self._truncation = truncation
        self._weights = weights
        self._probs: Tensor | None = None
        self._argmax: Tensor | None = None
        self._halves: list[tuple[list[int], Warped]] = []

    @classmethod
    def from_probs(cls, probs: Tensor) -> Warped:
        """Laws given as probabilities f[B,N,V] (float32 or float64), each summing to 1."""
        law = cls(None, [False] * probs.shape[0], weights=probs)
        law._probs = probs
        return law

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, N, V)."""
        some = self._logits if self._logits is not None else self._weights
        assert some is not None  # every constructor sets one of the two
        return some.shape[0], some.shape[1], some.shape[2]

    @property
    def all_greedy(self) -> bool:
        """Every row is at temperature 0 (known on the host)."""
        return all(self.greedy)

    @property
    def argmax(self) -> Tensor:
        """i64[B,N]: the most likely token, the lowest id among equals; -1 where there is no law."""
        if self._argmax is None:
            if self.all_greedy:
                self._argmax = _argmax(self._known_logits())
            elif self._sampled:
                best = _argmax(self._law_weights())
                # All weights are zero where there is no law, and the "most likely" of those is no token.
                mass = self._law_weights().gather(-1, best.clamp(min=0)[..., None])[..., 0]
                self._argmax = torch.where(mass > 0, best, -1)
            else:
                self._argmax = self._assemble(lambda part: part.argmax)
        return self._argmax

    @property
    def probs(self) -> Tensor:
        """f[B,N,V], float32 or better. Greedy rows are exactly 0 and 1."""
        if self._probs is None:
            if self.all_greedy:
                self._probs = self._one_hot()
            elif self._sampled:
                self._probs = self._normalised()
            else:
                self._probs = self._assemble(lambda part: part.probs)
        return self._probs

    def choose(self, u: Tensor | None = None) -> Tensor:
        """i64[B,N]: one token per node, by inversion of ``u`` f64[B,N] in [0,1); -1 where there is no law.

        Greedy rows ignore ``u``, which may be None when ``all_greedy``.
        """
        if self.all_greedy:
            return self.argmax
        if u is None:
            raise ValueError("choose() needs u: some rows are sampled")
        if self._sampled:
            return inverse_cdf(self._law_weights(), u)
        return self._assemble(lambda part, mine: part.choose(mine), u)

    def prob_of(self, tokens: Tensor) -> Tensor:
        """f[B,N] or f[B,N,M]: probability of ``tokens`` i64[B,N] or i64[B,N,M] at each node.

        The cheap way at temperature 0: no vector over the vocabulary is made. Ids below 0 (padding) have 0.
        """
        many = tokens if tokens.dim() == 3 else tokens[..., None]
        if self.all_greedy and self._probs is None:
            best = self.argmax[..., None]
            found = ((many == best) & (best >= 0)).to(self._law_dtype())
        else:
            found = torch.where(many >= 0, self.probs.gather(-1, many.clamp(min=0)), 0.0)
        return found if tokens.dim() == 3 else found[..., 0]

    def nodes(self, index: Tensor) -> Warped:
        """The laws of nodes ``index`` i64[B,M] of each row: B x M."""
        pick = index[..., None].expand(*index.shape, self.shape[2])
        logits = None if self._logits is None else self._logits.gather(1, pick)
        weights = None if self._weights is None else self._weights.gather(1, pick)
        law = Warped(logits, self.greedy, self._truncation, weights, owned=True)
        law._probs = None if self._probs is None else self._probs.gather(1, pick)
        law._argmax = None if self._argmax is None else self._argmax.gather(1, index)
        return law

    def rows(self, index: Sequence[int]) -> Warped:
        """The laws of rows ``index`` (on the host): len(index) x N."""
        pick = list(index)
        logits = None if self._logits is None else self._logits[pick]
        truncation = None if self._truncation is None else self._truncation.rows(pick)
        weights = None if self._weights is None else self._weights[pick]
        law = Warped(logits, [self.greedy[i] for i in pick], truncation, weights, owned=True)
        law._probs = None if self._probs is None else self._probs[pick]
        law._argmax = None if self._argmax is None else self._argmax[pick]
        return law

    # Inside: greedy and sampled rows are computed apart and put together again.

    def _assemble(self, of: Callable[..., Tensor], extra: Tensor | None = None) -> Tensor:
        if not self._halves:
            for want in (True, False):
                index = [i for i, is_greedy in enumerate(self.greedy) if is_greedy is want]
                self._halves.append((index, self.rows(index)))
        parts = [(i, of(half) if extra is None else of(half, extra[i])) for i, half in self._halves]
        out = parts[0][1].new_empty(len(self.greedy), *parts[0][1].shape[1:])
        for index, part in parts:
            out[index] = part
        return out

    def _known_logits(self) -> Tensor:
        assert self._logits is not None  # gone only where all rows are sampled and their weights are there
        return self._logits

    def _law_dtype(self) -> torch.dtype:
        return torch.float64 if self._known_logits().dtype == torch.float64 else torch.float32

    def _law_weights(self) -> Tensor:
        """f[B,N,V] >= 0 of rows that are all sampled; zero where there is no law."""
        if self._weights is None:
            x = self._known_logits().to(self._law_dtype())
            best = x.amax(-1, keepdim=True)
            mine = self._owned or x is not self._logits
            # A softmax without its division, in place where possible: a fresh vector over the vocabulary per
            # node costs more in page faults than the arithmetic, and every user divides by a better sum.
            weights = (x.sub_(best) if mine else x - best).exp_()
            dead = ~best.isfinite()
            if weights.device.type != "cpu" or bool(dead.any()):
                weights = weights.masked_fill_(dead, 0.0)
            self._logits = None
            if self._truncation is not None and self._truncation.any:
                _truncate(weights, self._truncation)
            self._weights = weights
        return self._weights

    def _normalised(self) -> Tensor:
        weights = self._law_weights()
        # Not the sum inside torch's softmax, which in float32 is off by 3e-5 for 150,000 tokens.
        total = _total(weights).to(weights.dtype)[..., None]
        return weights / torch.where(total > 0, total, 1.0)

    def _one_hot(self) -> Tensor:
        best = self.argmax
        probs = torch.zeros(self.shape, dtype=self._law_dtype(), device=best.device)
        alive = (best >= 0).to(probs.dtype)[..., None]
        return probs.scatter_(-1, best.clamp(min=0)[..., None], alive)


def _argmax(x: Tensor) -> Tensor:
    """i64[...]: first index of the maximum of f[...,V]; -1 where that is NaN or -inf."""
    vocab = x.shape[-1]
    size = block_size(vocab)
    if x.device.type != "cpu" or size == vocab:
        best, index = x.max(-1)
        return torch.where(best > -torch.inf, index, -1)
    # torch's argmax on a CPU is ten times slower than numpy's, and than its own maximum.
    if x.dtype in (torch.float32, torch.float64):
        array = x.detach().numpy()
        where = array.argmax(-1)
        top = np.take_along_axis(array, where[..., None], -1)[..., 0]
        return torch.from_numpy(np.where(top > -np.inf, where, -1))
    blocks = x.unflatten(-1, (vocab // size, size))
    which = blocks.amax(-1).argmax(-1, keepdim=True)
    inside = blocks.gather(-2, which[..., None].expand(*which.shape, size)).squeeze(-2)
    best, index = inside.max(-1)
    return torch.where(best > -torch.inf, which.squeeze(-1) * size + index, -1)


def _total(weights: Tensor) -> Tensor:
    """f64[...]: sum over the vocabulary, block by block: a plain sum may be split over threads differently
    when there is only one row."""
    vocab = weights.shape[-1]
    size = block_size(vocab)
    if size < vocab:
        return weights.unflatten(-1, (vocab // size, size)).sum(-1).double().sum(-1)
    return weights.double().sum(-1) if vocab < 2048 else weights.double().cumsum(-1)[..., -1]


def _truncate(weights: Tensor, t: Truncation) -> None:
    """Zero what top-k, top-p, min-p and typical-p remove from ``weights`` f[R,N,V], in
    place.

    All but typical-p keep what is at least as likely as some threshold; tokens that tie with it stay, so the
    result does not depend on how a sort breaks ties.
    """
    known: Tensor | None = None
    if any(t.top_k):
        widest = min(max(t.top_k), weights.shape[-1])
        known = _top_values(weights, widest)
        last = (column(t.top_k, weights).long() - 1).clamp(0, widest - 1).expand(-1, weights.shape[1], -1)
        kth = torch.where(column(t.top_k, weights) > 0, known.gather(-1, last), 0.0)
        _drop_below(weights, kth)
        # Values of a row with a smaller k than the widest; rows without top-k are not known completely.
        known = known.where(known >= kth, 0.0) if all(t.top_k) else None
    floor: Tensor | None = None
    if min(t.top_p) < 1:
        goal = torch.where(column(t.top_p, weights) < 1, column(t.top_p, weights), 0.0).double()
        needed = goal * _total(weights)[..., None]
        floor = _nucleus(weights, needed, known)
    if max(t.min_p) > 0:
        least = column(t.min_p, weights) * weights.amax(-1, keepdim=True)
        floor = least if floor is None else torch.maximum(floor, least)
    if floor is not None:
        _drop_below(weights, floor)
    if min(t.typical_p) < 1:
        _keep_typical(weights, t.typical_p)


def column(values: Iterable[float], like: Tensor) -> Tensor:
    """One number per row, f[R,1,1]."""
    return torch.tensor(list(values), dtype=like.dtype, device=like.device)[:, None, None]


def _top_values(weights: Tensor, k: int) -> Tensor:
    """The k largest values of f[R,N,V], descending, f[R,N,k]. Never waits for the device."""
    if weights.device.type != "cpu":
        return weights.topk(k, -1).values
    # numpy partitions and sorts six to twelve times faster than torch on a CPU. A few nodes at a time,
    # because it works on a copy, and a small one is reused where a large one is new memory every time.
    vocab = weights.shape[-1]
    few = max(1, 2**17 // vocab)
    flat = weights.reshape(-1, vocab).numpy()
    top = np.empty((len(flat), k), dtype=flat.dtype)
    for first in range(0, len(flat), few):
        part = flat[first : first + few]
        if k < vocab:
            part = np.partition(part, vocab - k, -1)[:, -k:]
        top[first : first + few] = np.sort(part, -1)[:, ::-1]
    return torch.from_numpy(top).view(*weights.shape[:-1], k)


def _drop_below(weights: Tensor, floor: Tensor) -> None:
    """Zero entries under ``floor`` f[R,N,1], in place."""
    if weights.device.type == "cpu":
        values = weights.numpy()
        np.multiply(values, values >= floor.numpy(), out=values)
    else:
        weights.mul_(weights >= floor)


def _nucleus(weights: Tensor, needed: Tensor, known: Tensor | None) -> Tensor:
    """f[R,N,1]: the value of the token at which the mass of the most likely ones reaches ``needed``
    f64[R,N,1].

    ``needed`` 0 is off (0 is returned). On a CPU first the top 1/64 of the vocabulary is sorted, where the
    nucleus nearly always ends, and only then more; the result is the same, since a sum of the largest does
    not depend on what comes behind them."""
    vocab = weights.shape[-1]
    ladder = [vocab] if vocab < 4096 or weights.device.type != "cpu" else [vocab // 64, vocab // 8, vocab]
    for k in ladder:
        values = _top_values(weights, k) if known is None else known
        mass = values.double().cumsum(-1)
        reached = mass[..., -1:]
        if known is not None or k == vocab or bool(((reached >= needed) | (reached == 0)).all()):
            break
    rank = (mass < needed).sum(-1, keepdim=True).clamp(max=values.shape[-1] - 1)
    # If rounding keeps the mass from ever reaching, everything that is left stays.
    return torch.where(needed > 0, values.gather(-1, rank), 0.0)


def _keep_typical(weights: Tensor, typical_p: Sequence[float]) -> None:
    """Locally typical sampling: keep the tokens whose surprise is nearest to the entropy, in place."""
    rows = [i for i, mass in enumerate(typical_p) if mass < 1]
    for i in rows:  # a full sort over the vocabulary dwarfs the loop
        total = _total(weights[i])[:, None].to(weights.dtype)
        p = weights[i] / total
        surprise = -p.log()
        entropy = _total(torch.where(p > 0, p * surprise, 0.0))[:, None].to(p.dtype)
        distance = (surprise - entropy).abs()
        nearest, order = distance.sort(stable=True)
        mass = p.gather(-1, order).double().cumsum(-1)
        last = (mass < typical_p[i]).sum(-1, keepdim=True).clamp(max=p.shape[-1] - 1)
        weights[i] *= distance <= nearest.gather(-1, last)


@dataclass(frozen=True)
class TopLogprobs:
    """Log-probabilities of the model itself: ``chosen`` f[...] and ``rank`` i64[...] (1 is the most likely)
    of the emitted token, and the k most likely ones, ``values`` f[...,k] and ``tokens`` i64[...,k]."""

    chosen: Tensor
    rank: Tensor
    values: Tensor
    tokens: Tensor


def top_logprobs(logits: Tensor, tokens: Tensor, k: int) -> TopLogprobs:
    """Log-probabilities from raw ``logits`` f[...,V], before temperature, penalties and truncations (as vLLM
    reports them), for emitted ``tokens`` i64[...] and the k most likely ones (k may be 0)."""
    logs = torch.log_softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32))
    chosen = logs.gather(-1, tokens[..., None])
    best = logs.topk(min(k, logs.shape[-1]), -1)
    return TopLogprobs(chosen[..., 0], (logs > chosen).sum(-1) + 1, best.values, best.indices)
