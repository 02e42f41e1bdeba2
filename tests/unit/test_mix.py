"""Combined drafters: merged trees against a plain reference, and what children get to see."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from outrider.draft.automaton import SuffixDrafter
from outrider.draft.base import DraftContext, Drafter
from outrider.draft.lookup import PromptLookup
from outrider.draft.mix import Merge, Mixture, Priority, leaves
from outrider.draft.recycling import TokenRecycling
from outrider.errors import ConfigError
from outrider.rng import Draws, Purpose
from outrider.run.row import Row
from outrider.tree.merge import merge_trees, stack_rows, take_rows
from outrider.types import PADDING, ROOT, Budget, DraftTree, Drawn, Needs, Outcome, Role

Node = dict[str, Any]
V = 4
NONE: Any = None
SEED = st.integers(0, 10**6)


def row(tokens: list[int], number: int = 0) -> Row:
    return Row(number, list(tokens), len(tokens), params=NONE, sampling=NONE, seed=0)


def draws_for(rows: Sequence[Row]) -> Draws:
    numbers = torch.tensor([r.id for r in rows])
    return Draws.of(numbers, torch.zeros_like(numbers), torch.tensor([r.root_position for r in rows]))


def random_tree(
    rng: random.Random, rows: int, kinds: Sequence[Drawn], name: str, most: int = 9, width: int = 9
) -> DraftTree:
    """Rows of unequal size with root token 0; parents before children, levels not in order. Nodes that were
    drawn point at laws of their own."""
    host = []
    for _ in range(rows):
        tokens, parents, kids = [0], [ROOT], [0]
        for _ in range(rng.randrange(most)):
            parent = rng.choice([n for n in range(len(tokens)) if kids[n] < width])
            kids[parent] += 1
            tokens.append(rng.randrange(V))
            parents.append(parent)
            kids.append(0)
        host.append((tokens, parents))
    tree = DraftTree.build(host, origin=name)
    if set(kinds) != {Drawn.POINT}:
        drawn = torch.zeros_like(tree.tokens)
        law = torch.full_like(tree.tokens, -1)
        for b, (tokens, _) in enumerate(host):
            for n in range(1, len(tokens)):
                drawn[b, n] = rng.choice(kinds)
                law[b, n] = n if drawn[b, n] != Drawn.POINT else -1
        laws = torch.rand(rows, tree.shape[1], V, generator=torch.Generator().manual_seed(rng.randrange(99)))
        tree = replace(tree, drawn=drawn, law=law, laws=laws, host=None)
    return tree


def nodes_of(tree: DraftTree, b: int) -> list[Node]:
    """The real nodes of a row, with defaults filled in and the law itself instead of its index."""
    fields = {
        name: (torch.zeros_like(tree.tokens) if value is None else value)[b].tolist()
        for name, value in [
            ("token", tree.tokens),
            ("parent", tree.parents),
            ("drawn", tree.drawn),
            ("role", tree.role),
        ]
    }
    law = [-1] * tree.shape[1] if tree.law is None else tree.law[b].tolist()
    laws = [] if tree.laws is None else tree.laws[b].tolist()
    origin = [tree.origins[i] for i in tree.origin_of()[b].tolist()]
    return [
        {
            **{name: values[n] for name, values in fields.items()},
            "law": laws[law[n]] if law[n] >= 0 else None,
            "origin": origin[n],
        }
        for n in range(tree.shape[1])
        if fields["parent"][n] != PADDING
    ]


def reference(first: list[Node], second: list[Node], nodes: int, width: int) -> list[Node]:
    """``merge_trees`` for one row, node by node (without ``GREEDY_MIXED``)."""

    def shareable(node: Node) -> bool:
        return node["drawn"] == Drawn.POINT and node["role"] == Role.CANDIDATE

    merged = [dict(node) for node in first]
    own = len(first)
    level = [0] * len(second)
    for n in range(1, len(second)):
        level[n] = level[second[n]["parent"]] + 1
    place = {0: 0}
    for n in sorted(range(1, len(second)), key=lambda n: (level[n], n)):
        node = second[n]
        if node["parent"] not in place:
            continue
        parent = place[node["parent"]]
        twins = [
            i
            for i in range(1, own)
            if shareable(merged[i])
            and shareable(node)
            and (merged[i]["parent"], merged[i]["token"]) == (parent, node["token"])
        ]
        if twins:
            place[n] = twins[0]
        elif sum(other["parent"] == parent for other in merged) < width and len(merged) - 1 < nodes:
            place[n] = len(merged)
            merged.append({**node, "parent": parent})
    return merged


def check_valid(tree: DraftTree) -> None:
    """What every tree promises."""
    rows, total = tree.shape
    for parents in tree.parents.tolist():
        count = total - parents.count(PADDING)
        assert all(parent == PADDING for parent in parents[count:])  # padding stands behind
        assert parents[0] == ROOT
        assert all(0 <= parents[n] < n for n in range(1, count))
    assert int(tree.depth.max()) <= tree.depth_bound
    assert int(tree.sibling_rank.max()) < tree.width_bound
    if tree.host is not None:
        assert tree.host == [
            (tree.tokens[b][tree.real[b]].tolist(), tree.parents[b][tree.real[b]].tolist()) for b in range(rows)
        ]
    if tree.is_chain:
        chain = torch.arange(total) - 1
        assert all(torch.equal(tree.parents[b][tree.real[b]], chain[tree.real[b]]) for b in range(rows))


def paths_of(tree: DraftTree, b: int) -> set[tuple[int, ...]]:
    nodes, paths = nodes_of(tree, b), [()]
    for node in nodes[1:]:
        paths.append((*paths[node["parent"]], node["token"]))  # type: ignore[arg-type]
    return set(paths)


POINT = [Drawn.POINT]
MIXED = [Drawn.POINT, Drawn.IID, Drawn.WITHOUT_REPLACEMENT]


@given(
    SEED,
    st.integers(0, 20),
    st.integers(1, 5),
    st.sampled_from([POINT, MIXED]),
    st.sampled_from([POINT, MIXED]),
)
def test_merged_trees_equal_the_reference(
    seed: int, nodes: int, width: int, kinds: list[Drawn], others: list[Drawn]
) -> None:
    rng = random.Random(seed)
    first = random_tree(rng, 3, kinds, "a", most=min(9, nodes + 1), width=width)
    second = random_tree(rng, 3, others, "b")
    merged = merge_trees(first, second, nodes=nodes, width=width)
    check_valid(merged)
    assert merged.origins == ("target", "a", "b")
    for b in range(3):
        assert nodes_of(merged, b) == reference(nodes_of(first, b), nodes_of(second, b), nodes, width)
        assert int(merged.real[b].sum()) - 1 <= nodes


@given(SEED, st.integers(0, 20), st.integers(1, 5))
def test_lists_and_tensors_merge_alike(seed: int, nodes: int, width: int) -> None:
    rng = random.Random(seed)
    first = random_tree(rng, 2, POINT, "a", most=min(9, nodes + 1), width=width)
    second = random_tree(rng, 2, POINT, "b")
    lists = merge_trees(first, second, nodes=nodes, width=width)
    tensors = merge_trees(replace(first, host=None), replace(second, host=None), nodes=nodes, width=width)
    assert lists.host is not None
    assert tensors.host is None
    check_valid(tensors)
    for b in range(2):
        assert nodes_of(lists, b) == nodes_of(tensors, b)


@given(SEED, st.sampled_from([POINT, MIXED]))
def test_with_room_enough_every_path_of_both_is_there(seed: int, kinds: list[Drawn]) -> None:
    rng = random.Random(seed)
    first, second = random_tree(rng, 2, kinds, "a"), random_tree(rng, 2, kinds, "b")
    merged = merge_trees(first, second, nodes=99, width=99)
    for b in range(2):
        assert paths_of(merged, b) == paths_of(first, b) | paths_of(second, b)
        drawn = [node for node in nodes_of(merged, b) if node["drawn"]]
        assert len(drawn) == sum(bool(n["drawn"]) for t in (first, second) for n in nodes_of(t, b))


def drawn_chain(token: int, kind: Drawn, name: str, siblings: int = 1) -> DraftTree:
    tree = DraftTree.build([([0] + [token] * siblings, [ROOT] + [0] * siblings)], origin=name)
    law = torch.tensor([[-1] + [0] * siblings])
    drawn = torch.tensor([[0] + [int(kind)] * siblings])
    return replace(tree, drawn=drawn, law=law, laws=torch.full((1, 1, V), 1 / V), host=None)


def test_what_is_dropped_does_not_depend_on_drawn_tokens() -> None:
    """The same shape with any drawn tokens: the same nodes stay, sharing a token with the first or not."""
    first = DraftTree.build([([0, 1, 2], [-1, 0, 1])], origin="a")
    shapes = set()
    for token in range(V):
        for nodes in range(2, 6):
            merged = merge_trees(first, drawn_chain(token, Drawn.IID, "b", 3), nodes=nodes, width=3)
            shapes.add((nodes, tuple(merged.parents[0].tolist())))
            drawn = [node for node in nodes_of(merged, 0) if node["drawn"]]
            assert [node["token"] for node in drawn] == [token] * len(drawn)
    assert len(shapes) == 4  # one per budget
    assert (5, (-1, 0, 1, 0, 0)) in shapes  # three children at most


def test_a_greedy_mixed_set_stays_whole_or_goes() -> None:
    first = DraftTree.build([([0, 1], [-1, 0])], origin="a")
    second = drawn_chain(2, Drawn.GREEDY_MIXED, "b", 3)
    for nodes, width, kept in [(4, 4, 3), (3, 4, 0), (9, 3, 0), (9, 4, 3)]:
        merged = merge_trees(first, second, nodes=nodes, width=width)
        assert sum(node["drawn"] == Drawn.GREEDY_MIXED for node in nodes_of(merged, 0)) == kept
        check_valid(merged)


def test_probes_are_never_shared() -> None:
    tree = DraftTree.build([([0, 1, 1], [-1, 0, 1])], origin="a")
    probes = replace(tree, role=torch.tensor([[0, 0, int(Role.PROBE)]]), origins=("target", "b"), host=None)
    merged = merge_trees(tree, probes, nodes=9, width=9)
    assert [(n["token"], n["parent"], n["role"], n["origin"]) for n in nodes_of(merged, 0)[1:]] == [
        (1, 0, 0, "a"),
        (1, 1, 0, "a"),
        (1, 1, 1, "b"),
    ]


@given(SEED, st.sampled_from([POINT, MIXED]), st.booleans())
def test_rows_of_several_trees_stack(seed: int, kinds: list[Drawn], tensors: bool) -> None:
    rng = random.Random(seed)
    first, second = random_tree(rng, 3, POINT, "a"), random_tree(rng, 2, kinds, "b")
    if tensors:
        first, second = replace(first, host=None), replace(second, host=None)
    stacked = stack_rows([([3, 0, 1], first), ([2, 4], second)])
    check_valid(stacked)
    for place, (tree, b) in {
        3: (first, 0),
        0: (first, 1),
        1: (first, 2),
        2: (second, 0),
        4: (second, 1),
    }.items():
        assert nodes_of(stacked, place) == nodes_of(tree, b)
    back = take_rows(stacked, [4, 3])
    assert nodes_of(back, 0) == nodes_of(second, 1)
    assert nodes_of(back, 1) == nodes_of(first, 0)


class Scripted(Drafter):
    """Proposes the tree it holds for a row's id (the bare root for others) and remembers what it was told."""

    def __init__(self, name: str, trees: dict[int, DraftTree], kinds: frozenset[Drawn] | None = None) -> None:
        self.name, self.trees, self.told = name, trees, list[tuple[str, Any]]()
        self.kinds = frozenset({Drawn.POINT}) if kinds is None else kinds
        self.coins: dict[int, float] = {}

    def propose(self, rows: Sequence[Row], budget: Budget, draws: Draws) -> DraftTree:
        self.told.append(("propose", [r.id for r in rows]))
        coins = draws.uniform(Purpose.DRAFT, torch.zeros((len(rows), 1), dtype=torch.int64))
        self.coins.update({r.id: float(coins[i, 0]) for i, r in enumerate(rows)})
        bare = replace(DraftTree.roots([0]), origins=("target", self.name))
        bare.host = [([0], [ROOT])]
        return stack_rows([([i], self.trees.get(r.id, bare)) for i, r in enumerate(rows)])

    def bind(self, context: DraftContext) -> None:
        self.told.append(("bind", context.vocab_size))

    def admit(self, row: Row) -> None:
        self.told.append(("admit", row.id))

    def observe(self, outcome: Outcome) -> None:
        self.told.append(("observe", outcome))

    def drop(self, row: Row) -> None:
        self.told.append(("drop", row.id))

    def fork(self, row: Row, clone: Row) -> None:
        self.told.append(("fork", (row.id, clone.id)))


