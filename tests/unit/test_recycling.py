"""Token recycling: what is learned from a step, and what is drafted from it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from outrider.draft.base import DraftContext
from outrider.draft.recycling import TokenRecycling, close_gaps, top_tokens
from outrider.errors import ConfigError
from outrider.rng import Draws
from outrider.run.row import Row
from outrider.tree.static import StaticTree
from outrider.types import PADDING, ROOT, Budget, DraftTree, Outcome, Verdict

V = 40
FULL = Budget(6, 80, 8)
TARGET: Any = None


def bound(stop: frozenset[int] = frozenset(), **settings: Any) -> TokenRecycling:
    drafter = TokenRecycling(**settings)
    drafter.bind(DraftContext(TARGET, V, torch.device("cpu"), 4, stop_tokens=stop))
    return drafter


def row(tokens: list[int], number: int = 0) -> Row:
    return Row(number, list(tokens), len(tokens), params=TARGET, sampling=TARGET, seed=0)


def propose(drafter: TokenRecycling, roots: list[int], budget: Budget = FULL) -> DraftTree:
    rows = [row([0, root], number) for number, root in enumerate(roots)]
    zeros = torch.zeros(len(rows), dtype=torch.int64)
    return drafter.propose(rows, budget, Draws.of(zeros, zeros, zeros))


def verified(tree: DraftTree, logits: Tensor, verdict: bool = True) -> Outcome:
    ones = torch.ones(tree.shape[0], dtype=torch.int64)
    decided = Verdict(path=torch.zeros_like(ones)[:, None], count=ones, bonus=ones) if verdict else None
    return Outcome(rows=[], tree=tree, verdict=decided, emitted=[], logits=logits)


def noise(tree: DraftTree, seed: int = 0) -> Tensor:
    return torch.randn(*tree.shape, V, generator=torch.Generator().manual_seed(seed))


def warm(drafter: TokenRecycling, seed: int = 0) -> None:
    """Fill every row but those of end-of-text tokens."""
    everything = DraftTree.build([(list(range(V)), [ROOT, *[0] * (V - 1)])])
    drafter.observe(verified(everything, noise(everything, seed)))


def check_filled(drafter: TokenRecycling, tree: DraftTree, b: int, template: StaticTree) -> None:
    """The row holds exactly the template's nodes whose whole path is in the matrix, in template order."""
    expected_tokens, expected_parents, place = [int(tree.tokens[b, 0])], [ROOT], {0: 0}
    for node in range(1, template.size + 1):
        parent = template.parents[node]
        if parent in place:
            token = int(drafter.matrix[expected_tokens[place[parent]], template.ranks[node]])
            if token >= 0:
                place[node] = len(expected_tokens)
                expected_tokens.append(token)
                expected_parents.append(place[parent])
    n, total = len(expected_tokens), tree.shape[1]
    assert tree.tokens[b].tolist() == expected_tokens + [0] * (total - n)
    assert tree.parents[b].tolist() == expected_parents + [PADDING] * (total - n)
    assert tree.host is not None
    assert tree.host[b] == (expected_tokens, expected_parents)


def test_nothing_is_drafted_from_an_empty_matrix() -> None:
    drafter = bound()
    assert not drafter.seen.any()
    tree = propose(drafter, [3, 4])
    assert tree.shape == (2, 1)
    assert (tree.depth_bound, tree.width_bound) == (0, 1)


def test_token_recycling_changes_exactly_the_rows_of_tree_tokens() -> None:
    drafter = bound()
    roots = [5, 7, 5]
    for step in range(3):
        tree = propose(drafter, roots)
        before = drafter.matrix.clone()
        logits = noise(tree, step)
        drafter.observe(verified(tree, logits))
        nodes = {
            int(tree.tokens[b, n]): logits[b, n].topk(8).indices
            for b in range(3)
            for n in range(tree.shape[1])
            if tree.real[b, n]
        }  # the last occurrence wins
        changed = {token for token in range(V) if not torch.equal(before[token], drafter.matrix[token])}
        assert changed <= set(nodes)
        assert step or changed == set(nodes)
        assert all(torch.equal(drafter.matrix[token], best) for token, best in nodes.items())
        assert (drafter.matrix[V] == -1).all()
    assert drafter.seen.sum() > 8


@given(st.integers(0, 1000), st.integers(1, 90), st.integers(1, 7), st.integers(1, 9))
def test_token_recycling_fills_the_template_within_any_budget(seed: int, nodes: int, depth: int, width: int) -> None:
    drafter = bound()
    budget = Budget(depth, nodes, width)
    for step in range(3):
        tree = propose(drafter, [(seed + 7 * i) % V for i in range(3)], budget)
        template = drafter.tree.fit(budget)
        for b in range(3):
            check_filled(drafter, tree, b, template)
        assert int(tree.real.sum(1).max()) == tree.shape[1] <= nodes + 1
        assert int(tree.depth.max()) == tree.depth_bound <= depth
        assert int(tree.sibling_rank.max()) + 1 <= tree.width_bound <= width
        drafter.observe(verified(tree, noise(tree, seed + step)))


