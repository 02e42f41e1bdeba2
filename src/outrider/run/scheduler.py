"""Which requests run: checks them, queues them, lets their rows join and leave."""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from outrider.cache.prefix import PrefixCache
from outrider.errors import ConfigError, RequestError, check_number
from outrider.model.base import Block, LanguageModel
from outrider.params import SamplingParams
from outrider.parts import Parts
from outrider.rng import Draws
from outrider.run.request import Choice, Request
from outrider.run.row import Row
from outrider.run.text import StopCheck, TextStream, bad_word_ids
from outrider.sampling import RowSampling
from outrider.types import Outcome


@dataclass(frozen=True)
class Limits:
    """What the engine may use at once."""

    max_rows: int = 64
    max_context: int | None = None
    """Tokens of prompt and output together; None: the model's own limit."""
    max_nodes: int = 512
    """Cap on rows times tree nodes per step; also bounds the memory of the logits."""
    prefill_tokens: int = 2048
    """Cap on rows times tokens of one prefill forward."""
    prefix_entries: int = 0
    """Finished rows whose keys and values are kept for requests that begin alike."""

    def __post_init__(self) -> None:
        check_number("max_rows", self.max_rows, 1)
        check_number("max_context", 2 if self.max_context is None else self.max_context, 2)
        check_number("max_nodes", self.max_nodes, 1)
        check_number("prefill_tokens", self.prefill_tokens, 1)
        check_number("prefix_entries", self.prefix_entries, 0)


@dataclass(eq=False)
class Live:
    """A row and what the engine alone knows of it."""

    row: Row
    request: Request
    choice: Choice
    stop: StopCheck
    stream: int


