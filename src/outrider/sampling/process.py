"""Everything that happens to logits before they are a law: ``warp``, each node along its own path."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from outrider.processors import walk
from outrider.sampling.law import Truncation, Warped, column
from outrider.sampling.rows import RowSampling
from outrider.types import DraftTree


def warp(logits: Tensor, rows: Sequence[RowSampling], at: DraftTree | Tensor | None = None) -> Warped:
    """The laws of all nodes: ``logits`` f[B,N,V] with every parameter of ``rows`` applied along each path.

    ``at`` says where the nodes stand: the tree they belong to; or their paths, i64[B,N,D], the draft tokens
    from below the root down to the node itself, -1 behind the end (what a drafter has that grows a tree level
    by level); or None, every node stands at the root (plain decoding). The root is not part of any path: it
    is already part of the row. ``logits`` are not changed, and may be a draft model's: a vocabulary that is
    smaller or larger by some ids is fine."""
    greedy = [row.params.greedy for row in rows]
    touched = [i for i, row in enumerate(rows) if row.touches_logits]
    if not touched and all(greedy):
        return Warped(logits, greedy)
    x = logits if logits.dtype == torch.float64 else logits.float()
    if touched:
        x = x.clone() if x is logits else x
        paths = _paths(at, x)
        if len(touched) == len(rows):
            _process(x, rows, paths, at)
        else:
            part = x[touched]
            _process(part, [rows[i] for i in touched], paths[touched], at, touched)
            x[touched] = part
    heat = [1.0 if row.params.greedy else row.params.temperature for row in rows]
    if set(heat) != {1.0}:
        # A tensor even when all rows agree: dividing by a number may multiply by its inverse instead.
        x = torch.div(x, column(heat, x), out=None if x is logits else x)
    return Warped(x, greedy, Truncation.of([row.params for row in rows]), owned=x is not logits)


def paths_of(tree: DraftTree) -> Tensor:
    """i64[B,N,D]: the draft tokens from below the root down to each node, itself included, -1 behind the end.

    D is ``tree.depth_bound``. The root's path is empty, and so is that of padding.
    """
    b, n = tree.shape
    bound = tree.depth_bound
    # Every ancestor writes its token at its own depth; what is no ancestor, and the root, at a place cut off.
    place = torch.where(tree.ancestors & (tree.depth > 0)[:, None, :], tree.depth[:, None, :] - 1, bound)
    paths = torch.full((b, n, bound + 1), -1, dtype=torch.int64, device=tree.tokens.device)
    return paths.scatter_(-1, place, tree.tokens[:, None, :].expand(b, n, n))[..., :bound]


def _paths(at: DraftTree | Tensor | None, x: Tensor) -> Tensor:
    if at is None or (isinstance(at, DraftTree) and at.depth_bound == 0):
        return torch.empty(x.shape[0], x.shape[1], 0, dtype=torch.int64, device=x.device)
    return (paths_of(at) if isinstance(at, DraftTree) else at).to(x.device)


def _process(
    x: Tensor,
    rows: Sequence[RowSampling],
    paths: Tensor,
    at: DraftTree | Tensor | None,
    index: Sequence[int] | None = None,
) -> None:
    """Everything before the temperature, on ``x`` f[R,N,V] in place. ``index``: the rows' places in
    ``at``."""
    if any(row.bias for row in rows):
        ids = _pad([list(row.bias) for row in rows])
        values = _pad([list(row.bias.values()) for row in rows])
        _edit(x, ids, lambda old: old + torch.as_tensor(values, dtype=x.dtype, device=x.device)[:, None])
    if any(row.counts is not None for row in rows):
        _penalise(x, rows, paths)
    if any(row.bad_words for row in rows):
        _forbid_words(x, rows, paths)
    if any(row.holds_back for row in rows):
        ids = _pad([row.stop_ids if row.holds_back else () for row in rows])
        left = torch.tensor([row.params.min_tokens - row.emitted if row.holds_back else 0 for row in rows])
        early = (paths >= 0).sum(-1) < left.to(x.device)[:, None]
        _edit(x, ids, lambda old: old.masked_fill(early[..., None], -torch.inf))
    for i, row in enumerate(rows):
        if row.processors:
            walk(row.processors, x[i], _host_paths(at, i if index is None else index[i], paths[i]))


def _pad(lists: Sequence[Sequence[float]]) -> np.ndarray:
    """[R,K] by repeating each list's first entry (0 for an empty list): an edit that is made twice, with the
    same result, needs no mask. K is at least 1."""
    width = max(1, *map(len, lists))
    return np.array([[*values, *[values[0] if values else 0] * (width - len(values))] for values in lists])


def _edit(x: Tensor, ids: np.ndarray, change: Callable[[Tensor], Tensor]) -> None:
    """Replace the logits of token ``ids`` [R,K] at every node of ``x`` f[R,N,V] by ``change`` f[R,N,K] of
    them.

    Ids that this vocabulary does not have are ignored.
    """
    index = torch.as_tensor(ids, dtype=torch.int64, device=x.device)[:, None].expand(-1, x.shape[1], -1)
    outside = ids.max() >= x.shape[-1]
    if outside:
        wide = x.new_zeros(*x.shape[:2], int(ids.max()) + 1)
        wide[..., : x.shape[-1]] = x
        wide.scatter_(-1, index, change(wide.gather(-1, index)))
        x.copy_(wide[..., : x.shape[-1]])
    else:
        x.scatter_(-1, index, change(x.gather(-1, index)))


def _penalise(x: Tensor, rows: Sequence[RowSampling], paths: Tensor) -> None:
    """Repetition, presence and frequency penalties, on tokens that occurred in the row or on the path.

    Only those tokens are touched. Tokens of the row are the same for all nodes; tokens of a path are computed
    again from the untouched logits with the counts of row and path together, and written over the former.
    """
    vocab = x.shape[-1]
    states = [row.counts for row in rows]
    width = max(1, *(0 if c is None else c.size for c in states))
    ids = np.zeros((len(rows), width), dtype=np.int64)
    code = np.zeros((len(rows), width))  # 0: never seen, 1 + n: seen, n times in the output
    for i, c in enumerate(states):
        if c is not None and c.size:
            inside = c.ids[: c.size] < vocab  # a draft model may lack some ids of the target
            known = int(inside.sum())
            if known:
                ids[i, :known], code[i, :known] = c.ids[: c.size][inside], c.times[: c.size][inside] + 1
                ids[i, known:], code[i, known:] = ids[i, 0], code[i, 0]
    base = torch.from_numpy(ids).to(x.device)
    base_code = torch.from_numpy(code).to(x.device, x.dtype)
    repetition = column([row.params.repetition_penalty for row in rows], x)
    presence = column([row.params.presence_penalty for row in rows], x)
    frequency = column([row.params.frequency_penalty for row in rows], x)

    def penal(old: Tensor, code: Tensor) -> Tensor:
        factor = torch.where(code > 0, repetition, 1.0)
        new = torch.where(old > 0, old / factor, old * factor)
        times = (code - 1).clamp(min=0)
        return new - frequency * times - presence * (times > 0)

    index = base[:, None].expand(-1, x.shape[1], -1)
    new = penal(x.gather(-1, index), base_code[:, None])
    if paths.shape[-1]:
        real = (paths >= 0) & (paths < vocab)
        # Where a path has ended, the row's first token stands in: it is written twice with the same result.
        tokens = torch.where(real, paths, base[:, :1, None])
        lookup = x.new_zeros(len(rows), vocab).scatter_(1, base, base_code)
        before = lookup.gather(1, tokens.flatten(1)).view_as(tokens)
        here = (tokens[..., :, None] == paths[..., None, :]).sum(-1)
        total = torch.where(here > 0, before.clamp(min=1) + here, before)
        new_on_path = penal(x.gather(-1, tokens), total)
        x.scatter_(-1, index, new)
        x.scatter_(-1, tokens, new_on_path)
    else:
        x.scatter_(-1, index, new)


def _forbid_words(x: Tensor, rows: Sequence[RowSampling], paths: Tensor) -> None:
    """Forbid the last token of every bad word whose other tokens have just been said, at every node."""
    lengths = (paths >= 0).sum(-1)
    for i, row in enumerate(rows):
        if not row.bad_words:
            continue
        span = row.longest_prefix
        tail = torch.tensor([-1] * (span - len(row.tail)) + row.tail, dtype=torch.int64, device=x.device)
        said = torch.cat([tail.expand(x.shape[1], span), paths[i]], -1)
        last = lengths[i][:, None] + torch.arange(span, device=x.device)
        said = said.gather(-1, last)  # the last `span` tokens before each node's next one, itself included
        for prefix, words in row.bad_words.items():
            words = [word for word in words if word[-1] < x.shape[-1]]
            if not words:
                continue
            table = torch.tensor(words, dtype=torch.int64, device=x.device)
            match = (said[:, None, span - prefix :] == table[:, :-1]).all(-1)
            # Adding -inf and 0 instead of writing: two words may end in the same token.
            x[i].index_add_(-1, table[:, -1], torch.where(match, -torch.inf, 0.0).to(x.dtype))


def _host_paths(at: DraftTree | Tensor | None, row: int, paths: Tensor) -> list[list[int] | None]:
    """Paths of one row as lists; None for padding."""
    if isinstance(at, DraftTree) and at.host is not None:
        tokens, parents = at.host[row]
        found: list[list[int] | None] = [[]]
        for token, parent in zip(tokens[1:], parents[1:], strict=True):
            found.append([*(found[parent] or ()), token])
        return found + [None] * (paths.shape[0] - len(tokens))
    listed = [[token for token in path if token >= 0] for path in paths.tolist()]
    if isinstance(at, DraftTree):
        return [path if real else None for path, real in zip(listed, at.real[row].tolist(), strict=True)]
    return list(listed)
