"""A second, smaller language model as the drafter (Leviathan et al., arXiv 2211.17192; Chen et al., 2302.01318)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from outrider.cache.prefix import PrefixCache
from outrider.draft.base import DraftContext, Drafter
from outrider.errors import ConfigError, IncompatibleParts
from outrider.model.base import Block, LanguageModel
from outrider.rng import Draws
from outrider.sampling import Warped, warp
from outrider.tree.grow import Chain, Growing, Level, Scorer, Structure
from outrider.tree.merge import stack_rows
from outrider.types import Budget, DraftTree, Outcome

if TYPE_CHECKING:
    from outrider.run.row import Row

_SPARE = 1024
"""Slots behind the context for the nodes of a growing tree."""
_FEW = 4
"""So many missing tokens are fed with the head on; more are first read like a prompt."""


class DraftModel(Drafter):
    """Drafts with any causal model of the same vocabulary (sizes that differ only by padding are the same).

    The draft model's keys and values live in a sibling store, which follows what the target accepted. A row's store
    may lag behind (another drafter served it, or its last draft was accepted whole): the missing tokens are fed
    before the next draft.
    """

    name = "draft-model"

    def __init__(self, structure: Structure | None = None, model: LanguageModel | None = None) -> None:
        self.structure = structure or Chain()
        self.kinds, self.branching = self.structure.kinds, self.structure.branching
        self.model = model
        self._rows: list[int] = []  # row ids in the order of the store
        self._drafts: dict[int, _Drafted] = {}

    def bind(self, context: DraftContext) -> None:
        model = self.model or context.draft_model
        if model is None:
            raise ConfigError(
                "this preset drafts with a second model, but none was given",
                hint="Give LLM(..., draft_model=...) or --draft-model NAME.",
            )
        if not model.branching:
            raise IncompatibleParts(
                f"the draft model {model.name} has recurrent layers",
                why="its state cannot be taken back token by token while it drafts",
                hint="Draft with an attention model, or with 'sam' or 'pld'.",
            )
        self.model, self.vocab_size = model, context.vocab_size
        if model.device != context.device:
            raise IncompatibleParts(
                f"the draft model is on {model.device}, the target on {context.device}",
                hint="Load both on one device.",
            )
        self.limit = min(context.max_context, model.max_positions or context.max_context)
        self.prefill_tokens = context.prefill_tokens
        self.store = model.new_store(context.max_rows, self.limit + _SPARE)
        self.prefixes = PrefixCache(self.store, context.prefix_entries)

    # -- rows ---------------------------------------------------------------------------------------------

    def admit(self, row: Row) -> None:
        index = self.store.add()
        self._rows.append(row.id)
        self.prefixes.adopt(index, row.tokens[:-1])

    def fork(self, row: Row, clone: Row) -> None:
        self.store.fork(self._rows.index(row.id))
        self._rows.append(clone.id)

    def drop(self, row: Row) -> None:
        index = self._rows.index(row.id)
        self.prefixes.keep(index, row.tokens)
        self.store.free(index)
        last = self._rows.pop()
        if index < len(self._rows):
            self._rows[index] = last
        self._drafts.pop(row.id, None)

    # -- drafting -----------------------------------------------------------------------------------------

    def propose(self, rows: Sequence[Row], budget: Budget, draws: Draws) -> DraftTree:
        # Near the end of the draft model's own context it has nothing to say; other rows are not silenced by that.
        fits = [i for i, row in enumerate(rows) if len(row.tokens) + budget.depth <= self.limit]
        if len(fits) == len(rows):
            return self._draft(rows, budget, draws)
        rest = [i for i in range(len(rows)) if i not in fits]
        roots = DraftTree.roots([rows[i].tokens[-1] for i in rest], self._device)
        if not fits:
            return roots
        index = torch.tensor(fits, device=self._device)
        own = Draws(draws.stream[index], draws.position[index])
        return stack_rows([(fits, self._draft([rows[i] for i in fits], budget, own)), (rest, roots)])

    def _draft(self, rows: Sequence[Row], budget: Budget, draws: Draws) -> DraftTree:
        places = [self._rows.index(row.id) for row in rows]
        scorer = _ModelScorer(self, rows, places, self._catch_up(rows, places))
        tree = Growing.start(torch.tensor([row.tokens[-1] for row in rows], device=self._device))
        draft = self.structure.grow(scorer, tree, budget, draws).finish(self.name)
        self._remember(rows, scorer)
        return draft

    @property
    def _device(self) -> torch.device:
        assert self.model is not None
        return self.model.device

    def _catch_up(self, rows: Sequence[Row], places: list[int]) -> Tensor:
        """Feed what the store lacks, the root included; returns the scores behind each root, f[B,1,V]."""
        assert self.model is not None
        rest: list[list[int]] = [[] for _ in self._rows]
        lengths = list(self.store.lengths)
        for row, place in zip(rows, places, strict=True):  # a step that failed behind us may have left the root stored
            lengths[place] = min(lengths[place], len(row.tokens) - 1)
        if lengths != self.store.lengths:
            self.store.rewind(lengths)
        for row, place in zip(rows, places, strict=True):
            rest[place] = [self._known(token) for token in row.tokens[self.store.lengths[place] :]]
        while behind := [place for place, tokens in enumerate(rest) if len(tokens) > _FEW]:
            span = range(behind[0], behind[-1] + 1)
            chunk = max(1, self.prefill_tokens // len(span))
            block = Block.of_lists([rest[i][:-1][:chunk] if i in behind else [] for i in span], self._device)
            self.model.forward(block, self.store, first_row=span.start, logits="none")
            self.store.extend(span.start, block.counts)
            for i, count in zip(span, block.counts, strict=True):
                rest[i] = rest[i][count:]
        block = Block.of_lists(rest, self._device)
        logits = self.model.forward(block, self.store).logits
        self.store.extend(0, block.counts)
        last = torch.tensor([block.counts[place] - 1 for place in places], device=self._device)
        return self.fit(logits[torch.tensor(places, device=self._device), last][:, None])

    def _known(self, token: int) -> int:
        """A padding id of the target's vocabulary that the draft model lacks is read as token 0."""
        assert self.model is not None
        return token if token < self.model.vocab_size else 0

    def fit(self, logits: Tensor) -> Tensor:
        """f[B,W,V of the draft] -> f[B,W,V of the target]: padding rows cut, missing ones impossible."""
        have = logits.shape[2]
        if have < self.vocab_size:
            return torch.nn.functional.pad(logits, (0, self.vocab_size - have), value=float("-inf"))
        return logits[:, :, : self.vocab_size]

    def _remember(self, rows: Sequence[Row], scorer: _ModelScorer) -> None:
        """Note which drafted tokens the store holds now, as a trie per row for ``observe``."""
        tokens, slots = scorer.tokens.tolist(), scorer.above.tolist()
        for b, row in enumerate(rows):
            self._drafts[row.id] = _Drafted(tokens[b], slots[b])

    def observe(self, outcome: Outcome) -> None:
        if outcome.verdict is None or not self._drafts:
            return
        paths: list[list[int]] = [[] for _ in self._rows]
        for row, emitted in zip(outcome.rows, outcome.emitted, strict=True):
            draft = self._drafts.pop(row.id, None)
            if draft is not None:  # the last emitted token is the next root, which is always fed again
                paths[self._rows.index(row.id)] = draft.follow(emitted[:-1])
        counts = [len(path) for path in paths]
        width = max(counts)
        if width:
            padded = [path + [-1] * (width - len(path)) for path in paths]
            self.store.commit(torch.tensor(padded, device=self._device), counts)