class Scheduler:
    """Owns the rows: ``live[b]`` is row b of the store, and of every batch the engine makes.

    ``observe`` is told the outcome of prefill chunks where some part asked for their states or logits.
    """

    def __init__(
        self,
        target: LanguageModel,
        parts: Parts,
        limits: Limits,
        tokenizer: Any,
        stop_tokens: frozenset[int],
        observe: Callable[[Outcome], None],
    ) -> None:
        self.target, self.drafter, self.needs = target, parts.drafter, parts.needs
        self.limits, self.tokenizer, self.stop_tokens, self.observe = limits, tokenizer, stop_tokens, observe
        longest = target.max_positions
        if limits.max_context is not None and longest is not None and limits.max_context > longest:
            raise ConfigError(
                f"max_context={limits.max_context}, but {target.name} ends at {longest} tokens",
                hint=f"Give at most {longest}, or leave max_context out.",
            )
        self.max_context = limits.max_context or longest or 1 << 20
        self.store = target.new_store(limits.max_rows, self.max_context + limits.max_nodes)
        self.prefixes = PrefixCache(self.store, limits.prefix_entries)
        self.live: list[Live] = []
        self.waiting: deque[Request] = deque()
        self._admitted: set[int] = set()  # ids of rows the drafter knows
        self._next_row = self._next_request = 0

    @property
    def idle(self) -> bool:
        return not self.live and not self.waiting

    def submit(self, prompt: Sequence[int], params: SamplingParams, stream: bool = True) -> Request:
        """Queue a prompt of token ids. Raises ``RequestError`` for one that cannot be served."""
        tokens = list(prompt)
        if not tokens:
            raise RequestError(
                "the prompt is empty",
                why="a model continues tokens, and this one has no begin-of-text token to start from",
                hint="Give at least one token.",
            )
        wrong = [t for t in tokens if not 0 <= t < self.target.vocab_size]
        if wrong:
            raise RequestError(
                f"prompt token {wrong[0]} is outside the vocabulary of {self.target.vocab_size}",
                hint="Use the tokenizer that belongs to the model.",
            )
        if len(tokens) >= self.max_context:
            raise RequestError(
                f"the prompt has {len(tokens)} tokens, but the context holds {self.max_context}, output included",
                hint="Shorten the prompt, or raise max_context (Limits or --max-context) up to the model's limit.",
            )
        if params.n > self.limits.max_rows:
            raise RequestError(
                f"n={params.n} choices, but the engine runs {self.limits.max_rows} rows at once",
                hint="Lower n or raise max_rows.",
            )
        if params.stop and self.tokenizer is None:
            raise RequestError(
                f"stop is {params.stop!r}, but there is no tokenizer",
                why="stop strings are looked for in the text",
                hint="Give stop_token_ids, or LLM(..., tokenizer=...).",
            )
        seed = params.seed if params.seed is not None else secrets.randbits(63)
        request = Request(self._next_request, tokens, params, seed, stream=stream)
        # Built here for its checks: an error in the middle of a step would be everybody's.
        request.sampling = self._sampling(request)
        self._next_request += 1
        self.waiting.append(request)
        return request

    def cancel(self, request: Request) -> None:
        """Stop a request now; its choices keep what they have, with finish_reason "cancelled"."""
        if request in self.waiting:
            self.waiting.remove(request)
            request.choices = [Choice(index, finish_reason="cancelled") for index in range(request.params.n)]
        for live in [x for x in self.live if x.request is request]:
            live.stop.reason = live.choice.finish_reason = "cancelled"
            live.choice.text += live.stop.release()
            self.leave(live)

    def admit(self) -> None:
        while self.waiting:
            request = self.waiting[0]
            if len(self.live) + request.params.n > self.limits.max_rows:
                return
            group = [self.waiting.popleft()]
            rows = request.params.n
            while self.waiting and len(self.live) + rows + self.waiting[0].params.n <= self.limits.max_rows:
                if len(group) >= self.limits.prefill_tokens // 8:
                    break
                rows += self.waiting[0].params.n
                group.append(self.waiting.popleft())
            self._start(group)

    def _start(self, group: list[Request]) -> None:
        """Prefill the prompts of ``group`` (all but their last token), then fork rows for n > 1."""
        began = time.perf_counter()
        first = self.store.add(len(group))
        before = len(self.live)
        try:
            self._fill(group, first, began)
        except BaseException:  # out of memory, a drafter that raises: no half-made row may stay
            for live in self.live[before:]:
                live.choice.finish_reason = "error"
            while self.store.rows > before:
                self.store.free(self.store.rows - 1)
            for live in self.live[before:]:
                if self.drafter is not None and live.row.id in self._admitted:
                    self._admitted.discard(live.row.id)
                    self.drafter.drop(live.row)
            del self.live[before:]
            for request in group:
                for index in range(len(request.choices), request.params.n):
                    request.choices.append(Choice(index, finish_reason="error"))
            raise

    def _fill(self, group: list[Request], first: int, began: float) -> None:
        streams = _streams(group)
        lives = [self._new_live(request, 0, next(streams)) for request in group]
        self.live += lives
        # A drafter that wants the states or logits of the prompt must see all of it.
        reuse = self.limits.prefix_entries > 0 and not (self.needs.hidden or self.needs.prefill_logits)
        for offset, live in enumerate(lives):
            if reuse:
                live.choice.stats.reused_tokens = self.prefixes.adopt(first + offset, live.row.tokens[:-1])
            if self.drafter is not None:
                self.drafter.admit(live.row)
                self._admitted.add(live.row.id)
        self._prefill(first, lives)
        seconds = time.perf_counter() - began
        for offset, live in enumerate(lives):
            live.choice.stats.seconds["prefill"] += seconds
            for sample in range(1, live.request.params.n):
                self.store.fork(first + offset)
                clone = self._new_live(live.request, sample, next(streams))
                self.live.append(clone)
                if self.drafter is not None:
                    self.drafter.fork(live.row, clone.row)
                    self._admitted.add(clone.row.id)

    def unread(self) -> list[int]:
        """Tokens of the prompt that are to be read along with the first draft of the only row."""
        return self.live[0].row.tokens[self.store.lengths[0] : -1] if len(self.live) == 1 else []

    def _reads_along(self, lives: list[Live]) -> bool:
        """Whether the last chunk of the prompt is left to the first step: a forward less before the first token. Only
        for a row that is alone (in a batch everybody would be padded to that chunk), and where no part
        wants to see the prompt's states."""
        alone = len(self.live) == 1 and lives[0].request.params.n == 1 and not self.waiting
        return alone and self.target.scores_last and not (self.needs.prefill_logits or self.needs.hidden)

    def _prefill(self, first: int, lives: list[Live]) -> None:
        rest = [live.row.tokens[self.store.lengths[first + i] : -1] for i, live in enumerate(lives)]
        chunk = max(1, self.limits.prefill_tokens // len(lives))
        last = chunk if self._reads_along(lives) else 0
        while any(len(tokens) > last for tokens in rest):
            block = Block.of_lists([tokens[:chunk] for tokens in rest], self.target.device)
            wants = self.needs.prefill_logits or self.needs.hidden
            out = self.target.forward(
                block,
                self.store,
                first_row=first,
                capture=self.needs.hidden,
                logits="all" if self.needs.prefill_logits else "none",
            )
            self.store.extend(first, block.counts)
            if wants:
                rows = [live.row for live in lives]
                self.observe(
                    Outcome(rows, block.as_tree(), None, [[] for _ in rows], logits=out.logits, hidden=out.hidden)
                )
            rest = [tokens[chunk:] for tokens in rest]

    def _new_live(self, request: Request, sample: int, stream: int) -> Live:
        params, stop_ids = request.params, self._stop_ids(request.params)
        sampling, request.sampling = request.sampling or self._sampling(request), None
        row = Row(
            id=self._next_row,
            tokens=list(request.prompt),
            prompt_length=len(request.prompt),
            params=params,
            sampling=sampling,
            seed=request.seed,
            sample=sample,
        )
        self._next_row += 1
        choice = Choice(index=sample)
        choice.stats.prompt_tokens = len(request.prompt)
        request.choices.append(choice)
        limit = min(params.max_tokens, self.max_context - len(request.prompt))
        text = TextStream(self.tokenizer)
        stop = StopCheck(stop_ids, tuple(params.stop), params.min_tokens, limit, text)
        return Live(row, request, choice, stop, stream)

    def _stop_ids(self, params: SamplingParams) -> frozenset[int]:
        return stop_ids(params, self.stop_tokens)

    def _sampling(self, request: Request) -> RowSampling:
        return row_sampling(request.params, request.prompt, self.target.vocab_size, self.stop_tokens, self.tokenizer)

    def leave(self, live: Live) -> None:
        """Free a row; the last one takes its place, here as in the store."""
        index = self.live.index(live)
        if live.choice.finish_reason == "error":  # it may hold NaN, which would reach later rows even when masked
            self.store.wipe(index)
        else:
            self.prefixes.keep(index, live.row.tokens)
        self.store.free(index)
        last = self.live.pop()
        if index < len(self.live):
            self.live[index] = last
        self._admitted.discard(live.row.id)
        if self.drafter is not None:
            self.drafter.drop(live.row)


def stop_ids(params: SamplingParams, stop_tokens: frozenset[int]) -> frozenset[int]:
    """Ids that end a text with ``params``; ``stop_tokens`` are the model's own."""
    return frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else stop_tokens)


def row_sampling(
    params: SamplingParams, prompt: Sequence[int], vocab_size: int, stop_tokens: frozenset[int], tokenizer: Any
) -> RowSampling:
    """What sampling remembers of a request that begins with ``prompt``."""
    return RowSampling(
        params,
        vocab_size,
        prompt,
        stop_ids=stop_ids(params, stop_tokens),
        bad_words=bad_word_ids(params.bad_words, tokenizer),
    )


def _streams(group: Sequence[Request]) -> Iterator[int]:
    """The random stream of each first choice, then of each further one, in the order in which rows are made.
    One call for all of them: hashing a single key costs as much as hashing hundreds."""
    keys = [(request.seed, 0) for request in group]
    keys += [(request.seed, sample) for request in group for sample in range(1, request.params.n)]
    seeds, samples = torch.tensor(keys).unbind(1)
    return iter(Draws.of(seeds, samples, torch.zeros_like(seeds)).stream.tolist())
