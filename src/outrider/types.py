"""The central types, and the legend of shape letters used everywhere.

    B rows (requests decoding together)      N nodes of the draft tree      V vocabulary
    S slots of the key/value store           D hidden width                 C captured layers
    A nodes on the accepted path             W width of a drafting frontier

``i64[B,N]`` reads "an int64 tensor of shape B x N", ``f`` is any floating type, ``b`` is bool.

Node 0 of every tree is the *root*: the last emitted token, whose keys and values are not stored yet.
A chain, a look-up hit and "no draft" (N = 1) are all trees.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum, StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from outrider.run.row import Row
    from outrider.sampling import Warped

ROOT, PADDING = -1, -2
"""Values of ``DraftTree.parents`` that are not node indices."""

TARGET = 0
"""Index of the target itself in ``DraftTree.origins``: tokens nobody drafted."""


class Role(IntEnum):
    """What a node is for. Only ``CANDIDATE`` nodes can be accepted."""

    CANDIDATE = 0
    PROBE = 1
    """A row of the target's forward that is never a candidate (Jacobi windows, noise, prompt tokens)."""
    LATE = 2
    """A candidate leaf drafted after the target's forward began."""


class Drawn(IntEnum):
    """How a node was proposed. It belongs to the node, since trees of several drafters merge."""

    POINT = 0
    """Chosen, not drawn: look-up, argmax, top-k. Its proposal law is a point mass."""
    IID = 1
    """Drawn from its law independently of its siblings."""
    WITHOUT_REPLACEMENT = 2
    """Drawn from its law with the earlier siblings removed; sibling order is the order of the draws."""
    GREEDY_MIXED = 3
    """The top n-1 tokens of the law and one draw from the rest of it."""


class Guarantee(StrEnum):
    """What a verifier promises about the emitted text, relative to plain decoding of the same law."""

    IDENTICAL = "identical"
    """Token for token the text of plain decoding, at every temperature and for any drafter."""
    EXACT = "exact"
    """The same distribution as plain decoding; token for token the same text at temperature 0."""
    RELAXED = "relaxed"
    """The distribution changes; the verifier states its bound."""


@dataclass(frozen=True)
class Needs:
    """What a part wants from the target's forward. Nothing is captured that no part asks for."""

    hidden: tuple[int, ...] = ()
    """Layers whose outputs are captured: 0 is the embedding, L the last layer before the final norm,
    -1 the last after the final norm."""
    logits: bool = False
    """Logits of all nodes, rejected ones included (``Outcome.logits``)."""
    prefill_logits: bool = False
    """Logits at every prompt position (costs one head product per prompt token)."""
    draft_law: bool = False
    """A verifier that reads the drafter's law q."""

    def __or__(self, other: Needs) -> Needs:
        return Needs(
            hidden=tuple(sorted({*self.hidden, *other.hidden})),
            logits=self.logits or other.logits,
            prefill_logits=self.prefill_logits or other.prefill_logits,
            draft_law=self.draft_law or other.draft_law,
        )


@dataclass(frozen=True)
class Budget:
    """An upper bound for one proposal, per row: ``depth`` drafted levels, ``nodes`` drafted nodes
    (the root not counted), ``width`` siblings per node."""

    depth: int
    nodes: int
    width: int = 1
    more: Callable[[Any], Tensor] | None = None
    """Asked after each drafted level with a ``policy.base.LevelView``: b[B], which rows to draft one level deeper.
    None: all of them."""
    shares: tuple[Budget, ...] = ()
    """For a combination: what each of its drafters was given by its own policy."""
    skip: frozenset[int] = frozenset()
    """Ids of rows that are not to be drafted for in this step: they take the plain path."""

    def share(self, child: int) -> Budget:
        """The budget of drafter number ``child`` of a combination: its own, within this one."""
        if not self.shares:
            return self
        own = self.shares[child]
        return replace(own, depth=min(own.depth, self.depth), nodes=min(own.nodes, self.nodes))

    @property
    def empty(self) -> bool:
        return self.depth <= 0 or self.nodes <= 0


