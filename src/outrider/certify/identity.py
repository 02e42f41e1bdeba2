"""Where two texts part, and why: rounding, a fault, or a draw that may differ.

A forward of many tokens rounds differently from a forward of one, so the two best tokens may change places where they
are nearly equal. Whether that is what happened is measured and not assumed: what stands before the difference is scored
again, one token at a time as plain decoding does and in blocks as drafting does, and the scores differ by the rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from outrider.errors import ConfigError
from outrider.model.base import Block, LanguageModel
from outrider.params import SamplingParams
from outrider.rng import Draws
from outrider.run.scheduler import row_sampling, stop_ids
from outrider.sampling import warp
from outrider.types import DraftTree, Guarantee

if TYPE_CHECKING:
    from outrider.run.engine import Engine
    from outrider.run.llm import LLM

Kind = Literal["tie", "wrong", "drawn"]

WIDTHS = (1, 2, 8, 32)
"""Tokens per forward in which a text is scored again; 1 is plain decoding."""
FLOOR = {torch.float32: 1e-4, torch.float64: 1e-9}
"""Gaps that are ties whatever was measured, by the model's dtype."""
ROUNDING = {True: 64.0, False: 8.0}
"""No more than this many times eps times the largest logit is believed to be rounding, in float32 and better or in half
precision: a forward whose blocks are wrong must not excuse what it makes of them. (Measured: up to 11 and 2.)"""
_STRETCH = (-2.0, -1.0, 1.0, 2.0)
_DRAWN = 8
_PREFILL = 2048
_REMEMBERED = 32
_known: WeakKeyDictionary[LanguageModel, dict[Any, Tensor]] = WeakKeyDictionary()
"""The last scores of each model: many methods meet the same tie."""


@dataclass(frozen=True)
class Difference:
    """The first difference of two texts; ``position`` counts from the first new token, and a token is None where that
    text has ended.

    ``gap``: at temperature 0, by how much the logit of ``wanted`` exceeds that of ``found`` in plain decoding, every
    sampling parameter applied; above it, how far (in probability) the draw of this position lies from the interval of
    ``found``. ``tolerance`` is how large a gap rounding can bridge, ``variation`` what was measured of it, both in the
    same unit. ``kind``: "tie" (rounding explains it), "wrong" (it does not), "drawn" (texts that were drawn from one
    law need not be equal)."""

    position: int
    found: int | None
    wanted: int | None
    gap: float | None
    tolerance: float | None
    kind: Kind
    variation: float | None = None
    unit: Literal["logits", "probability"] = "logits"
    reason: str = ""
    """Why it is no tie, where the figures alone do not say so."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON, which knows no infinity: such a gap is None there."""
        return {name: _finite(value) for name, value in asdict(self).items()}

    def words(self) -> str:
        """The finding as half a sentence."""
        if self.kind == "drawn":
            return "as it may be: the distribution is kept, not the very tokens"
        if self.reason or self.gap is None or self.tolerance is None:
            return self.reason
        apart = "the two logits are" if self.unit == "logits" else "the draw lies"
        beyond = "apart" if self.unit == "logits" else "from the boundary in probability"
        bridged = f"rounding moves that by up to {self.tolerance:.2g}"
        return f"{'a tie' if self.kind == 'tie' else 'no tie'}: {apart} {self.gap:.2g} {beyond}, {bridged}"


def first_difference(found: Sequence[int], wanted: Sequence[int]) -> int | None:
    """Index of the first token that differs, the shorter length if one is the beginning of the other, None if the two
    are equal."""
    for position, (mine, right) in enumerate(zip(found, wanted, strict=False)):
        if mine != right:
            return position
    return None if len(found) == len(wanted) else min(len(found), len(wanted))


def classify(
    model: LLM | Engine | LanguageModel,
    prompt: Sequence[int],
    found: Sequence[int],
    wanted: Sequence[int],
    params: SamplingParams,
    guarantee: Guarantee | str,
    sample: int = 0,
) -> Difference | None:
    """Compare ``found``, the new tokens of a method with ``guarantee``, with ``wanted``, those of plain decoding. None:
    they are equal.

    ``model`` is an ``LLM`` or ``Engine`` (with its tokenizer, end tokens and law) or a bare ``LanguageModel``.
    ``params`` are those of both texts and, above temperature 0, must hold their seed; ``sample`` is the number of the
    choice. Raises ``ConfigError`` without a seed.
    """
    return Judge(model).classify(prompt, found, wanted, params, guarantee, sample)