def test_a_warm_matrix_gives_the_whole_template() -> None:
    drafter = bound()
    warm(drafter)
    tree = propose(drafter, [1, 2])
    assert tree.shape == (2, 81)
    for b in range(2):
        check_filled(drafter, tree, b, drafter.tree)
    assert propose(drafter, [1], Budget(0, 0, 1)).shape == (1, 1)


@given(st.integers(0, 1000), st.integers(1, 60))
def test_gaps_close_on_an_accelerator_as_on_the_host(seed: int, nodes: int) -> None:
    """The tensor program that runs where nothing may be read back gives the host's tree, padded further."""
    drafter = bound()
    for step in range(2):
        first = propose(drafter, [seed % V])
        drafter.observe(verified(first, noise(first, seed + step)))
    template = drafter.tree.prefix(nodes)
    tree = propose(drafter, [seed % V, (seed + 1) % V], Budget(6, nodes, 8))
    tokens = [[seed % V], [(seed + 1) % V]]
    for line in tokens:
        for parent, rank in zip(template.parents[1:], template.ranks[1:], strict=True):
            line.append(int(drafter.matrix[line[parent], rank]))
    filled = torch.tensor(tokens)
    closed, parents = close_gaps(filled, torch.tensor(template.parents).expand(filled.shape), filled >= 0)
    assert torch.equal(closed[:, : tree.shape[1]], tree.tokens)
    assert torch.equal(parents[:, : tree.shape[1]], tree.parents)
    assert (parents[:, tree.shape[1] :] == PADDING).all()


def test_rows_do_not_depend_on_each_other() -> None:
    drafter = bound()
    drafter.observe(verified(DraftTree.roots([1]), noise(DraftTree.roots([1]))))
    together, alone = propose(drafter, [1, 2]), propose(drafter, [2])
    assert together.shape == (2, 9)
    assert alone.shape == (1, 1)
    assert together.parents[1].tolist() == [ROOT] + [PADDING] * 8


def test_end_of_text_has_no_children() -> None:
    drafter = bound(stop=frozenset({3, 9}))
    warm(drafter)
    assert (drafter.seen == ~torch.isin(torch.arange(V), torch.tensor([3, 9]))).all()
    assert propose(drafter, [3]).shape == (1, 1)


def test_prefill_teaches_only_when_asked() -> None:
    chunk = DraftTree.build([([1, 2, 3], [-1, 0, 1])])
    for drafter, learned in [(bound(), set()), (bound(learn_prefill=True), {1, 2, 3})]:
        drafter.observe(verified(chunk, noise(chunk), verdict=False))
        drafter.observe(verified(chunk, noise(chunk)[:, :0], verdict=False))  # a chunk without logits
        assert set(drafter.seen.nonzero()[:, 0].tolist()) == learned
        assert drafter.needs.logits
        assert drafter.needs.prefill_logits == bool(learned)


def test_prompts_seed_only_rows_that_were_never_seen() -> None:
    drafter = bound(seed_from_prompt=True)
    one = DraftTree.roots([1])
    drafter.observe(verified(one, noise(one)))
    learned = drafter.matrix[1].clone()
    drafter.admit(row([1, 2, 3, 2, 4]))
    assert torch.equal(drafter.matrix[1], learned)
    assert drafter.matrix[2].tolist() == [4] + [-1] * 7
    assert drafter.matrix[3].tolist() == [2] + [-1] * 7
    assert drafter.seen.sum() == 3
    assert propose(drafter, [3]).tokens.tolist() == [[3, 2, 4]]


def test_the_matrix_outlives_requests_unless_told_otherwise() -> None:
    for scope, kept in [("engine", True), ("request", False)]:
        drafter = bound(scope=scope)
        a, b = row([1], 1), row([2], 2)
        drafter.admit(a)
        drafter.fork(a, b)
        warm(drafter)
        drafter.drop(a)
        assert drafter.seen.all()
        drafter.drop(b)
        assert bool(drafter.seen.any()) == kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("size", [40, 4096, 5000])
def test_top_tokens_are_the_top(dtype: torch.dtype, size: int) -> None:
    logits = torch.randn(6, size, generator=torch.Generator().manual_seed(0)).to(dtype)
    logits[0, -8:] = 100 + torch.arange(8)  # in the part that fills no chunk
    logits[1, :8] = 100 + torch.arange(8)  # all in one chunk
    found = top_tokens(logits, 8)
    assert torch.equal(logits.gather(1, found), logits.topk(8).values)
    assert all(len(set(line)) == 8 for line in found.tolist())


def test_fewer_successors_mean_a_narrower_tree() -> None:
    drafter = bound(k=3)
    warm(drafter)
    tree = propose(drafter, [1])
    assert drafter.matrix.shape == (V + 1, 3)
    assert tree.width_bound == 3


def test_impossible_settings_are_named() -> None:
    with pytest.raises(ConfigError, match=r"k=2 successors .* asks for 3"):
        TokenRecycling(k=2, tree=StaticTree.from_paths([(0,), (2,)]))
    with pytest.raises(ConfigError, match="scope='row'"):
        TokenRecycling(scope="row")
    with pytest.raises(ConfigError, match="k=8 is more than the vocabulary of 5"):
        TokenRecycling().bind(DraftContext(TARGET, 5, torch.device("cpu"), 1))
