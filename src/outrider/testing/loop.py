"""The law of the emitted text, through the engine: what a verifier's own test cannot show.

A rule may be exact for one round and the loop around it still wrong: coins that are used twice, a drafter that
learns from what was rejected, a commit of the wrong path. So requests that differ in nothing but their seed are
decoded in a ``TableModel``, and the joint law of their first tokens is compared with the enumerated one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from outrider.model.table import TableModel
from outrider.params import SamplingParams
from outrider.run.engine import Engine
from outrider.run.request import Stats
from outrider.run.scheduler import Limits
from outrider.testing.decode import Make, drain
from outrider.testing.stats import ChiSquare, chi_square, histogram
from outrider.testing.world import World, table_world

PROMPT = (1, 0, 2, 1, 0)
"""Ends with what it began with, so that look-up proposes from the first round on."""
WAVE = 500
"""Rows that run together: enough to share the cost of a step, few enough to leave quickly."""


@dataclass(frozen=True)
class Sample:
    """``tokens`` i64[R,L]: the first tokens of R requests; ``stats`` of all of them together."""

    tokens: Tensor
    stats: Stats

    @property
    def rounds(self) -> float:
        """Mean number of target calls per request."""
        return self.stats.target_calls / len(self.tokens)


def joint_law(
    target: TableModel, prompt: Sequence[int], length: int, temperature: float = 1.0, top_p: float = 1.0
) -> Tensor:
    """f64[V,...,V]: the law of the next ``length`` tokens, enumerated, with temperature and top-p by their
    definitions and without any of the code under test."""
    joint = torch.ones(1, dtype=torch.float64)
    for depth in range(length):
        prefixes = itertools.product(range(target.vocab_size), repeat=depth)
        laws = [shaped(target.law([*prompt, *prefix]), temperature, top_p) for prefix in prefixes]
        joint = (joint[:, None] * torch.stack(laws)).flatten()
    return joint.view([target.vocab_size] * length)


def shaped(law: Tensor, temperature: float, top_p: float) -> Tensor:
    """f64[V] after temperature and top-p: the smallest set of most likely tokens that reaches ``top_p``."""
    hot = law ** (1 / temperature)
    hot = hot / hot.sum()
    kept, total = torch.zeros_like(hot), 0.0
    for token in hot.argsort(descending=True).tolist():
        kept[token] = hot[token]
        total += float(hot[token])
        if total >= top_p:
            break
    return kept / kept.sum()


def sample(
    make: Make,
    world: World,
    rows: int,
    length: int,
    prompt: Sequence[int] = PROMPT,
    seed: int = 0,
    **params: float,
) -> Sample:
    """Decode ``rows`` requests whose seeds are ``seed``, ``seed + 1``, ... with one engine, in waves."""
    engine = Engine(
        world.target,
        make(),
        limits=Limits(max_rows=WAVE, max_nodes=WAVE * 128, max_context=len(prompt) + length + 1),
        draft_model=world.draft,
    )
    found, stats = [], []
    for first in range(0, rows, WAVE):
        requests = [
            engine.submit(prompt, _params(seed + row, length, **params))
            for row in range(first, min(first + WAVE, rows))
        ]
        drain(engine)
        found += [request.choices[0].token_ids for request in requests]
        stats += [request.choices[0].stats for request in requests]
    return Sample(torch.tensor(found), Stats.total(stats))


@lru_cache(maxsize=1 << 16)
def _params(seed: int, length: int, temperature: float = 1.0, top_p: float = 1.0) -> SamplingParams:
    """Checking every field anew for every row of every test would take longer than decoding it."""
    return SamplingParams(seed=seed, max_tokens=length, temperature=temperature, top_p=top_p)


def law_test(
    make: Make,
    length: int,
    world: World | None = None,
    rows: int = 20_000,
    prompt: Sequence[int] = PROMPT,
    seed: int = 0,
    **params: float,
) -> tuple[ChiSquare, Sample]:
    """Chi-square of the joint law of the first ``length`` tokens. ``params``: ``temperature``, ``top_p``."""
    where = table_world() if world is None else world
    assert isinstance(where.target, TableModel), "a law can only be enumerated for a TableModel"
    drawn = sample(make, where, rows, length, prompt, seed, **params)
    law = joint_law(where.target, prompt, length, **params)
    return chi_square(histogram(drawn.tokens, where.vocab), law), drawn


def check_law(
    make: Make,
    length: int,
    world: World | None = None,
    rows: int = 20_000,
    drafts: bool = True,
    at_least: float = 0.001,
    **params: float,
) -> ChiSquare:
    """Raise ``AssertionError`` if the law is not the target's (p below ``at_least``), or if the test says nothing:
    fewer than two rounds, or (with ``drafts``) nothing accepted. Choose a ``length`` of drafted depth + 2."""
    result, drawn = law_test(make, length, world, rows, **params)  # type: ignore[arg-type]
    assert drawn.rounds > 1, f"{drawn.rounds} rounds per request: the loop was not tested"
    if drafts:
        assert drawn.stats.accepted_tokens > rows / 20, f"only {drawn.stats.accepted_tokens} tokens accepted"
    assert result.p_value >= at_least, f"the law of {make().name} is not that of the target: {result}"
    return result
