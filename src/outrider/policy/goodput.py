"""Draft as much as pays, and nothing where nothing does: the length that maximises goodput.

Goodput is the expected number of emitted tokens of the whole batch per second (SmartSpec: Liu et al., arXiv 2406.14066,
section 4). For drafts cut to k nodes:

    goodput(k) = sum over rows of (1 + accepted nodes expected of the first k) / seconds of a step with k nodes

with k = 0, the plain step, among the candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from outrider.errors import check_number
from outrider.policy.acceptance import Book, Followed, Kind, ladder
from outrider.policy.base import Policy
from outrider.policy.cost import StepCost
from outrider.policy.explore import Purse, Tries
from outrider.policy.learnt import GPU, LearntCost, LearntDraft, assumed
from outrider.policy.sources import Asked, Source, Step, best_length, cut, first_origins, levels, most_nodes, sizes
from outrider.types import Budget, DraftTree, Outcome

if TYPE_CHECKING:
    from outrider.draft.base import DraftContext
    from outrider.run.row import Row

FREE = 0.02
"""A look-up that takes less than this of the time that its tokens would take by plain steps is always asked, and its
proposals are judged one by one."""
GRACE = 2.0
"""Plain steps that trying may cost before there has been time to earn them."""
WORTH_TRYING = 0.25
"""Tokens a dropped draft must promise for its forward to be measured again."""
LOOK = 8
"""Tokens after which a draft that is right so far is counted, though its end has not been reached."""
CAREFUL = 4
"""Nodes verified for a drafter of which nothing was accepted yet; later at most twice as many as ever were."""
REST = 16
"""Dropped proposals in a row after which a look-up is asked every second time; after twice as many, every fourth."""
FEW = 8
"""Rows up to which each one's own evidence is looked at; among more it averages out."""
PATIENCE = 16
"""Steps for which a verdict stands on a drafter of which nothing new is known."""


