"""The engine: the one token loop there is.

    propose   the drafter grows a tree of candidates
    forward   the target scores all of it in one call
    verify    the verifier decides what stands
    commit    the store keeps the accepted path, in this and every sibling store

Invariant: the tokens whose keys and values are stored are all emitted tokens but the last, which is the next root.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from outrider.draft.base import DraftContext
from outrider.errors import ConfigError
from outrider.model.base import Block, LanguageModel, ModelOutput
from outrider.params import SamplingParams
from outrider.parts import Parts
from outrider.rng import Draws
from outrider.run.request import Emission, Origin, Request
from outrider.run.row import Row
from outrider.run.scheduler import Limits, Scheduler
from outrider.run.text import logprobs_of
from outrider.sampling import dead_end, processor_failed, warp
from outrider.tree.merge import stack_rows
from outrider.types import ROOT, Budget, DraftTree, Needs, Outcome
from outrider.verify.base import TargetView


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

    Tools that trace, explain or measure ``listen`` to its outcomes.
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
    ) -> None:
        parts.check(target)
        self.target, self.parts, self.tokenizer = target, parts, tokenizer
        self.limits = limits or Limits()
        self.stop_tokens = frozenset(stop_tokens)
        self._listeners: list[Callable[[Outcome], None]] = []
        self.needs = parts.needs
        self.scheduler = Scheduler(target, parts, self.limits, tokenizer, self.stop_tokens, self._observe)
        self.store = self.scheduler.store
        if parts.drafter is not None:
            if parts.drafter.bound:
                raise ConfigError(
                    f"the parts of {parts.name!r} already serve another engine",
                    why="drafters have state",
                    hint="Build fresh ones for each: preset(...).",
                )
            context = DraftContext(
                target=target,
                vocab_size=target.vocab_size,
                device=target.device,
                max_rows=self.limits.max_rows,
                max_context=self.max_context,
                tokenizer=tokenizer,
                stop_tokens=self.stop_tokens,
                draft_model=draft_model,
                prefix_entries=self.limits.prefix_entries,
                prefill_tokens=self.limits.prefill_tokens,
                sources=parts.drafter.sources,
            )
            parts.drafter.bind(context)
            parts.policy.bind(context)
            parts.drafter.bound = True

    # -- requests -----------------------------------------------------------------------------------------

    @property
    def max_context(self) -> int:
        """Tokens of prompt and output together that one row may have."""
        return self.scheduler.max_context

    @property
    def idle(self) -> bool:
        """Nothing runs and nothing waits."""
        return self.scheduler.idle

    def submit(self, prompt: Sequence[int], params: SamplingParams, stream: bool = True) -> Request:
        """Queue a prompt of token ids; without ``stream`` its text is there when it has finished, and not before.
        Raises ``RequestError`` for one that cannot be served."""
        return self.scheduler.submit(prompt, params, stream)

    def cancel(self, request: Request) -> None:
        """Stop a request now; its choices keep what they have, with finish_reason "cancelled"."""
        self.scheduler.cancel(request)

    def listen(self, listener: Callable[[Outcome], None], needs: Needs | None = None) -> None:
        """Tell ``listener`` the outcome of every step, and of prefill chunks where ``needs`` (or a part) asks for
        states or logits of the prompt. ``needs`` is what it wants to find in the outcomes."""
        self._listeners.append(listener)
        if needs is not None:
            self.needs = self.scheduler.needs = self.needs | needs

    # -- one step -----------------------------------------------------------------------------------------

    def step(self) -> list[Emission]:
        """Admit what fits, then propose, forward, verify and commit once for all rows."""
        self.scheduler.admit()
        if not self.scheduler.live:
            return []
        clock = _Clock()
        rows = [live.row for live in self.scheduler.live]
        draws = Draws(
            [live.stream for live in self.scheduler.live], [row.root_position for row in rows], self.target.device
        )
        tree = self._propose(rows, draws)
        clock.lap("draft")
        out = self._forward(tree, clock)
        logits = out.logits if self.parts.law is None else self.parts.law(out.logits, tree)
        p = warp(logits, [row.sampling for row in rows], tree)
        verdict = self.parts.verifier.verify(tree, TargetView(p, logits, out.hidden), draws)
        packed = verdict.lines()
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
            p=p,
            seconds=clock.seconds,
        )
        try:
            self._observe(outcome)
        finally:  # whatever a listener or a drafter does, rows that are done must leave
            clock.lap("other")
            self._account(tree, counts, clock)
        return emissions

    def _forward(self, tree: DraftTree, clock: _Clock) -> ModelOutput:
        """Score the tree. A row that is alone reads the end of its prompt along; the time is divided by tokens."""
        block, unread = Block.of_tree(tree), self.scheduler.unread()
        if not unread:
            out = self.target.forward(block, self.store, capture=self.needs.hidden)
            clock.lap("target")
            return out
        out = self.target.forward(block.behind(unread), self.store, logits=tree.shape[1])
        self.store.extend(0, [len(unread)])
        clock.lap("target")
        clock.seconds["prefill"] = clock.seconds["target"] * len(unread) / (len(unread) + tree.shape[1])
        clock.seconds["target"] -= clock.seconds["prefill"]
        return out

    def _propose(self, rows: list[Row], draws: Draws) -> DraftTree:
        drafter = self.parts.drafter
        if drafter is not None:
            plan = self.parts.policy.plan(rows)
            left = max(live.stop.max_tokens - live.stop.count for live in self.scheduler.live)
            room = self.limits.max_nodes // len(rows) - 1
            # Beyond the last token that may be emitted nothing is worth drafting.
            budget = replace(plan, depth=min(plan.depth, left - 1), nodes=min(plan.nodes, room))
            if not budget.empty and not all(row.id in budget.skip for row in rows):
                tree = drafter.propose(rows, budget, draws) if not budget.skip else self._some(rows, budget, draws)
                tree = tree.to(self.target.device)
                keep = self.parts.policy.review(rows, tree) if self.parts.prunable and tree.shape[1] > 1 else None
                if keep is None:
                    return tree
                if max(keep) > 1:
                    return tree.first(keep)
        return DraftTree.roots([row.tokens[-1] for row in rows], self.target.device)

    def _some(self, rows: list[Row], budget: Budget, draws: Draws) -> DraftTree:
        """Drafts for the rows that are not skipped, the root alone for the others."""
        drafter = self.parts.drafter
        assert drafter is not None
        asked = [b for b, row in enumerate(rows) if row.id not in budget.skip]
        rest = [b for b, row in enumerate(rows) if row.id in budget.skip]
        index = torch.tensor(asked, device=draws.stream.device)
        own = Draws(draws.stream[index], draws.position[index])
        tree = drafter.propose([rows[b] for b in asked], budget, own)
        if not rest:
            return tree
        roots = DraftTree.build([([rows[b].tokens[-1]], [ROOT]) for b in rest], device=tree.tokens.device)
        return stack_rows([(asked, tree), (rest, roots)])

    def _emit(self, tree: DraftTree, packed: list[list[int]], logits: torch.Tensor) -> list[Emission]:
        """Append what was accepted to each row, token by token, until its text stops."""
        drafted = tree.shape[1] > 1
        tokens = (_host_tokens(tree)) if drafted else []
        origin = tree.origin.tolist() if drafted and tree.origin is not None else None
        emissions = []
        for b, (live, (count, bonus, *path)) in enumerate(zip(self.scheduler.live, packed, strict=True)):
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
            if kept and live.row.params.logprobs is not None:
                rows = logits[b, torch.tensor([0, *nodes][:kept], device=logits.device)]
                choice.logprobs = (choice.logprobs or []) + logprobs_of(rows, fresh, live.row.params.logprobs)
            live.row.tokens += fresh
            try:
                live.row.sampling.advance(fresh)
            except Exception as error:  # a user's processor: this row ends, others go on
                live.stop.reason, choice.error = "error", processor_failed(error)
            choice.token_ids += fresh
            choice.origins += origins
            if bonus < 0 and live.stop.reason is None:  # nothing can follow: this row ends, others go on
                live.stop.reason, choice.error = "error", dead_end(live.row.sampling)
            piece = live.stop.release(live.request.stream)
            choice.text += piece
            choice.finish_reason, choice.stop_reason = live.stop.reason, live.stop.cause
            emissions.append(Emission(live.request, choice, piece, fresh, origins))
        return emissions

    def _observe(self, outcome: Outcome) -> None:
        if self.parts.drafter is not None:
            self.parts.drafter.observe(outcome)
            self.parts.policy.observe(outcome)
        for listener in self._listeners:
            listener(outcome)

    def _account(self, tree: DraftTree, counts: list[int], clock: _Clock) -> None:
        """Count the step for every row that took part, and let finished rows go."""
        nodes = [len(t) - 1 for t, _ in tree.host] if tree.host is not None else None
        if nodes is None:
            nodes = (tree.real.sum(1) - 1).tolist() if tree.shape[1] > 1 else [0] * len(counts)
        finished = []
        for live, count, drafted in zip(self.scheduler.live, counts, nodes, strict=True):
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
            self.scheduler.leave(live)
        clock.lap("other")
        for stats in [x.choice.stats for x in (*self.scheduler.live, *finished)]:
            for part, seconds in clock.seconds.items():
                stats.seconds[part] += seconds


def _host_tokens(tree: DraftTree) -> list[list[int]]:
    return [tokens for tokens, _ in tree.host] if tree.host is not None else tree.tokens.tolist()
