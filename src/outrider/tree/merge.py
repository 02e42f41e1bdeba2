"""Putting draft trees together: rows of several trees into one batch, and several trees of a row into one.

Nodes that were *drawn* are special. Dropping or sharing one because of its token would condition its law on
its value and bias the text, so all decisions about them look at positions only; sharing by token is for
point-mass nodes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from outrider.types import PADDING, ROOT, DraftTree, Drawn, Role

_FILL = {"tokens": 0, "parents": PADDING, "drawn": int(Drawn.POINT), "law": -1, "role": int(Role.CANDIDATE)}


def take_rows(tree: DraftTree, rows: Sequence[int]) -> DraftTree:
    """The given rows of a tree, in that order."""
    index = torch.tensor(rows, device=tree.tokens.device)

    def take(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[index]

    return DraftTree(
        tokens=tree.tokens[index],
        parents=tree.parents[index],
        depth_bound=tree.depth_bound,
        width_bound=tree.width_bound,
        drawn=take(tree.drawn),
        law=take(tree.law),
        laws=take(tree.laws),
        role=take(tree.role),
        origin=take(tree.origin),
        origins=tree.origins,
        host=None if tree.host is None else [tree.host[b] for b in rows],
    )


def stack_rows(pieces: Sequence[tuple[Sequence[int], DraftTree]]) -> DraftTree:
    """One batch from trees of some rows each: ``(places in the batch, tree)``; every place comes once."""
    trees = [tree for _, tree in pieces]
    if _on_host(*trees):
        return _stack_lists(pieces)
    batch = sum(len(rows) for rows, _ in pieces)
    nodes = max(tree.shape[1] for tree in trees)
    device = trees[0].tokens.device
    places = [torch.tensor(rows, device=device) for rows, _ in pieces]
    origins, maps = _join_origins(trees)

    def join(name: str) -> Tensor:
        out = torch.full((batch, nodes), _FILL[name], dtype=torch.int64, device=device)
        for place, tree in zip(places, trees, strict=True):
            out[place, : tree.shape[1]] = _field(tree, name)
        return out

    origin = torch.ones((batch, nodes), dtype=torch.int64, device=device)
    for place, tree, names in zip(places, trees, maps, strict=True):
        origin[place, : tree.shape[1]] = _relabel(tree, names)
    laws = None
    given = [(place, tree.laws) for place, tree in zip(places, trees, strict=True) if tree.laws is not None]
    if given:
        q = max(x.shape[1] for _, x in given)
        dtype = _widest([x for _, x in given])
        laws = torch.zeros((batch, q, given[0][1].shape[2]), dtype=dtype, device=device)
        for place, x in given:
            laws[place, : x.shape[1]] = x.to(dtype)
    host = None
    if all(tree.host is not None for tree in trees):
        found = {b: row for rows, tree in pieces for b, row in zip(rows, tree.host or [], strict=True)}
        host = [found[b] for b in range(batch)]
    return DraftTree(
        tokens=join("tokens"),
        parents=join("parents"),
        depth_bound=max(tree.depth_bound for tree in trees),
        width_bound=max(tree.width_bound for tree in trees),
        drawn=join("drawn") if any(tree.drawn is not None for tree in trees) else None,
        law=join("law") if any(tree.law is not None for tree in trees) else None,
        laws=laws,
        role=join("role") if any(tree.role is not None for tree in trees) else None,
        origin=origin,
        origins=origins,
        host=host,
    )


def merge_trees(first: DraftTree, second: DraftTree, *, nodes: int, width: int) -> DraftTree:
    """One tree per row: all of ``first``, and what ``second`` adds within ``nodes`` drafted nodes per row and
    ``width`` children per node.

    A point-mass node of ``second`` whose token ``first`` already proposes, also as a point mass, under the
    same parent is that node (and keeps its origin); every other node is added behind, in level order. Where
    there is no room, the nodes of ``second`` that come last in level order go, their descendants with them,
    and the siblings of a ``GREEDY_MIXED`` set together or not at all, since a part of such a set has another
    law."""
    if _on_host(first, second):
        return _merge_lists(first, second, nodes, width)
    return _merge_tensors(first, second, nodes, width)


def _merge_lists(first: DraftTree, second: DraftTree, nodes: int, width: int) -> DraftTree:
    """``merge_trees`` where both are point-mass trees known on the host."""
    names, maps = _join_origins([first, second])
    labels = [_labels(tree, m) for tree, m in zip((first, second), maps, strict=True)]
    rows, origin = [], []
    pairs = zip(first.host or [], second.host or [], strict=True)
    for b, ((tokens, parents), (more, above)) in enumerate(pairs):
        tokens, parents, label = list(tokens), list(parents), labels[0][b]
        known: dict[tuple[int, int], int] = {}
        kids = [0] * (len(tokens) + len(more))
        for node in range(1, len(tokens)):
            known.setdefault((parents[node], tokens[node]), node)
            kids[parents[node]] += 1
        levels = [0] * len(more)
        for node in range(1, len(more)):
            levels[node] = levels[above[node]] + 1
        place = [0] * len(more)  # in the merged tree; -1: left out
        for node in sorted(range(1, len(more)), key=levels.__getitem__):
            parent = place[above[node]]
            twin = known.get((parent, more[node])) if parent >= 0 else None
            if twin is not None:
                place[node] = twin
            elif parent < 0 or kids[parent] >= width or len(tokens) > nodes:
                place[node] = -1
            else:
                place[node] = len(tokens)
                kids[parent] += 1
                tokens.append(more[node])
                parents.append(parent)
                label.append(labels[1][b][node])
        rows.append((tokens, parents))
        origin.append(label)
    return _from_lists(rows, origin, names, first.tokens.device)


def _merge_tensors(first: DraftTree, second: DraftTree, nodes: int, width: int) -> DraftTree:
    """``merge_trees`` on tensors alone; waits for the device only where that is a CPU."""
    na, nb = first.shape[1], second.shape[1]
    twin = _twins(first, second)
    above = second.parents.clamp(min=0)
    own = first.real.cumsum(1) - 1  # place of first's nodes once gaps are closed
    size = own[:, -1:] + 1
    fresh = second.real & (twin < 0)
    index = torch.arange(nb, device=twin.device)

    # width: children that the parent has in `first`, and its fresh ones before (twins share their children)
    parent_twin = twin.gather(1, above)
    merged_parent = torch.where(parent_twin >= 0, parent_twin, na + above)
    has_parent = (first.parents >= 0).long()
    kids = torch.zeros_like(first.parents).scatter_add_(1, first.parents.clamp(min=0), has_parent)
    ordinal = torch.where(parent_twin >= 0, kids.gather(1, parent_twin.clamp(min=0)), 0)
    siblings = (merged_parent[:, :, None] == merged_parent[:, None, :]) & fresh[:, None, :]
    ordinal = ordinal + (siblings & (index[None, :] < index[:, None])).sum(-1)
    kept = _with_families(second, fresh, ordinal < width)

    # nodes: level order decides
    key = second.depth * nb + index
    before = key[:, None, :] < key[:, :, None]
    rank = (before & kept[:, None, :]).sum(-1)
    kept = _with_families(second, fresh, kept & (size + rank <= nodes))
    rank = (before & kept[:, None, :]).sum(-1)

    place = torch.where(twin >= 0, own.gather(1, twin.clamp(min=0)), size + rank)
    total = min(na + nb - 1, max(nodes + 1, na))
    if twin.device.type == "cpu":
        total = int((size[:, 0] + kept.sum(1)).max())
    spots = torch.where(first.real, own, total), torch.where(kept, place, total)

    def join(fill: int, a: Tensor, b: Tensor) -> Tensor:
        out = torch.full((len(a), total + 1), fill, dtype=torch.int64, device=a.device)
        out.scatter_(1, spots[0], a).scatter_(1, spots[1], b)
        return out[:, :total].contiguous()  # the last column took what is left out

    parents_a = torch.where(first.parents < 0, first.parents, own.gather(1, first.parents.clamp(min=0)))
    origins, maps = _join_origins([first, second])
    law, laws = _join_laws(first, second)

    def join_optional(name: str) -> Tensor | None:
        if getattr(first, name) is None and getattr(second, name) is None:
            return None
        return join(_FILL[name], _field(first, name), _field(second, name))

    return DraftTree(
        tokens=join(0, first.tokens, second.tokens),
        parents=join(PADDING, parents_a, place.gather(1, above)),
        depth_bound=max(first.depth_bound, second.depth_bound),
        width_bound=min(first.width_bound + second.width_bound, max(first.width_bound, width)),
        law=None if law is None else join(-1, *law),
        laws=laws,
        origin=join(1, _relabel(first, maps[0]), _relabel(second, maps[1])),
        origins=origins,
        drawn=join_optional("drawn"),
        role=join_optional("role"),
    )


def _twins(first: DraftTree, second: DraftTree) -> Tensor:
    """i64[B,N2]: the node of ``first`` that each node of ``second`` is the same as; -1 for none."""

    def shareable(tree: DraftTree) -> Tensor:
        shared = tree.real & (_field(tree, "drawn") == Drawn.POINT) & (_field(tree, "law") < 0)
        return shared & (_field(tree, "role") == Role.CANDIDATE)

    same = shareable(second)[:, :, None] & shareable(first)[:, None, :]
    same &= second.tokens[:, :, None] == first.tokens[:, None, :]
    root = torch.where(second.parents == ROOT, 0, -1)
    twin, above = root, second.parents.clamp(min=0)
    for _ in range(second.depth_bound):  # one level more is settled each time
        parent = torch.where(second.parents >= 0, twin.gather(1, above), -3)  # -3: nobody's parent
        parent = torch.where(parent < 0, -3, parent)
        hit = same & (first.parents[:, None, :] == parent[:, :, None])
        twin = torch.where(hit.any(-1), hit.int().argmax(-1), root)
    return twin


def _with_families(tree: DraftTree, fresh: Tensor, fits: Tensor) -> Tensor:
    """b[B,N]: ``fresh`` nodes that fit, with all their ancestors and, if ``GREEDY_MIXED``, their siblings."""
    lost = fresh & ~fits
    if tree.drawn is not None:
        mixed = tree.drawn == Drawn.GREEDY_MIXED
        family = tree.parents[:, :, None] == tree.parents[:, None, :]
        family = family & mixed[:, :, None] & mixed[:, None, :]
        lost = lost | (fresh & (family & lost[:, None, :]).any(-1))
    return fresh & ~(tree.ancestors & lost[:, None, :]).any(-1)


def _on_host(*trees: DraftTree) -> bool:
    """All are point-mass trees whose lists are known."""
    return all(
        t.host is not None and t.drawn is None and t.law is None and t.laws is None and t.role is None for t in trees
    )


def _stack_lists(pieces: Sequence[tuple[Sequence[int], DraftTree]]) -> DraftTree:
    """``stack_rows`` where all trees are known on the host."""
    origins, maps = _join_origins([tree for _, tree in pieces])
    found: dict[int, tuple[tuple[list[int], list[int]], list[int]]] = {}
    for (places, tree), names in zip(pieces, maps, strict=True):
        found.update(zip(places, zip(tree.host or [], _labels(tree, names), strict=True), strict=True))
    rows = [found[b] for b in range(len(found))]
    device = pieces[0][1].tokens.device
    return _from_lists([row for row, _ in rows], [label for _, label in rows], origins, device)


def _from_lists(
    rows: Sequence[tuple[list[int], list[int]]],
    labels: Sequence[list[int]],
    origins: tuple[str, ...],
    device: torch.device,
) -> DraftTree:
    """A point-mass tree from (tokens, parents) per row, and per row the origin of each node."""
    tree = DraftTree.build(rows, device=device)
    filled = [label + [1] * (tree.shape[1] - len(label)) for label in labels]
    tree.origin = torch.tensor(filled, device=device)
    tree.origins = origins
    return tree


def _labels(tree: DraftTree, names: list[int]) -> list[list[int]]:
    """Per row the new origin index of each real node, for a tree that is known on the host."""
    sizes = [len(tokens) for tokens, _ in tree.host or []]
    if tree.origin is None:  # the root from the target, all else from the one drafter
        return [[names[0], *names[1:2] * (size - 1)] for size in sizes]
    return [[names[i] for i in row[:size]] for row, size in zip(tree.origin.tolist(), sizes, strict=True)]


def _field(tree: DraftTree, name: str) -> Tensor:
    """A per-node field i64[B,N] with its default filled in."""
    value = getattr(tree, name)
    return torch.full_like(tree.tokens, _FILL[name]) if value is None else value


def _join_origins(trees: Sequence[DraftTree]) -> tuple[tuple[str, ...], list[list[int]]]:
    """All names, each once, and per tree the new index of each of its names."""
    names = list(dict.fromkeys(name for tree in trees for name in tree.origins))
    return tuple(names), [[names.index(name) for name in tree.origins] for tree in trees]


def _relabel(tree: DraftTree, names: list[int]) -> Tensor:
    origin = tree.origin_of()
    if names == list(range(len(names))):
        return origin
    return torch.tensor(names, device=origin.device)[origin]


def _join_laws(first: DraftTree, second: DraftTree) -> tuple[tuple[Tensor, Tensor] | None, Tensor | None]:
    """Both ``law`` fields and the ``laws`` f[B,Q1+Q2,V] they index."""
    if first.law is None and second.law is None:
        return None, first.laws if second.laws is None else second.laws
    a, b = _field(first, "law"), _field(second, "law")
    if first.laws is None or second.laws is None:
        return (a, b), first.laws if second.laws is None else second.laws
    dtype = _widest([first.laws, second.laws])
    laws = torch.cat([first.laws.to(dtype), second.laws.to(dtype)], dim=1)
    return (a, torch.where(b < 0, b, b + first.laws.shape[1])), laws


def _widest(tensors: Sequence[Tensor]) -> torch.dtype:
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype
