"""Row processors: code of one request that reshapes logits and remembers what was emitted (grammars, user
code).

A draft tree asks a processor about many futures at once. So its state can be forked: ``walk`` carries forks
over the nodes of a tree, depth first, and the request's own state moves only when tokens are really emitted.
"""

from __future__ import annotations

import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from outrider.errors import RequestError


class RowProcessor(ABC):
    """State of one request that masks or reshapes the logits of its next token.

    Life: ``start`` once with the prompt, then ``advance`` with every emitted token. In between, forks are
    advanced along draft tokens, asked with ``mask``, and thrown away.
    """

    def start(self, prompt: Sequence[int]) -> None:
        """The request begins; ``prompt`` are all its token ids. Grammars of the answer have nothing to do
        here."""

    def accepts(self, token: int) -> bool:
        """Whether ``advance(token)`` makes sense in this state. Drafts propose anything; where the answer is
        False, ``advance`` is not called, and every node behind ``token`` is forbidden altogether. Must be
        False only for tokens that ``mask`` forbids."""
        return True

    @abstractmethod
    def advance(self, token: int) -> None:
        """``token`` follows."""

    @abstractmethod
    def fork(self) -> RowProcessor:
        """An independent copy: advancing one never shows in the other."""

    @abstractmethod
    def mask(self, logits: Tensor) -> Tensor:
        """The logits f[V] of the next token, reshaped (``-inf`` forbids); may edit in place and return its
        argument. Must not change the state: it is asked any number of times, in any order."""


class _Callable(RowProcessor):
    """A user's ``(token_ids, logits f[V]) -> f[V]``; ``token_ids`` is the list of prompt and output
    tokens."""

    def __init__(self, function: Callable[[list[int], Tensor], Tensor], tokens: Sequence[int] = ()) -> None:
        self.function = function
        self.tokens = list(tokens)

    def start(self, prompt: Sequence[int]) -> None:
        self.tokens = list(prompt)

    def advance(self, token: int) -> None:
        self.tokens.append(token)

    def fork(self) -> _Callable:
        return type(self)(self.function, self.tokens)

    def mask(self, logits: Tensor) -> Tensor:
        return self.function(self.tokens, logits)


class _Transformers(_Callable):
    """A transformers ``LogitsProcessor``: ``(input_ids i64[1,L], scores f[1,V]) -> f[1,V]``.

    Forks share the object, which is right as long as it keeps nothing between calls; the few that do are
    refused by ``as_row_processor``."""

    def mask(self, logits: Tensor) -> Tensor:
        ids = torch.tensor([self.tokens], dtype=torch.int64, device=logits.device)
        out: Any = self.function(ids, logits[None])  # type: ignore[arg-type]
        return out[0] if isinstance(out, Tensor) and out.dim() == 2 else out


_STATEFUL = {
    "SynthIDTextWatermarkLogitsProcessor": "it hashes the calls it has seen",
    "UnbatchedClassifierFreeGuidanceLogitsProcessor": "it runs the model and keeps its cache",
}
"""transformers processors whose answer depends on earlier calls, which come in another order for draft
trees."""


def as_row_processor(spec: Any) -> RowProcessor:
    """A fresh processor for one request, not started.

    ``spec`` is a ``RowProcessor`` (a prototype: it is forked), a ``RowProcessor`` class or another factory
    without arguments, a transformers ``LogitsProcessor``, or a callable ``(token_ids, logits f[V]) -> f[V]``.
    Raises ``RequestError`` for anything else and for transformers processors that remember earlier calls.
    """
    if isinstance(spec, RowProcessor):
        return spec.fork()
    if _is_transformers(spec):
        name = type(spec).__name__
        if name in _STATEFUL:
            raise RequestError(
                f"logits_processors contains {name}",
                why=f"{_STATEFUL[name]}, which cannot be asked about several drafted futures",
                hint="Write it as a RowProcessor, whose state can be forked, or leave it out.",
            )
        return _Transformers(spec)
    if callable(spec):
        if not isinstance(spec, type) and _takes(spec, 2):
            return _Callable(spec)
        if not inspect.isabstract(spec) and _takes(spec, 0):
            made = spec()
            if isinstance(made, RowProcessor):
                return made
    raise RequestError(
        f"logits_processors contains {spec!r}",
        hint="Each must be a RowProcessor, a factory of one, a transformers LogitsProcessor, or a callable "
        "(token_ids, logits) -> logits.",
    )


def _is_transformers(spec: Any) -> bool:
    # Whoever holds such an object has imported transformers: no need to import it here for those who have
    # not.
    module = sys.modules.get("transformers.generation.logits_process")
    return module is not None and isinstance(spec, module.LogitsProcessor)


def _takes(function: Callable[..., Any], count: int) -> bool:
    try:
        inspect.signature(function).bind(*[None] * count)
    except TypeError:
        return False
    except ValueError:  # a built-in without a signature: taken at its word
        return count == 2
    return True


class _Vertex:
    """A set of draft tokens leading to some nodes: one vertex of the trie of their paths."""

    __slots__ = ("children", "nodes")

    def __init__(self) -> None:
        self.nodes: list[int] = []
        self.children: dict[int, _Vertex] = {}


def walk(processors: Sequence[RowProcessor], logits: Tensor, paths: Sequence[Sequence[int] | None]) -> None:
    """Apply ``processors`` in order to every node of one row, each in the state reached along its own path.

    ``logits`` f[N,V] is edited in place; ``paths[n]`` are the draft tokens from below the root down to node
    n, None for a node that is to be left alone (padding). The processors themselves, which stand at the root,
    are not changed. Forks are made only where paths part: a chain needs one, a tree one per leaf."""
    root = _Vertex()
    for node, path in enumerate(paths):
        if path is None:
            continue
        vertex = root
        for token in path:
            vertex = vertex.children.setdefault(token, _Vertex())
        vertex.nodes.append(node)
    stack: list[tuple[_Vertex, Sequence[RowProcessor], bool]] = [(root, processors, False)]
    while stack:
        vertex, states, owned = stack.pop()
        for node in vertex.nodes:
            _apply(states, logits, node)
        legal = []
        for token, child in vertex.children.items():
            if all(state.accepts(token) for state in states):
                legal.append((token, child))
            else:
                _forbid(child, logits)
        for place, (token, child) in enumerate(legal):
            last = place == len(legal) - 1
            moved = states if owned and last else [state.fork() for state in states]
            for state in moved:
                state.advance(token)
            stack.append((child, moved, True))


def _apply(states: Sequence[RowProcessor], logits: Tensor, node: int) -> None:
    for state in states:
        row = logits[node]
        out = state.mask(row)
        if out is row:
            continue
        if not isinstance(out, Tensor) or out.shape != row.shape:
            name = getattr(getattr(state, "function", state), "__name__", None) or type(state).__name__
            got = f"a tensor of shape {tuple(out.shape)}" if isinstance(out, Tensor) else repr(out)
            raise RequestError(
                f"The logits processor {name} returned {got}",
                hint=f"It must return a tensor of shape ({row.shape[0]},), one logit per token.",
            )
        logits[node] = out


def _forbid(vertex: _Vertex, logits: Tensor) -> None:
    """No token may follow anywhere in this subtree: it hangs on a token that cannot come."""
    stack = [vertex]
    while stack:
        vertex = stack.pop()
        for node in vertex.nodes:
            logits[node] = -torch.inf
        stack.extend(vertex.children.values())
