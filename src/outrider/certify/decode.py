"""Running a method for a check: one prompt after the other, all at once, or many continuations of one text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from outrider.parts import Parts
from outrider.run.engine import Engine
from outrider.run.request import Choice, Request
from outrider.run.scheduler import Limits

if TYPE_CHECKING:
    from outrider.params import SamplingParams
    from outrider.run.llm import LLM

Tick = Callable[[int], None]
"""Told how many tokens were just decoded."""

CELLS = 1 << 26
"""Logits of one step are kept below this many numbers: nodes times vocabulary."""
_NODES = 16
_ROWS = 128


@dataclass(frozen=True)
class Subject:
    """A method under test; ``make`` builds fresh parts each time."""

    name: str
    make: Callable[[], Parts]

    def drafting(self) -> Parts:
        """Fresh parts that draft in full: without a policy around their own that leaves drafting where it does not pay,
        which nothing could be learnt from."""
        parts = self.make()
        return parts.with_(policy=parts.policy.core())


@dataclass(frozen=True)
class Ask:
    """One prompt, ready to be decoded."""

    name: str
    tokens: tuple[int, ...]


class Decoder:
    """Engines over the weights of one ``llm``."""

    def __init__(self, llm: LLM) -> None:
        self.llm = llm
        self.target, self.tokenizer = llm.language_model, llm.tokenizer
        self.stop_tokens = llm.engine.stop_tokens
        self.max_context = llm.engine.max_context

    def engine(self, parts: Parts, rows: int, max_nodes: int = Limits.max_nodes) -> Engine:
        """A fresh engine for ``parts``, of ``rows`` rows."""
        return Engine(
            self.target,
            parts,
            tokenizer=self.tokenizer,
            stop_tokens=self.stop_tokens,
            limits=replace(self.llm.limits, max_rows=rows, max_nodes=max_nodes, prefix_entries=0),
            draft_model=None if self.llm.draft is None else self.llm.draft.model,
        )

    def one_by_one(
        self, parts: Parts, asks: Sequence[Ask], params: Sequence[SamplingParams], tick: Tick
    ) -> list[Choice]:
        """Every prompt alone, with one engine: what its drafter learns it keeps."""
        engine = self.engine(parts, 1)
        done: list[Choice] = []
        for ask, each in zip(asks, params, strict=True):
            request = engine.submit(ask.tokens, each, stream=False)
            drain(engine, tick)
            done.append(request.choices[0])
        return done

    def together(self, parts: Parts, asks: Sequence[Ask], params: Sequence[SamplingParams], tick: Tick) -> list[Choice]:
        """All prompts in one batch."""
        engine = self.engine(parts, len(asks))
        requests = [engine.submit(ask.tokens, each, stream=False) for ask, each in zip(asks, params, strict=True)]
        drain(engine, tick)
        return [request.choices[0] for request in requests]

    def samples(
        self, parts: Parts, ask: Ask, params: SamplingParams, count: int, first_seed: int, tick: Tick
    ) -> list[Choice]:
        """``count`` independent continuations of one prompt, which is read once for each batch of them."""
        max_nodes = max(_NODES, min(_ROWS * _NODES, CELLS // self.target.vocab_size))
        rows = max(1, min(_ROWS, max_nodes // _NODES, count))
        engine = self.engine(parts, rows, max_nodes)
        requests: list[Request] = []
        for wave, start in enumerate(range(0, count, rows)):
            each = replace(params, n=min(rows, count - start), seed=first_seed + wave)
            requests.append(engine.submit(ask.tokens, each, stream=False))
        drain(engine, tick)
        return [choice for request in requests for choice in request.choices]


def drain(engine: Engine, tick: Tick) -> None:
    """Step until nothing is left to do."""
    while not engine.idle:
        tick(sum(len(emission.token_ids) for emission in engine.step()))