def one(tokens: list[int], name: str, tensors: bool = False) -> DraftTree:
    tree = DraftTree.build([([0, *tokens], [ROOT, *range(len(tokens))])], origin=name)
    return replace(tree, host=None) if tensors else tree


@pytest.mark.parametrize("tensors", [False, True])
def test_priority_serves_each_row_from_the_first_that_proposes(tensors: bool) -> None:
    a = Scripted("a", {1: one([1], "a", tensors), 3: one([1, 1], "a", tensors)})
    b = Scripted("b", {1: one([2], "b"), 2: one([2, 2, 2], "b")})
    c = Scripted("c", {4: drawn_chain(3, Drawn.IID, "c")}, frozenset({Drawn.IID}))
    rows = [row([0], number) for number in range(5)]
    tree = Priority([a, b, c]).propose(rows, Budget(3, 3), draws_for(rows))
    check_valid(tree)
    assert [call[1] for d in (a, b, c) for call in d.told] == [[0, 1, 2, 3, 4], [0, 2, 4], [0, 4]]
    found = [[(n["origin"], n["token"]) for n in nodes_of(tree, b)[1:]] for b in range(5)]
    assert found == [[], [("a", 1)], [("b", 2)] * 3, [("a", 1)] * 2, [("c", 3)]]
    assert nodes_of(tree, 4)[1]["law"] == [1 / V] * V
    assert tree.law is not None
    assert (tree.law[:4] == -1).all()