class _Drafted:
    """Tokens whose keys and values stand behind a row's stored past: slot i holds ``tokens[i]`` under slot
    ``above[i]`` (-1: directly behind the root)."""

    def __init__(self, tokens: list[int], above: list[int]) -> None:
        self.children: dict[tuple[int, int], int] = {}
        for slot, (token, parent) in enumerate(zip(tokens, above, strict=True)):
            self.children.setdefault((parent, token), slot)

    def follow(self, tokens: Sequence[int]) -> list[int]:
        """Slots of the longest known beginning of ``tokens``."""
        path, at = [], -1
        for token in tokens:
            slot = self.children.get((at, token))
            if slot is None:
                break
            path.append(slot)
            at = slot
        return path


class _ModelScorer(Scorer):
    """Expands nodes with one forward of the draft model per level. Expanded nodes take slots in the order of their
    expansion; the whole store runs along, rows that are not drafting computing padding."""

    def __init__(self, drafter: DraftModel, rows: Sequence[Row], places: list[int], root: Tensor) -> None:
        self.drafter, self.rows, self.root = drafter, rows, root
        device = root.device
        self.places = torch.tensor(places, device=device)
        self.whole = places == list(range(len(drafter._rows)))
        greedy = [row.params.temperature == 0 for row in rows]
        self.greedy, self.all_greedy = torch.tensor(greedy, device=device), all(greedy)
        b = len(rows)
        self.nodes = torch.zeros(b, 0, dtype=torch.int64, device=device)  # tree index per slot
        self.tokens = self.nodes
        self.above = self.nodes  # slot of the parent, -1 for children of the root

    def warp(self, logits: Tensor, paths: Tensor) -> Warped:
        return warp(logits, [row.sampling for row in self.rows], paths)

    def expand(self, tree: Growing, nodes: Tensor) -> Level:
        b, w = nodes.shape
        paths = tree.paths.gather(1, nodes[:, :, None].expand(b, w, tree.paths.shape[2]))
        if self.nodes.shape[1] == 0 and tree.tokens.shape[1] == 1:
            return Level(self.root, self, paths)
        tokens = tree.tokens.gather(1, nodes)
        block = self._block(tree, nodes, tokens)
        self._place(tree, nodes, tokens)
        assert self.drafter.model is not None
        logits = self.drafter.model.forward(block, self.drafter.store).logits
        return Level(self.drafter.fit(logits if self.whole else logits[self.places]), self, paths)

    def _place(self, tree: Growing, nodes: Tensor, tokens: Tensor) -> None:
        """Give the expanded nodes their slots."""
        parents = tree.parents.gather(1, nodes)
        parents = torch.where(parents < 0, 0, parents)
        same = self.nodes[:, None, :] == parents[:, :, None]  # b[B,W,E]
        slot = torch.where(same.any(2), same.int().argmax(2), -1) if self.nodes.shape[1] else torch.full_like(nodes, -1)
        self.above = torch.cat([self.above, slot], dim=1)
        self.nodes = torch.cat([self.nodes, nodes], dim=1)
        self.tokens = torch.cat([self.tokens, tokens], dim=1)

    def _block(self, tree: Growing, nodes: Tensor, tokens: Tensor) -> Block:
        offset, (b, w) = self.nodes.shape[1], nodes.shape
        known = torch.where(tokens < self.drafter.model.vocab_size, tokens, 0)  # type: ignore[union-attr]
        if not self.drafter.branching:
            return Block(self._spread(known, 0), [w] * len(self.drafter._rows), offset=offset)
        columns = torch.cat([self.nodes, nodes], dim=1)
        seen = tree.ancestors.gather(1, nodes[:, :, None].expand(b, w, tree.ancestors.shape[2]))
        seen = seen.gather(2, columns[:, None, :].expand(b, w, offset + w))
        depth = tree.depth.gather(1, nodes) - 1  # the root is stored: its children take the next position
        earlier = tree.depth.gather(1, self.nodes) - 1
        return Block(
            tokens=self._spread(known, 0),
            counts=[w] * len(self.drafter._rows),
            depth=self._spread(depth, 0),
            ancestors=self._spread(seen, True),
            offset=offset,
            earlier=self._spread(earlier, 0),
        )

    def _spread(self, x: Tensor, fill: int | bool) -> Tensor:
        """From the rows that draft to all rows of the store."""
        if self.whole:
            return x
        full = x.new_full((len(self.drafter._rows), *x.shape[1:]), fill)
        full[self.places] = x
        return full
