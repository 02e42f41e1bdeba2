"""The engine: admits rows, and runs the one token loop there is.

    propose   the drafter grows a tree of candidates
    forward   the target scores all of it in one call
    verify    the verifier decides what stands
    commit    the store keeps the accepted path, in this and every sibling store

Invariant: the tokens whose keys and values are stored are all emitted tokens but the last, which is the next root.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from outrider.draft.base import DraftContext
from outrider.errors import RequestError, check_number
from outrider.model.base import Block, LanguageModel
from outrider.params import SamplingParams
from outrider.parts import Parts
from outrider.rng import Draws
from outrider.run.prefix import PrefixCache
from outrider.run.request import Choice, Emission, Origin, Request
from outrider.run.row import Row
from outrider.run.text import StopCheck, TextStream, bad_word_ids, logprobs_of
from outrider.sampling import RowSampling, dead_end, warp
from outrider.types import DraftTree, Outcome, Verdict
from outrider.verify.base import TargetView


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
class _Live:
    """A row and what the engine alone knows of it."""

    row: Row
    request: Request
    choice: Choice
    stop: StopCheck
    stream: int


@dataclass
class _Clock:
    """Splits the wall clock of one step."""

    at: float = field(default_factory=time.perf_counter)
    seconds: dict[str, float] = field(default_factory=dict)

    def lap(self, part: str) -> None:
        now = time.perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self.at
        self.at = now


class Engine:
    """Decodes any number of requests together. Synchronous and single-threaded: call ``step`` until ``idle``.

    ``on_step`` is told every ``Outcome`` (tools that trace or explain read it there).
    """

    def __init__(
        self,
        target: LanguageModel,
        parts: Parts,
        *,
        tokenizer: Any = None,
        stop_tokens: Iterable[int] = (),
        limits: Limits | None = None,
        draft_model: LanguageModel | None = None,
        on_step: Callable[[Outcome], None] | None = None,
    ) -> None:
        parts.check(target)
        self.target, self.parts, self.tokenizer = target, parts, tokenizer
        self.limits = limits or Limits()
        self.stop_tokens = frozenset(stop_tokens)
        self.on_step = on_step
        context = self.limits.max_context or target.max_positions or 1 << 20
        self.max_context = min(context, target.max_positions or context)
        self.store = target.new_store(self.limits.max_rows, self.max_context + self.limits.max_nodes)
        self.prefixes = PrefixCache(self.store, self.limits.prefix_entries)
        self.needs = parts.needs
        self._live: list[_Live] = []
        self._waiting: deque[Request] = deque()
        self._next_row = self._next_request = 0
        if parts.drafter is not None:
            parts.drafter.bind(
                DraftContext(
                    target=target,
                    vocab_size=target.vocab_size,
                    device=target.device,
                    max_rows=self.limits.max_rows,
                    max_context=self.max_context,
                    tokenizer=tokenizer,
                    stop_tokens=self.stop_tokens,
                    draft_model=draft_model,
                    prefix_entries=self.limits.prefix_entries,
                )
            )

    # -- requests -----------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        return not self._live and not self._waiting

    def submit(self, prompt: Sequence[int], params: SamplingParams) -> Request:
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
                hint="Shorten the prompt or raise max_context (up to the model's own limit).",
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
        request = Request(self._next_request, tokens, params, seed)
        # Built here for its checks: an error in the middle of a step would be everybody's.
        request.sampling = self._sampling(request)
        self._next_request += 1
        self._waiting.append(request)
        return request

    def cancel(self, request: Request) -> None:
        """Stop a request now; its choices keep what they have, with finish_reason "cancelled"."""
        if request in self._waiting:
            self._waiting.remove(request)
            request.choices = [Choice(index, finish_reason="cancelled") for index in range(request.params.n)]
        for live in [x for x in self._live if x.request is request]:
            live.choice.finish_reason = "cancelled"
            self._leave(live)

    # -- one step -----------------------------------------------------------------------------------------

    def step(self) -> list[Emission]:
        """Admit what fits, then propose, forward, verify and commit once for all rows."""
        self._admit()
        if not self._live:
            return []
        clock = _Clock()
        rows = [live.row for live in self._live]
        draws = Draws(
            torch.tensor([live.stream for live in self._live], device=self.target.device),
            torch.tensor([row.root_position for row in rows], device=self.target.device),
        )
        tree = self._propose(rows, draws)
        clock.lap("draft")
        out = self.target.forward(Block.of_tree(tree), self.store, capture=self.needs.hidden)
        clock.lap("target")
        logits = out.logits if self.parts.law is None else self.parts.law(out.logits, tree)
        p = warp(logits, [row.sampling for row in rows], tree)
        verdict = self.parts.verifier.verify(tree, TargetView(p, logits, out.hidden), draws)
        # The step's one copy to the host: [count, bonus, path...] per row.
        packed = torch.cat([verdict.count[:, None], verdict.bonus[:, None], verdict.path], dim=1).tolist()
        clock.lap("verify")
        counts = [line[0] for line in packed]
        self.store.commit(verdict.path[:, : max(counts)], counts)
        emissions = self._emit(tree, packed, out.logits)
        outcome = Outcome(
            rows=rows,
            tree=tree,
            verdict=verdict,
            emitted=[emission.token_ids for emission in emissions],
            logits=out.logits if self.needs.logits else None,
            hidden=out.hidden,
            seconds=clock.seconds,
        )
        self._observe(outcome)
        clock.lap("other")
        self._account(tree, verdict, counts, clock)
        return emissions

    def _propose(self, rows: list[Row], draws: Draws) -> DraftTree:
        drafter = self.parts.drafter
        if drafter is not None:
            plan = self.parts.policy.plan(rows)
            left = max(live.stop.max_tokens - live.stop.count for live in self._live)
            room = self.limits.max_nodes // len(rows) - 1
            # Beyond the last token that may be emitted nothing is worth drafting.
            budget = replace(plan, depth=min(plan.depth, left - 1), nodes=min(plan.nodes, room))
            if not budget.empty:
                return drafter.propose(rows, budget, draws).to(self.target.device)
        return DraftTree.roots([row.tokens[-1] for row in rows], self.target.device)

    def _emit(self, tree: DraftTree, packed: list[list[int]], logits: torch.Tensor) -> list[Emission]:
        """Append what was accepted to each row, token by token, until its text stops."""
        drafted = tree.shape[1] > 1
        tokens = (_host_tokens(tree)) if drafted else []
        origin = tree.origin.tolist() if drafted and tree.origin is not None else None
        emissions = []
        for b, (live, (count, bonus, *path)) in enumerate(zip(self._live, packed, strict=True)):
            nodes = path[1:count]
            fresh = [tokens[b][node] for node in nodes] + ([bonus] if bonus >= 0 else [])
            kept = 0
            for token in fresh:
                kept += 1
                if live.stop.push(token):
                    break
            fresh = fresh[:kept]
            origins = [
                Origin(tree.origins[origin[b][node] if origin else 1], depth)
                for depth, node in enumerate(nodes[:kept], start=1)
            ]
            if len(origins) < kept:
                origins.append(Origin(tree.origins[0], 0))
            choice = live.choice
            if live.row.params.logprobs is not None:
                rows = logits[b, torch.tensor([0, *nodes][:kept], device=logits.device)]
                choice.logprobs = (choice.logprobs or []) + logprobs_of(rows, fresh, live.row.params.logprobs)
            live.row.tokens += fresh
            live.row.sampling.advance(fresh)
            choice.token_ids += fresh
            choice.origins += origins
            piece = live.stop.release()
            choice.text += piece
            choice.finish_reason, choice.stop_reason = live.stop.reason, live.stop.cause
            if bonus < 0 and choice.finish_reason is None:  # nothing can follow: this row ends, others go on
                choice.finish_reason, choice.error = "error", dead_end(live.row.sampling)
            emissions.append(Emission(live.request, choice, piece, fresh, origins))
        return emissions

    def _observe(self, outcome: Outcome) -> None:
        if self.parts.drafter is not None:
            self.parts.drafter.observe(outcome)
            self.parts.policy.observe(outcome)
        if self.on_step is not None:
            self.on_step(outcome)

    def _account(self, tree: DraftTree, verdict: Verdict, counts: list[int], clock: _Clock) -> None:
        """Count the step for every row that took part, and let finished rows go."""
        nodes = [len(t) - 1 for t, _ in tree.host] if tree.host is not None else None
        if nodes is None:
            nodes = (tree.real.sum(1) - 1).tolist() if tree.shape[1] > 1 else [0] * len(counts)
        finished = []
        for live, count, drafted in zip(self._live, counts, nodes, strict=True):
            stats = live.choice.stats
            stats.target_calls += 1
            stats.draft_tokens += drafted
            emitted = len(live.choice.token_ids) - stats.emitted_tokens
            stats.emitted_tokens += emitted
            accepted = min(count - 1, emitted)
            stats.accepted_tokens += accepted
            stats.accepted_per_call[accepted] += 1
            if live.choice.finish_reason is not None:
                finished.append(live)
        for live in finished:
            self._leave(live)
        clock.lap("other")
        for stats in [x.choice.stats for x in (*self._live, *finished)]:
            for part, seconds in clock.seconds.items():
                stats.seconds[part] += seconds

    # -- rows join and leave ------------------------------------------------------------------------------

    def _admit(self) -> None:
        while self._waiting:
            request = self._waiting[0]
            if len(self._live) + request.params.n > self.limits.max_rows:
                return
            group = [self._waiting.popleft()]
            rows = request.params.n
            while self._waiting and len(self._live) + rows + self._waiting[0].params.n <= self.limits.max_rows:
                if len(group) >= self.limits.prefill_tokens // 8:
                    break
                rows += self._waiting[0].params.n
                group.append(self._waiting.popleft())
            self._start(group)

    def _start(self, group: list[Request]) -> None:
        """Prefill the prompts of ``group`` (all but their last token), then fork rows for n > 1."""
        began = time.perf_counter()
        first = self.store.add(len(group))
        streams = _streams(group)
        lives = [self._new_live(request, 0, next(streams)) for request in group]
        self._live += lives
        for offset, live in enumerate(lives):
            if self.limits.prefix_entries:
                live.choice.stats.reused_tokens = self.prefixes.adopt(first + offset, live.row.tokens[:-1])
            if self.parts.drafter is not None:
                self.parts.drafter.admit(live.row)
        self._prefill(first, lives)
        seconds = time.perf_counter() - began
        for offset, live in enumerate(lives):
            live.choice.stats.seconds["prefill"] += seconds
            for sample in range(1, live.request.params.n):
                self.store.fork(first + offset)
                clone = self._new_live(live.request, sample, next(streams))
                self._live.append(clone)
                if self.parts.drafter is not None:
                    self.parts.drafter.fork(live.row, clone.row)

    def _prefill(self, first: int, lives: list[_Live]) -> None:
        rest = [live.row.tokens[self.store.lengths[first + i] : -1] for i, live in enumerate(lives)]
        chunk = max(16, self.limits.prefill_tokens // len(lives))
        while any(rest):
            block = Block.of_lists([tokens[:chunk] for tokens in rest], self.target.device)
            wants = self.needs.prefill_logits or (self.needs.hidden and self.parts.drafter is not None)
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
                self._observe(
                    Outcome(rows, block.as_tree(), None, [[] for _ in rows], logits=out.logits, hidden=out.hidden)
                )
            rest = [tokens[chunk:] for tokens in rest]

    def _new_live(self, request: Request, sample: int, stream: int) -> _Live:
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
        return _Live(row, request, choice, stop, stream)

    def _stop_ids(self, params: SamplingParams) -> frozenset[int]:
        return frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self.stop_tokens)

    def _sampling(self, request: Request) -> RowSampling:
        params = request.params
        return RowSampling(
            params,
            self.target.vocab_size,
            request.prompt,
            stop_ids=self._stop_ids(params),
            bad_words=bad_word_ids(params.bad_words, self.tokenizer),
        )

    def _leave(self, live: _Live) -> None:
        """Free a row; the last one takes its place, here as in the store."""
        index = self._live.index(live)
        self.prefixes.keep(index, live.row.tokens)
        self.store.free(index)
        last = self._live.pop()
        if index < len(self._live):
            self._live[index] = last
        if self.parts.drafter is not None:
            self.parts.drafter.drop(live.row)


def _streams(group: Sequence[Request]) -> Iterator[int]:
    """The random stream of each first choice, then of each further one, in the order in which rows are made.
    One call for all of them: hashing a single key costs as much as hashing hundreds."""
    keys = [(request.seed, 0) for request in group]
    keys += [(request.seed, sample) for request in group for sample in range(1, request.params.n)]
    seeds, samples = torch.tensor(keys).unbind(1)
    return iter(Draws.of(seeds, samples, torch.zeros_like(seeds)).stream.tolist())


def _host_tokens(tree: DraftTree) -> list[list[int]]:
    return [tokens for tokens, _ in tree.host] if tree.host is not None else tree.tokens.tolist()