def test_priority_asks_nobody_else_when_all_rows_are_served() -> None:
    a, b = Scripted("a", {0: one([1], "a"), 1: one([2], "a")}), Scripted("b", {})
    rows = [row([0], 0), row([0], 1)]
    tree = Priority([a, b]).propose(rows, Budget(3, 3), draws_for(rows))
    assert tree.tokens.tolist() == [[0, 1], [0, 2]]
    assert not b.told


def test_children_draw_from_streams_of_their_own() -> None:
    """No two leaves share coins, nested or not, and a row's coins do not depend on the rows beside it."""
    drawn = frozenset({Drawn.IID})
    parts = [Scripted(name, {}, drawn) for name in "abcd"]
    mixed = Priority([Merge([Priority([parts[0], parts[1]]), parts[2]]), parts[3]])
    rows = [row([0], number) for number in range(3)]
    mixed.propose(rows, Budget(3, 3), draws_for(rows))
    coins = [part.coins[r.id] for part in parts for r in rows]
    assert len(set(coins)) == len(coins) == 12
    mixed.propose(rows[2:], Budget(3, 3), draws_for(rows[2:]))
    assert [part.coins[2] for part in parts] == coins[2::3]
    point = Scripted("p", {})
    Merge([point]).propose(rows[:1], Budget(3, 3), draws_for(rows[:1]))
    expected = draws_for(rows[:1]).uniform(Purpose.DRAFT, torch.zeros((1, 1), dtype=torch.int64))
    assert point.coins[0] == float(expected)


