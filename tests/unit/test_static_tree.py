"""Tree templates: shape, order of value, and that every prefix is a tree."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.tree.static import StaticTree, token_recycling_tree
from outrider.types import ROOT, Budget


def check(tree: StaticTree) -> None:
    """Level order, parents first, no path twice, weights never growing downwards."""
    assert tree.parents[0] == ROOT
    assert all(0 <= parent < n for n, parent in enumerate(tree.parents) if n)
    assert [n for level in tree.levels for n in level] == list(range(tree.size + 1))
    assert all(len(tree.paths[n]) == depth for depth, level in enumerate(tree.levels) for n in level)
    assert len(set(tree.paths)) == tree.size + 1
    assert all(tree.weights[n] <= tree.weights[p] for n, p in enumerate(tree.parents) if n)


def test_token_recycling_template_has_80_nodes_with_the_published_level_counts() -> None:
    tree = token_recycling_tree()
    check(tree)
    assert tree.size == 80
    assert [len(level) for level in tree.levels] == [1, 8, 21, 25, 15, 8, 3]
    second = [path for path in tree.paths if len(path) == 2]
    assert [sum(path[0] == rank for path in second) for rank in range(8)] == [8, 4, 3, 2, 1, 1, 1, 1]
    assert (tree.depth, tree.width) == (6, 8)


@pytest.mark.parametrize("nodes", range(82))
def test_every_prefix_is_a_tree_of_the_most_valuable_nodes(nodes: int) -> None:
    tree = token_recycling_tree()
    part = tree.prefix(nodes)
    check(part)
    assert part.size == min(nodes, 80)
    left_out = set(tree.paths) - set(part.paths)
    worth = dict(zip(tree.paths, tree.weights, strict=True))
    if left_out and part.size:
        assert max(worth[path] for path in left_out) <= min(worth[path] for path in part.paths)


@given(st.integers(0, 8), st.integers(0, 90), st.integers(1, 9))
def test_fit_respects_every_side_of_a_budget(depth: int, nodes: int, width: int) -> None:
    part = token_recycling_tree().fit(Budget(depth, nodes, width))
    check(part)
    assert part.depth <= depth
    assert part.size <= nodes
    assert part.width <= width


def test_a_small_part_of_the_template_is_broad_before_it_is_deep() -> None:
    assert set(token_recycling_tree().prefix(4).paths) == {(), (0,), (1,), (0, 0), (2,)}


def test_a_budget_of_width_one_leaves_the_chain_of_first_children() -> None:
    assert token_recycling_tree().fit(Budget(6, 80, 1)).paths == StaticTree.chain(6).paths


@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=3), st.integers(1, 8))
def test_best_first_equals_enumeration(probs: list[float], nodes: int) -> None:
    probs = sorted(probs, reverse=True)
    depth = 3
    worth = {}
    for length in range(1, depth + 1):
        for path in product(range(len(probs)), repeat=length):
            value = 1.0
            for rank in path:
                value *= probs[rank]
            worth[path] = value
    tree = StaticTree.best_first(probs, nodes=nodes, depth=depth)
    check(tree)
    best = sorted(worth.values(), reverse=True)[:nodes]
    assert sorted(tree.weights[1:], reverse=True) == pytest.approx(best)


def test_rank_probabilities_may_differ_per_level() -> None:
    tree = StaticTree.best_first([[0.5, 0.4], [0.9, 0.1]], nodes=4, depth=2)
    assert set(tree.paths) == {(), (0,), (1,), (0, 0), (1, 0)}


def test_paths_may_come_in_any_order() -> None:
    tree = StaticTree.from_paths([(0, 1), (1,), (0,)])
    assert tree.paths == ((), (0,), (1,), (0, 1))
    assert tree.parents == (ROOT, 0, 0, 1)


def test_a_child_weighed_above_its_parent_still_gives_trees() -> None:
    tree = StaticTree.from_paths([(0,), (1,), (1, 0)], weights=[0.5, 0.1, 0.9])
    check(tree)
    assert tree.prefix(2).paths == ((), (0,), (1,))


@pytest.mark.parametrize(
    ("paths", "message"),
    [([(0, 0)], "no parent"), ([(0,), (0,)], "twice"), ([()], "not a list"), ([(-1,)], "not a list")],
)
def test_wrong_paths_are_named(paths: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StaticTree.from_paths(paths)


def test_impossible_levels_are_named() -> None:
    with pytest.raises(ValueError, match="level 1 can have 2 nodes at most, not 3"):
        StaticTree.best_first([0.5, 0.5], level_counts=(3,))
    with pytest.raises(ValueError, match="level_counts or nodes"):
        StaticTree.best_first([0.5])