@dataclass
class DraftTree:
    """Candidates of B rows, padded to N nodes; parents stand before their children.

    ``law[b,n]`` indexes ``laws[b]`` (f[B,Q,V] rows of q after ``warp``) with the distribution node n was drawn
    from; -1 where the proposal is a point mass. ``origin`` indexes ``origins`` (0 is the target: the root).
    ``depth_bound`` and ``width_bound`` are host-side upper bounds, so that nothing waits for a device.
    """

    tokens: Tensor  # i64[B,N]
    parents: Tensor  # i64[B,N], ROOT for node 0, PADDING for padding
    depth_bound: int
    width_bound: int = 1
    drawn: Tensor | None = None  # i64[B,N]; None: all POINT
    law: Tensor | None = None  # i64[B,N]; None: all -1
    laws: Tensor | None = None  # f[B,Q,V]; None: nothing was drawn
    role: Tensor | None = None  # i64[B,N]; None: all CANDIDATE
    origin: Tensor | None = None  # i64[B,N]; None: every node but the root comes from origins[1]
    origins: tuple[str, ...] = ("target", "draft")
    host: list[tuple[list[int], list[int]]] | None = field(default=None, repr=False)
    """(tokens, parents) per row without padding, where the builder had them as lists."""

    @property
    def shape(self) -> tuple[int, int]:
        return self.tokens.shape[0], self.tokens.shape[1]

    @property
    def is_chain(self) -> bool:
        """No node has two children (known on the host)."""
        return self.width_bound <= 1

    @cached_property
    def real(self) -> Tensor:
        """b[B,N]: nodes that are not padding."""
        return self.parents != PADDING

    @cached_property
    def ancestors(self) -> Tensor:
        """b[B,N,N]: ``ancestors[b,i,j]`` when j is i or an ancestor of i. Padding sees only itself."""
        b, n = self.shape
        if self._small_on_host:
            return torch.from_numpy(self._host_ancestors())
        eye = torch.eye(n, dtype=torch.bool, device=self.tokens.device).expand(b, n, n)
        if self.depth_bound == 0 or n == 1:
            return eye
        if self.is_chain:  # node i hangs under node i-1
            lower = eye[0].float().cumsum(0).bool().expand(b, n, n)
            real = self.real
            return torch.where(real[:, :, None] & real[:, None, :], lower, eye)
        reach = eye
        jump = self.parents.clamp(min=0)  # the root and padding point at node 0; fixed below
        steps = max(1, self.depth_bound.bit_length())
        for _ in range(steps):  # after k doublings every ancestor within 2**k levels is marked
            index = jump[:, :, None].expand(b, n, n)
            reach = reach | reach.gather(1, index)
            jump = jump.gather(1, jump)
        return torch.where(self.real[:, :, None] & self.real[:, None, :], reach, eye)

    @property
    def _small_on_host(self) -> bool:
        """Whether a loop over the nodes is cheaper than a dozen tensor calls."""
        return self.host is not None and self.tokens.device.type == "cpu" and self.tokens.numel() <= 1024

    def _host_ancestors(self) -> np.ndarray:
        b, n = self.shape
        seen = np.zeros((b, n, n), dtype=bool)
        seen[:, range(n), range(n)] = True
        for row, (_, parents) in zip(seen, self.host or (), strict=True):
            for node, parent in enumerate(parents):
                if parent >= 0:
                    row[node, : parent + 1] |= row[parent, : parent + 1]
        return seen

    @cached_property
    def depth(self) -> Tensor:
        """i64[B,N]: 0 for the root (and for padding)."""
        if self._small_on_host:
            table = np.zeros(self.shape, dtype=np.int64)
            for row, (_, parents) in zip(table, self.host or (), strict=True):
                for node, parent in enumerate(parents):
                    if parent >= 0:
                        row[node] = row[parent] + 1
            return torch.from_numpy(table)
        return self.ancestors.sum(-1) - 1

    @cached_property
    def sibling_rank(self) -> Tensor:
        """i64[B,N]: how many earlier nodes share the parent."""
        same = (self.parents[:, :, None] == self.parents[:, None, :]) & self.real[:, :, None]
        return same.tril(-1).sum(-1)

    @cached_property
    def children(self) -> Tensor:
        """i64[B,N,width_bound]: children in order, -1 where there are no more."""
        b, n = self.shape
        table = torch.full((b, n, self.width_bound + 1), -1, dtype=torch.int64, device=self.tokens.device)
        child = self.parents >= 0
        index = torch.arange(n, device=self.tokens.device).expand(b, n)
        rank = torch.where(child, self.sibling_rank, self.width_bound).clamp(max=self.width_bound)
        rows = torch.arange(b, device=self.tokens.device)[:, None].expand(b, n)
        table[rows, self.parents.clamp(min=0), rank] = torch.where(child, index, -1)
        return table[:, :, : self.width_bound]

    def first(self, counts: Sequence[int]) -> DraftTree:
        """The tree of the first ``counts[b]`` nodes of each row (at least the root). Parents stand before their
        children, so what is left is a tree."""
        width = max(counts)
        if width >= self.shape[1] and min(counts) >= width:
            return self
        keep = torch.tensor(counts, device=self.tokens.device)[:, None] > torch.arange(width, device=self.tokens.device)

        def cut(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[:, :width]

        host = self.host
        if host is not None:
            host = [(tokens[:count], parents[:count]) for (tokens, parents), count in zip(host, counts, strict=True)]
        return replace(
            self,
            tokens=self.tokens[:, :width],
            parents=torch.where(keep, self.parents[:, :width], PADDING),
            depth_bound=min(self.depth_bound, width - 1),
            drawn=cut(self.drawn),
            law=cut(self.law),
            role=cut(self.role),
            origin=cut(self.origin),
            host=host,
        )

    def to(self, device: torch.device | str) -> DraftTree:
        """The same tree on another device."""
        if self.tokens.device == torch.device(device):
            return self

        def move(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.to(device)

        return DraftTree(
            tokens=self.tokens.to(device),
            parents=self.parents.to(device),
            depth_bound=self.depth_bound,
            width_bound=self.width_bound,
            drawn=move(self.drawn),
            law=move(self.law),
            laws=move(self.laws),
            role=move(self.role),
            origin=move(self.origin),
            origins=self.origins,
            host=self.host,
        )

    @classmethod
    def roots(cls, tokens: Sequence[int] | Tensor, device: torch.device | str = "cpu") -> DraftTree:
        """No draft: N = 1. ``tokens`` i64[B], the last emitted token of each row."""
        root = torch.as_tensor(tokens, dtype=torch.int64, device=device)[:, None]
        return cls(tokens=root, parents=torch.full_like(root, ROOT), depth_bound=0)

    @classmethod
    def build(
        cls,
        rows: Sequence[tuple[Sequence[int], Sequence[int]]],
        origin: str = "draft",
        device: torch.device | str = "cpu",
    ) -> DraftTree:
        """Point-mass trees from host lists: per row ``(tokens, parents)``, node 0 being the root (parent -1)."""
        n = max(len(tokens) for tokens, _ in rows)
        tokens = [list(t) + [0] * (n - len(t)) for t, _ in rows]
        parents = [list(p) + [PADDING] * (n - len(p)) for _, p in rows]
        depth, width = 0, 1
        for _, row in rows:
            levels, kids = [0] * len(row), [0] * len(row)
            for node in range(1, len(row)):
                parent = row[node]
                if not 0 <= parent < node:
                    raise ValueError(f"parents must stand before their children: node {node} has parent {parent}")
                levels[node] = levels[parent] + 1
                kids[parent] += 1
            depth, width = max(depth, max(levels)), max(width, max(kids))
        return cls(
            tokens=torch.tensor(tokens, dtype=torch.int64, device=device),
            parents=torch.tensor(parents, dtype=torch.int64, device=device),
            depth_bound=depth,
            width_bound=width,
            origins=("target", origin),
            host=[(list(t), list(p)) for t, p in rows],
        )

    def origin_of(self) -> Tensor:
        """i64[B,N]: ``origin`` with the default filled in."""
        if self.origin is not None:
            return self.origin
        origin = torch.ones_like(self.tokens)
        origin[:, 0] = TARGET
        return origin


@dataclass
class Verdict:
    """What a verifier decided. ``path`` i64[B,A] holds node indices from the root (always accepted) down,
    -1 behind ``count`` i64[B] (1 = the root alone). ``bonus`` i64[B] is the token the target adds after
    the path. ``fallbacks`` b[B] marks rows whose residual was all zero from rounding, so that the bonus was drawn
    from p itself: expected about never, counted when it happens. ``host`` holds ``[count, bonus, *path]`` per row
    where the rule ran on the host."""

    path: Tensor
    count: Tensor
    bonus: Tensor
    reasons: Tensor | Callable[[], Tensor] | None = None
    fallbacks: Tensor | None = None
    host: list[list[int]] | None = None

    @cached_property
    def why(self) -> Tensor | None:
        """f[B,N]: the probability with which each tested node would be accepted, NaN where it was not tested.
        Worked out when somebody asks."""
        return self.reasons() if callable(self.reasons) else self.reasons

    def lines(self) -> list[list[int]]:
        """``[count, bonus, *path]`` per row: the step's one copy to the host."""
        if self.host is not None:
            return self.host
        return torch.cat([self.count[:, None], self.bonus[:, None], self.path], dim=1).tolist()


@dataclass
class Outcome:
    """The only feedback parts get after a step (or after a prefill chunk, where ``verdict`` is None and the
    tree is a chain of prompt tokens). ``emitted`` holds the tokens each row really emitted, after stop
    conditions."""

    rows: Sequence[Row]  # in batch order
    tree: DraftTree
    verdict: Verdict | None
    emitted: list[list[int]]
    logits: Tensor | None = None  # f[B,N,V] before warp, where some part asked for it
    hidden: Tensor | None = None  # f[B,N,C,D]
    p: Warped | None = None
    """The target's law at every node after ``warp``; valid while the outcome is being observed."""
    seconds: dict[str, float] = field(default_factory=dict)