@given(SEED, st.integers(0, 12), st.integers(1, 4), st.booleans())
def test_merge_stays_within_the_budget_whatever_children_do(seed: int, nodes: int, width: int, drawn: bool) -> None:
    rng = random.Random(seed)
    kinds = MIXED if drawn else POINT
    parts = [Scripted(name, {n: random_tree(rng, 1, kinds, name) for n in range(2)}) for name in "abc"]
    rows = [row([0], number) for number in range(2)]
    tree = Merge(parts).propose(rows, Budget(9, nodes, width), draws_for(rows))
    check_valid(tree)
    assert int(tree.real.sum(1).max()) - 1 <= nodes
    assert int(tree.sibling_rank.max()) < width
    assert tree.origins == ("target", "a", "b", "c")


def test_every_child_hears_everything_once() -> None:
    parts = [Scripted(name, {}) for name in "abc"]
    mixed = Priority([Merge(parts[:2]), parts[2]])
    request, clone = row([0], 1), row([0], 2)
    outcome = Outcome(rows=[request], tree=DraftTree.roots([0]), verdict=None, emitted=[[]])
    mixed.bind(DraftContext(NONE, V, torch.device("cpu"), 2))
    mixed.admit(request)
    mixed.fork(request, clone)
    mixed.observe(outcome)
    mixed.drop(request)
    told = [("bind", V), ("admit", 1), ("fork", (1, 2)), ("observe", outcome), ("drop", 1)]
    assert all(part.told == told for part in parts)
    assert list(leaves(mixed)) == parts