class Judge:
    """Tells differences apart for one model."""

    def __init__(self, model: LLM | Engine | LanguageModel) -> None:
        engine: Any = getattr(model, "engine", model)
        self.model: LanguageModel = getattr(engine, "target", engine)
        self.tokenizer = getattr(engine, "tokenizer", None)
        self.stop_tokens: frozenset[int] = getattr(engine, "stop_tokens", frozenset())
        parts = getattr(engine, "parts", None)
        self.law = None if parts is None else parts.law

    def classify(
        self,
        prompt: Sequence[int],
        found: Sequence[int],
        wanted: Sequence[int],
        params: SamplingParams,
        guarantee: Guarantee | str,
        sample: int = 0,
    ) -> Difference | None:
        """See ``classify``."""
        at = first_difference(found, wanted)
        if at is None:
            return None
        mine, right = (text[at] if at < len(text) else None for text in (found, wanted))
        blank = Difference(at, mine, right, gap=None, tolerance=None, kind="wrong")
        if not params.greedy and guarantee != Guarantee.IDENTICAL:
            return replace(blank, kind="drawn")
        if not params.greedy and params.seed is None:
            raise ConfigError("the texts were drawn without a seed", hint="Set SamplingParams(seed=...) for both.")
        case = _Case(self, [*prompt, *wanted[:at]], len(prompt), params, sample)
        mine = case.end_of(found) if mine is None else mine
        right = case.end_of(wanted) if right is None else right
        if mine is None or right is None:
            return replace(blank, reason="one text ends where the other, equal so far, goes on")
        return case.greedy(blank, mine, right) if params.greedy else case.sampled(blank, mine, right)

    def scores(self, prefix: Sequence[int], prompt_length: int) -> Tensor:
        """f[W,V]: the logits of the token after ``prefix``, with the new tokens read ``WIDTHS`` at a time."""
        known = _known.setdefault(self.model, {})
        key = (self.model.weights_version, self.law, prompt_length, tuple(prefix))
        if key not in known:
            rows = [self._score(prefix, prompt_length, width) for width in WIDTHS]
            while len(known) >= _REMEMBERED:
                del known[next(iter(known))]
            known[key] = torch.stack(rows)
        return known[key]

    def _score(self, prefix: Sequence[int], prompt_length: int, width: int) -> Tensor:
        """f[V]: the prompt in one go, as an engine reads it for a row alone, then ``width`` tokens at a time."""
        model, end = self.model, len(prefix)
        read = prompt_length if model.scores_last and width == 1 else prompt_length - 1
        cuts = [end]
        while cuts[0] > max(0, read):
            cuts.insert(0, max(0, cuts[0] - width))
        cuts = [*range(0, cuts[0], _PREFILL), *cuts]
        # A limit far away, as an engine's: the shape of the buffers is part of how plain decoding rounds.
        store = model.new_store(1, (model.max_positions or 1 << 20) + _PREFILL)
        store.add()
        last: Literal["all"] | int = 1 if width == 1 and model.scores_last else "all"
        for start, stop in pairwise(cuts):
            block = Block.of_lists([list(prefix[start:stop])], model.device)
            out = model.forward(block, store, logits=last if stop == end else "none")
            store.extend(0, [stop - start])
        logits = out.logits[:, -1:]
        if self.law is not None:
            logits = self.law(logits, DraftTree.roots([prefix[-1]], model.device))
        row = logits[0, 0]
        return row.clone() if row.dtype == torch.float64 else row.float()


