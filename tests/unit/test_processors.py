"""Row processors walked over draft trees: a small grammar, users' callables, transformers' processors."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, NoRepeatNGramLogitsProcessor

from outrider.errors import RequestError
from outrider.params import SamplingParams
from outrider.processors import RowProcessor, as_row_processor, walk
from outrider.sampling import RowSampling, paths_of, warp
from outrider.types import DraftTree

VOCAB = 8
OPEN, CLOSE = {0: "(", 1: "["}, {2: 0, 3: 1}
END = 7


class Brackets(RowProcessor):
    """Balanced round and square brackets around the letters 4, 5, 6; the end only where all are closed."""

    forks = 0

    def __init__(self, stack: Sequence[int] = ()) -> None:
        self.stack = list(stack)
        self.ended = False

    def accepts(self, token: int) -> bool:
        if self.ended:
            return False
        if token in CLOSE:
            return bool(self.stack) and self.stack[-1] == CLOSE[token]
        return token != END or not self.stack

    def advance(self, token: int) -> None:
        assert self.accepts(token), "the walk must not advance over a token that is not accepted"
        if token in OPEN:
            self.stack.append(token)
        elif token in CLOSE:
            self.stack.pop()
        self.ended = token == END

    def fork(self) -> Brackets:
        type(self).forks += 1
        twin = type(self)(self.stack)
        twin.ended = self.ended
        return twin

    def mask(self, logits: Tensor) -> Tensor:
        legal = torch.tensor([self.accepts(token) for token in range(len(logits))])
        return logits.masked_fill(~legal, -torch.inf)


class NeverForks(Brackets):
    """The broken twin: all branches of a tree share one state."""

    def advance(self, token: int) -> None:
        if self.accepts(token):
            super().advance(token)

    def fork(self) -> NeverForks:
        return self


def logits_of(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, VOCAB, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def from_scratch(kind: type[Brackets], output: list[int], path: list[int], logits: Tensor) -> Tensor:
    state = kind()
    for token in [*output, *path]:
        if not state.accepts(token):
            return torch.full_like(logits, -torch.inf)
        state.advance(token)
    return state.mask(logits)


@st.composite
def trees(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    n = draw(st.integers(1, 12))
    parents = [-1] + [draw(st.integers(0, node - 1)) for node in range(1, n)]
    return [4, *(draw(st.integers(0, VOCAB - 1)) for _ in range(1, n))], parents


def check(kind: type[Brackets], tokens: list[int], parents: list[int], keep_host: bool, seed: int) -> int:
    """Compare every node with the same path from scratch; returns how many nodes are reachable."""
    output = [0, 1, 4]
    row = RowSampling(SamplingParams(temperature=1.0, logits_processors=[kind]), VOCAB, [5, 2])
    row.advance(output)
    # A second, smaller row, so that there is padding.
    tree = DraftTree.build([(tokens, parents), ([4], [-1])])
    tree.host = tree.host if keep_host else None
    other = RowSampling(SamplingParams(), VOCAB, [5])
    logits = torch.stack([logits_of(len(tokens), seed), logits_of(len(tokens), seed + 1)])
    got = warp(logits, [row, other], tree)._logits
    assert got is not None
    paths = [[t for t in path if t >= 0] for path in paths_of(tree)[0].tolist()]
    reachable = 0
    for node, path in enumerate(paths):
        want = from_scratch(Brackets, output, path, logits[0, node])
        assert torch.equal(got[0, node], want), node
        reachable += int(want.isfinite().any())
    assert torch.equal(got[1], logits[1])
    assert [p.stack for p in row.processors] == [[0, 1]]  # type: ignore[attr-defined]
    return reachable


@settings(max_examples=50)
@given(tree=trees(), keep_host=st.booleans(), seed=st.integers(0, 99))
def test_a_grammar_over_a_tree_is_the_grammar_along_each_path(tree: tuple, keep_host: bool, seed: int) -> None:
    check(Brackets, *tree, keep_host=keep_host, seed=seed)


BRANCHING = ([4, 3, 2, 0, 2, 3, 5, 3], [-1, 0, 1, 0, 3, 4, 0, 2])
"""After ``([a``: ``]``, ``])``, ``(``, ``()``, ``()]``, ``b`` and ``])]``, which cannot be."""


def test_shared_state_would_be_noticed() -> None:
    assert check(Brackets, *BRANCHING, keep_host=True, seed=0) == 7
    with pytest.raises(AssertionError):
        check(NeverForks, *BRANCHING, keep_host=True, seed=0)


@pytest.mark.parametrize(
    ("paths", "forks"),
    [
        ([[]], 0),
        ([[], None, None], 0),
        ([[], [4], [4, 5], [4, 5, 6]], 1),  # a chain
        ([[4], [4, 5]], 1),
        ([[], [4], [5]], 2),
        ([[], [4], [4, 4], [4, 5], [4, 6], [5]], 4),  # one per leaf
        ([[2], [2, 2]], 0),  # what cannot come costs nothing
    ],
)
def test_forks_only_where_paths_part(paths: list[list[int] | None], forks: int) -> None:
    Brackets.forks = 0
    walk([Brackets()], logits_of(len(paths)), paths)
    assert Brackets.forks == forks


def test_generation_stays_inside_the_grammar() -> None:
    row = RowSampling(SamplingParams(temperature=1.0, logits_processors=[Brackets()]), VOCAB, [5])
    text: list[int] = []
    while text[-1:] != [END]:
        logits = logits_of(1, seed=len(text))
        logits[0, [2, 3, END]] += 1.0
        u = torch.rand(1, 1, generator=torch.Generator().manual_seed(len(text)), dtype=torch.float64)
        token = int(warp(logits[None], [row]).choose(u))
        row.advance([token])
        text.append(token)
    assert from_scratch(Brackets, text[:-1], [], logits_of(1)[0]).isfinite()[END]
    # Behind the end nothing may follow, and that is said.
    assert int(warp(logits_of(1)[None], [row]).choose(torch.zeros(1, 1, dtype=torch.float64))) == -1


def test_users_callable_sees_prompt_output_and_path() -> None:
    seen: list[list[int]] = []

    def note(token_ids: list[int], logits: Tensor) -> Tensor:
        seen.append(list(token_ids))
        logits[len(token_ids) % VOCAB] = -torch.inf
        return logits

    row = RowSampling(SamplingParams(logits_processors=[note]), VOCAB, [5, 6])
    row.advance([1])
    tree = DraftTree.build([([1, 2, 3, 4], [-1, 0, 1, 0])])
    law = warp(logits_of(4)[None], [row], tree)
    assert sorted(seen) == [[5, 6, 1], [5, 6, 1, 2], [5, 6, 1, 2, 3], [5, 6, 1, 4]]
    assert law._logits is not None
    assert law._logits[0].isneginf().nonzero().tolist() == [[0, 3], [1, 4], [2, 5], [3, 4]]
    twin = row.fork()
    twin.advance([7])
    assert row.processors[0].tokens == [5, 6, 1]  # type: ignore[attr-defined]
    assert twin.processors[0].tokens == [5, 6, 1, 7]  # type: ignore[attr-defined]


def test_transformers_processors() -> None:
    given = LogitsProcessorList([NoRepeatNGramLogitsProcessor(2)])
    row = RowSampling(SamplingParams(logits_processors=given), VOCAB, [1, 2, 3])
    row.advance([1])
    tree = DraftTree.build([([1, 2, 3, 1], [-1, 0, 1, 0])])
    logits = logits_of(4)
    got = warp(logits[None], [row], tree)._logits
    assert got is not None
    for node, path in enumerate([[], [2], [2, 3], [1]]):
        want = given(torch.tensor([[1, 2, 3, 1, *path]]), logits[node : node + 1].clone())[0]
        assert torch.equal(got[0, node], want)


def test_processors_run_in_order() -> None:
    def double(token_ids: list[int], logits: Tensor) -> Tensor:
        return logits * 2

    def add(token_ids: list[int], logits: Tensor) -> Tensor:
        return logits + 1

    row = RowSampling(SamplingParams(logits_processors=[double, add]), VOCAB, [1])
    logits = logits_of(1)[None]
    got = warp(logits, [row])._logits
    assert got is not None
    assert torch.equal(got, logits * 2 + 1)


def test_what_may_be_given() -> None:
    proto = Brackets([0])
    made = as_row_processor(proto)
    assert made is not proto
    assert made.stack == [0]  # type: ignore[attr-defined]
    assert isinstance(as_row_processor(Brackets), Brackets)
    assert isinstance(as_row_processor(lambda: Brackets()), Brackets)
    assert inspect.isabstract(RowProcessor)
    for wrong in (3, "x", lambda: 3, lambda a, b, c: a, RowProcessor):
        with pytest.raises(RequestError, match="logits_processors contains"):
            as_row_processor(wrong)


def test_processors_that_remember_calls_are_refused() -> None:
    kind = type("SynthIDTextWatermarkLogitsProcessor", (LogitsProcessor,), {})
    with pytest.raises(RequestError, match=r"SynthIDTextWatermark.*Write it as a RowProcessor"):
        as_row_processor(kind())


@pytest.mark.parametrize(("returned", "says"), [(None, "None"), (torch.zeros(3), r"shape \(3,\)")])
def test_a_wrong_answer_is_named(returned: object, says: str) -> None:
    def careless(token_ids: list[int], logits: Tensor) -> object:
        return returned

    row = RowSampling(SamplingParams(logits_processors=[careless]), VOCAB, [1])
    with pytest.raises(RequestError, match=f"careless returned .*{says}"):
        warp(logits_of(1)[None], [row])