def test_what_children_need_is_needed() -> None:
    drawn = Scripted("m", {}, frozenset({Drawn.IID}))
    drawn.needs = Needs(hidden=(3,))
    mixed = Priority([SuffixDrafter(), Merge([TokenRecycling(), drawn])])
    assert mixed.name == "sam|token-recycling+m"
    assert mixed.needs == Needs(hidden=(3,), logits=True)
    assert mixed.kinds == {Drawn.POINT, Drawn.IID}
    assert mixed.branching
    chains = Priority([SuffixDrafter(), PromptLookup()])
    assert not chains.branching
    assert chains.needs == Needs()
    both = Merge([SuffixDrafter(), PromptLookup()])
    assert both.branching
    assert both.needs == Needs()


@pytest.mark.parametrize("kind", [Priority, Merge])
def test_wrong_combinations_are_named(kind: type[Mixture]) -> None:
    part = SuffixDrafter()
    with pytest.raises(ConfigError, match="has no drafters"):
        kind([])
    with pytest.raises(ConfigError, match="same drafter twice"):
        kind([Priority([part]), part])
    with pytest.raises(ConfigError, match="caps has 1 entries for 2 drafters"):
        Merge([SuffixDrafter(), part], caps=[3])


def test_merge_caps_leave_room_for_later_drafters() -> None:
    text = [1, 2, 3, 0, 1, 2, 3, 0]
    parts: list[Drafter] = [PromptLookup(), TokenRecycling()]
    request = row(text)
    for caps, origins in [(None, {"pld": 4}), ([2, None], {"pld": 2, "token-recycling": 2})]:
        mixed = Merge(parts, caps=caps)
        mixed.bind(DraftContext(NONE, 10, torch.device("cpu"), 1))
        mixed.admit(request)
        root = DraftTree.roots([0])
        logits = torch.arange(10.0).expand(1, 1, 10)
        mixed.observe(Outcome([request], root, NONE, [[0]], logits=logits))
        parts[1].observe(Outcome([], root, verdict_of_root(), [], logits=logits))
        tree = mixed.propose([request], Budget(4, 4, 8), draws_for([request]))
        check_valid(tree)
        found = [node["origin"] for node in nodes_of(tree, 0)[1:]]
        assert {name: found.count(name) for name in set(found)} == origins


def verdict_of_root() -> Any:
    return object()  # anything but None: the step was verified