@dataclass(frozen=True)
class _Case:
    """One difference: ``prefix`` is prompt plus what both texts agree on."""

    judge: Judge
    prefix: list[int]
    prompt_length: int
    params: SamplingParams
    sample: int

    def end_of(self, text: Sequence[int]) -> int | None:
        """The end token that a text without one may have ended with: the likeliest, if it can have been one at all."""
        ends, length = stop_ids(self.params, self.judge.stop_tokens), len(text)
        if not ends or not self.params.min_tokens <= length < self.params.max_tokens or (text and text[-1] in ends):
            return None
        plain = self.judge.scores(self.prefix, self.prompt_length)[0]
        return max(ends, key=lambda token: float(plain[token]))

    def greedy(self, blank: Difference, found: int, wanted: int) -> Difference:
        """Fills ``blank`` with the gap of the two tokens in every way of scoring."""
        logits = self.judge.scores(self.prefix, self.prompt_length)
        open_ = replace(self.params, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, typical_p=1.0)
        logs = self._laws(logits, open_).log()
        gaps = logs[:, wanted] - logs[:, found]
        variation, limit = float(gaps.max() - gaps.min()), self._limit(logits)
        least = floor(self.judge.model.dtype, logits[0])
        measured = replace(blank, gap=float(gaps[0]), tolerance=least, variation=variation)
        if not math.isfinite(float(gaps[0])):
            return replace(measured, variation=None, reason="the law forbids one of the two tokens there")
        if not variation <= limit:
            return replace(measured, reason=_unsteady(variation, limit))
        tolerance = max(least, 2 * variation)
        behind = logs[0].max() - logs[0, [found, wanted]]
        tie = abs(float(gaps[0])) <= tolerance and bool((behind <= tolerance).all())
        return replace(measured, tolerance=tolerance, kind="tie" if tie else "wrong")

    def sampled(self, blank: Difference, found: int, wanted: int) -> Difference:
        """Fills ``blank`` with how far the draw lies from what chooses ``found``, and how far rounding moves that."""
        logits = self.judge.scores(self.prefix, self.prompt_length)
        least, limit = FLOOR.get(self.judge.model.dtype, FLOOR[torch.float32]), self._limit(logits)
        steps = (torch.log_softmax(logits[1:], -1) - torch.log_softmax(logits[:1], -1)).nan_to_num(0.0, 0.0, 0.0)
        # Laws as rounding might have made them: measured; the same steps turned round and doubled; and steps drawn
        # for every logit, of the size that one rounding of it has. This finds tokens at the edge of a truncation too.
        size = torch.finfo(self.judge.model.dtype).eps * _largest(logits[0])
        drawn = np.random.default_rng(len(self.prefix)).uniform(-size, size, (_DRAWN, logits.shape[1]))
        moved_by = [*(stretch * steps for stretch in _STRETCH), torch.from_numpy(drawn).to(logits)]
        laws = self._laws(torch.cat([logits, logits[:1] + torch.cat(moved_by)]), self.params).double()
        seed, sample, root = (torch.tensor([n]) for n in (self.params.seed, self.sample, len(self.prefix) - 1))
        draw = float(Draws.of(seed, sample, root).text(torch.zeros(1, 1, dtype=torch.int64)))
        away = [_from_interval(laws, token, draw) for token in (found, wanted)]
        gap, moved = away[0]
        measured = replace(blank, gap=gap, tolerance=max(least, moved), variation=moved, unit="probability")
        largest = float(steps[:, [found, wanted]].abs().max())
        if not largest <= limit:
            return replace(measured, tolerance=least, reason=_unsteady(largest, limit))
        tie = all(distance <= max(least, room) for distance, room in away)
        return replace(measured, kind="tie" if tie else "wrong")

    def _laws(self, logits: Tensor, params: SamplingParams) -> Tensor:
        """f[W,V]: the laws that ``params`` make of ``logits`` f[W,V] behind the prefix."""
        judge = self.judge
        prompt, new = self.prefix[: self.prompt_length], self.prefix[self.prompt_length :]
        row = row_sampling(params, prompt, judge.model.vocab_size, judge.stop_tokens, judge.tokenizer)
        row.advance(new)
        return warp(logits[:, None], [row.fork() for _ in logits]).probs[:, 0]

    def _limit(self, logits: Tensor) -> float:
        """What can be rounding at all; some families round to float32 inside whatever their dtype."""
        eps = max(torch.finfo(self.judge.model.dtype).eps, torch.finfo(torch.float32).eps)
        fine = eps == torch.finfo(torch.float32).eps
        return max(FLOOR[torch.float32], ROUNDING[fine] * eps * _largest(logits[0]))


def floor(dtype: torch.dtype, logits: Tensor) -> float:
    """Logits nearer than this are equal as far as ``dtype`` can tell, beside others as large as ``logits``."""
    return max(FLOOR.get(dtype, 0.0), 2 * torch.finfo(dtype).eps * _largest(logits))


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _largest(logits: Tensor) -> float:
    """Of those that are finite: a law may forbid tokens."""
    finite = logits[logits.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


def _from_interval(laws: Tensor, token: int, draw: float) -> tuple[float, float]:
    """How far ``draw`` lies from the interval of ``token`` in the first of ``laws`` f[W,V], and by how much the others
    move that interval."""
    mass = laws[:, token]
    stop = laws.cumsum(-1)[:, token]
    start = stop - mass
    gap = max(0.0, float(start[0]) - draw, draw - float(stop[0]))
    alive = mass > 0
    if not alive.any():
        return max(gap, 1.0), 0.0
    ends = torch.stack([start, stop])[:, alive]
    return gap, float((ends - torch.stack([start[:1], stop[:1]])).abs().max())


def _unsteady(variation: float, limit: float) -> str:
    return f"one model scored the same tokens {variation:.2g} apart, more than rounding explains ({limit:.2g})"