class Goodput(Policy):
    """The plan of ``inner``, cut to the length that maximises goodput, and to nothing where plain decoding is faster.

    ``cost`` is what a profile measured; without it, costs start from what such a device usually takes. Either way they
    follow the steps that are seen (``Outcome.seconds``; medians, so that one slow step changes nothing). Acceptance is
    learnt from the outcomes, engine-wide and per request (``acceptance.Book``), from an optimistic start.

    Two decisions are made per step. ``plan`` chooses, per drafter of a combination, how much to ask for: everything of
    drafters that cost nothing, what pays of the others. ``review`` sees which drafter proposed how much for whom, and
    cuts all drafts at the common length that pays now. Costs are those of the dense batch: a forward computes as many
    nodes for every row as for the longest, so one common length is the optimum, and rows are skipped only where a
    drafter would first have to read more of their text than it will repay.

    Drafting ends when it comes to less than ``leave`` times plain decoding, and is taken up again above ``back`` times.
    Drafts of look-up that were dropped are held against the text that followed (``Followed``), so that their return is
    noticed for nothing; other drafters are tried again at growing gaps, and what tries lose stays within ``explore`` of
    all time.

    **Why the law does not change.** Length and skipped rows are chosen before anything is drafted, from outcomes and
    seconds of *earlier* rounds alone. Given that past, an exact rule is exact for every length; the draws of the round
    are keyed by its root and independent of the past; so each round extends the text by the target's law whatever the
    length was, and by induction so does the whole. Times may depend on tokens, but only on earlier ones. ``review``
    does see tokens; it is asked only where that is harmless (``Parts.prunable``): the rule never reads how nodes were
    drawn, or nothing was drawn, and then the proposals themselves are functions of the past. Since decisions depend on
    time, runs repeat their text (with ``Match``) or its law, not their speed.
    """

    def __init__(
        self,
        inner: Policy,
        cost: StepCost | None = None,
        *,
        leave: float = 1.02,
        back: float = 1.08,
        explore: float = 0.01,
    ) -> None:
        check_number("leave", leave, 0)
        check_number("back", back, leave)
        check_number("explore", explore, 0, 1)
        self.inner, self.known, self.leave, self.back = inner, cost, leave, back
        self.purse = Purse(explore)
        self.book = Book()
        self.cost = LearntCost(GPU if cost is None else cost)
        self.steps = 0
        self._sources: list[Source] = []
        self._names: tuple[tuple[str, ...], ...] = ()
        self._following: dict[int, Followed] = {}
        self._off: set[Kind] = set()  # kinds of proposals that were dropped the last time
        self._retry, self._plain = Tries(), Tries(first=4, at=3)
        self._step = Step()
        self._gain = 1.0  # goodput of the latest draft over that of plain decoding
        self._newest = -1

    def core(self) -> Policy:
        return self.inner

    def over(self, core: Policy) -> Policy:
        return Goodput(core, self.known, leave=self.leave, back=self.back, explore=self.purse.share)

    def bind(self, context: DraftContext) -> None:
        self.inner.bind(context)
        self._names = context.sources
        if self.known is None:
            self.cost = LearntCost(assumed(context))

    # -- before drafting ----------------------------------------------------------------------------------

    def plan(self, rows: Sequence[Row]) -> Budget:
        full = self.inner.plan(rows)
        self._close()
        if full.empty or not rows:
            return full
        left = max(row.params.max_tokens - row.output_length for row in rows) - 1
        if left <= 0:  # nothing is worth drafting behind the last token
            return replace(full, depth=0, nodes=0)
        self.steps += 1
        shares = [replace(share, depth=min(share.depth, left)) for share in self._shares(full)]
        self._welcome(rows)
        step = self._step = Step(len(rows), sum(len(row.tokens) for row in rows) / len(rows))
        step.plain = self.cost.curve(step.rows, step.context, (0,))[0]
        if self._plain_due(step):
            step.kind = "plain"
            return replace(full, depth=0, nodes=0)
        lengths = [self._length(source, share, rows) for source, share in zip(self._sources, shares, strict=True)]
        if not any(lengths):
            return replace(full, depth=0, nodes=0)
        skip = full.skip | (self._skipped(rows, lengths[0]) if len(shares) == 1 else frozenset())
        self._ask(rows, skip, lengths)
        step.merged = full.nodes > max(share.nodes for share in shares)
        parts = tuple(cut(share, length) for share, length in zip(shares, lengths, strict=True))
        if len(parts) == 1:
            return replace(parts[0], skip=skip)
        depth, nodes = max(part.depth for part in parts), sum(part.nodes for part in parts)
        return replace(full, depth=depth, nodes=min(full.nodes, nodes), shares=parts)

    def _shares(self, full: Budget) -> tuple[Budget, ...]:
        """What is decided on separately: each drafter of a combination, where their names are known."""
        parts = len(full.shares)
        shares = full.shares if parts > 1 and parts == len(self._names) else (full,)
        if len(self._sources) != len(shares):
            names = self._names if len(shares) > 1 else (tuple(name for part in self._names for name in part),)
            drafts = {} if self.known is None else self.known.drafts
            known = [next((drafts[name] for name in part if name in drafts), None) for part in names]
            self._sources = [Source(i, frozenset(part), LearntDraft(known[i])) for i, part in enumerate(names)]
        return shares

    def _welcome(self, rows: Sequence[Row]) -> None:
        """New requests may be of another kind: what was given up is tried again soon. Old ones are forgotten."""
        newest = max(row.id for row in rows)
        if newest > self._newest:
            self._newest = newest
            self._retry.restart(self.steps)
            for source in self._sources:
                source.tries.restart(self.steps)
                source.judged = -1
        if self.steps % 64 == 0:
            ids = {row.id for row in rows}
            self.book.keep(ids)
            self._following = {row: found for row, found in self._following.items() if row in ids}
            for source in self._sources:
                source.read = {row: at for row, at in source.read.items() if row in ids}

    def _plain_due(self, step: Step) -> bool:
        """Whether it is time for a step without drafts, to know what it takes."""
        known = self.steps < 3 or self.cost.plain_steps(step.rows, step.context) > 0
        if known and not self._plain.due(self.steps):
            return False
        grace = GRACE * step.plain if self.purse.share else 0.0
        return self.purse.affords(max(self._gain - 1, 0.0) * step.plain, grace)

    def _length(self, source: Source, share: Budget, rows: Sequence[Row]) -> int:
        """How many nodes to ask a drafter for."""
        step, most = self._step, most_nodes(share)
        if most == 0:
            return 0
        draft = source.draft
        # Of a tree with fewer nodes the drafter itself knows the best shape: it is told before, not cut afterwards.
        source.branching = share.width > 1
        chain = not source.branching and source.followed
        source.free = chain and source.takes_at_most(levels(share, most), FREE * step.plain * source.yields)
        if source.free:
            return 0 if self.steps % (1 << min(source.dropped // REST, 2)) else most
        settled = source.judged > max(self.steps - PATIENCE, -1)
        if settled and (source.on or not source.tries.due(self.steps)):
            return min(source.length, most)
        lengths = ladder(min(most, max(CAREFUL, 2 * source.reach)))
        forward = self.cost.curve(step.rows, step.context, lengths)
        asked = 1 - (1 - source.spoke) ** len(rows)  # somebody has a draft
        reading = max(source.reading_per_step(row) for row in rows)
        seconds = [
            step.plain + asked * (time - step.plain) + draft.seconds(levels(share, length)) + reading
            for length, time in zip(lengths[1:], forward[1:], strict=True)
        ]
        tokens = self._tokens(source, rows, lengths)
        best = best_length(tokens, seconds)
        gain = tokens[best] / seconds[best] * step.plain / len(rows)
        length, source.judged, source.length = lengths[best + 1], self.steps, 0
        if gain > (self.leave if source.on else self.back):
            source.on, source.length, self._gain = True, length, gain
            return length
        if source.on:
            source.on = False
            source.tries.later(self.steps)
        elif source.tries.due(self.steps):
            verified = 0.0 if source.followed else forward[best + 1] - step.plain
            loss = draft.seconds(levels(share, length)) + max(map(source.reading, rows)) + verified
            if self.purse.affords(loss):
                source.tries.later(self.steps)
                if self.steps - source.asked >= source.tries.first:  # much may have changed
                    self.book.age(source.index, [row.id for row in rows])
                step.kind = "try"
                return length
            source.tries.at = self.steps + PATIENCE
        return 0

    def _tokens(self, source: Source, rows: Sequence[Row], lengths: Sequence[int]) -> list[float]:
        """Tokens that the batch is expected to emit when the drafter is asked for each of ``lengths`` but 0."""
        count = len(rows)
        curves = [source.gains(self.book, row.id, lengths) for row in rows[: count if count <= FEW else 0]]
        if not curves:
            curves = [[count * gain for gain in source.gains(self.book, None, lengths)]]
        return [count + source.spoke * sum(gains) for gains in zip(*(curve[1:] for curve in curves), strict=True)]

    def _skipped(self, rows: Sequence[Row], length: int) -> frozenset[int]:
        """Rows whose unread text costs the drafter more than their drafts will repay."""
        source, worth = self._sources[0], self._step.plain / len(rows)
        if source.free or len(rows) == 1:
            return frozenset()
        size = length.bit_length() if source.branching else 0
        kind = Kind(0, source.origin, size, source.branching)
        costs = {row.id: source.reading_per_step(row) for row in rows}
        return frozenset(
            row for row, cost in costs.items() if cost > 0 and self.book.gains(kind, row, length)[-1] * worth < cost
        )

    def _ask(self, rows: Sequence[Row], skip: frozenset[int], lengths: Sequence[int]) -> None:
        """Note what is asked of whom."""
        mine = [row for row in rows if row.id not in skip]
        asked = []
        for source, length in zip(self._sources, lengths, strict=True):
            if length and mine:
                asked.append(Asked(source, max(map(source.behind, mine))))
                source.read.update((row.id, len(row.tokens)) for row in mine)
                source.asked = self.steps
        self._step.asked = asked

    # -- after drafting -----------------------------------------------------------------------------------

    def review(self, rows: Sequence[Row], tree: DraftTree) -> list[int] | None:
        within = self.inner.review(rows, tree)
        if tree.host is None:  # it would have to be waited for, and drafters on a device were judged by ``plan``
            return within
        drafted, step = sizes(tree), self._step
        longest = max(drafted)
        if longest <= 0:
            return within
        origins = first_origins(tree)
        reach = max(self._source(origin).reach for origin in origins)
        lengths = ladder(min(longest, max(CAREFUL, 2 * reach)))
        step.served, step.depth = self._served(origins, drafted), tree.depth_bound
        tokens, kinds = self._judge(rows, tree, origins, lengths)
        seconds = self.cost.curve(step.rows, step.context, lengths)
        best = best_length(tokens[1:], seconds[1:]) + 1
        gain = tokens[best] / seconds[best] * seconds[0] / len(rows)
        if gain > (self.back if kinds <= self._off else self.leave):
            self._off -= kinds
            self._gain = gain
            for kind in kinds:
                self._sources[kind.source].dropped = 0
        elif not self._try_again(tokens[best] - len(rows), seconds[best] - seconds[0]):
            self._off |= kinds
            for kind in kinds:
                self._sources[kind.source].dropped += 1
            return [1] * len(rows)
        step.kept = lengths[best]
        if step.kept >= longest:
            return within
        kept = [1 + min(step.kept, size) for size in drafted]
        return kept if within is None else [min(pair) for pair in zip(kept, within, strict=True)]

    def _judge(
        self, rows: Sequence[Row], tree: DraftTree, origins: Sequence[str], lengths: Sequence[int]
    ) -> tuple[list[float], set[Kind]]:
        """Tokens that the batch is expected to emit with its drafts cut at each of ``lengths``, and the kinds of drafts
        there are. Drafts that nobody follows yet are followed from here on."""
        tokens, kinds, branching = [float(len(rows))] * len(lengths), set(), not tree.is_chain
        for row, origin, line in zip(rows, origins, tree.host or (), strict=True):
            size = len(line[0]) - 1
            if size == 0:
                continue
            kind = self._kind(origin, size, branching)
            self._sources[kind.source].followed = True
            kinds.add(kind)
            gains = self.book.gains(kind, row.id if len(rows) <= FEW else None, size)
            last = len(gains) - 1
            tokens = [count + gains[min(i, last)] for i, count in enumerate(tokens)]
            if row.id not in self._following:
                self._following[row.id] = Followed(kind, *line)
        return tokens, kinds

    def _try_again(self, promised: float, loss: float) -> bool:
        """Whether a draft that seems not to pay is verified all the same, to measure what that takes."""
        if promised < WORTH_TRYING or not self._retry.due(self.steps) or not self.purse.affords(loss):
            return False
        self._retry.later(self.steps)
        self._step.kind = "try"
        return True

    def _kind(self, origin: str, size: int, branching: bool) -> Kind:
        """The kind of a draft. Its size is evidence where the drafter chose it, and its shape where it branches."""
        source = self._source(origin)
        source.origin = origin
        branching |= source.branching
        return Kind(source.index, origin, size.bit_length() if source.free or branching else 0, branching)

    def _source(self, origin: str) -> Source:
        return next((source for source in self._sources if origin in source.names), self._sources[0])

    # -- afterwards ---------------------------------------------------------------------------------------

    def observe(self, outcome: Outcome) -> None:
        self.inner.observe(outcome)
        if outcome.verdict is None or not self._sources:
            return
        step, tree, rows = self._step, outcome.tree, outcome.rows
        step.seconds, step.nodes = outcome.seconds, tree.shape[1]
        step.emitted = sum(map(len, outcome.emitted)) / len(rows)
        drafted = sizes(tree)
        origins = first_origins(tree) if any(drafted) else [""] * len(rows)
        lines = None
        for b, row in enumerate(rows):
            followed = self._following.get(row.id)
            if followed is not None:
                self._follow(row, followed, outcome.emitted[b])
            elif drafted[b]:
                lines = lines or outcome.verdict.lines()
                count, _, *path = lines[b]
                kind = self._kind(origins[b], drafted[b], not tree.is_chain)
                self._learn(kind, row.id, path[1:count], drafted[b])
        if step.asked:
            step.depth = max(step.depth, tree.depth_bound)
            step.served = step.served or self._served(origins, drafted)
            step.listen(outcome.emitted)

    def _served(self, origins: Sequence[str], drafted: Sequence[int]) -> list[int]:
        """Number of the source of each row's draft, -1 where there is none."""
        return [self._source(origin).index if size else -1 for origin, size in zip(origins, drafted, strict=True)]

    def _follow(self, row: Row, followed: Followed, emitted: Sequence[int]) -> None:
        known = followed.follow(emitted)
        if known or len(followed.hits) >= max(LOOK, 2 * self._step.kept):
            del self._following[row.id]
            seen = len(followed.tokens) - 1 if known else followed.at
            self._learn(followed.kind, row.id, followed.hits, seen)

    def _learn(self, kind: Kind, row: int, hits: Sequence[int], seen: int) -> None:
        self.book.add(kind, row, hits, seen)
        source = self._sources[kind.source]
        source.judged = -1
        if hits:
            source.dropped = 0
            source.reach = max(source.reach, hits[-1])
            if not source.on:
                source.tries.soon(self.steps)

    def _close(self) -> None:
        """Book the last step. Its ``seconds`` are read only now: the engine goes on counting after ``observe``."""
        step, self._step = self._step, Step()
        total = sum(step.seconds.values())
        if not total:
            return
        self.purse.time += total
        if "prefill" in step.seconds:  # a prompt was read in the same forward: no step like others
            return
        self.cost.observe(step.rows, step.nodes, step.context, total - step.drafting)
        if step.kind == "plain":
            self.purse.spent += max(self._gain - 1, 0.0) * total
            self._plain.later(self.steps)
        elif step.kind == "try":
            self.purse.spent += max(total - step.emitted * step.plain, 0.0)
        if step.nodes == 1:
            self._plain.at = max(self._plain.at, self.steps + self._plain.gap)
