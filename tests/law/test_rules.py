"""Properties of the rules that need no statistics, or only a mean."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from outrider.errors import IncompatibleParts
from outrider.rng import Draws, Purpose
from outrider.sampling import Warped
from outrider.testing.stats import mean_within
from outrider.types import PADDING, DraftTree, Drawn, Role
from outrider.verify.base import TargetView, Verifier
from outrider.verify.match import Match
from outrider.verify.recursive import Recursive
from outrider.verify.rejection import ChainRejection
from outrider.verify.walk import path_to

from .drafts import IID, POINT, SCHEMES, WITHOUT, round_draws, sampled, scheme, world
from .integrate import HIGH, Coins, view_of

RULES = [Match(), ChainRejection(), Recursive()]
names = [type(rule).__name__ for rule in RULES]


def as_if_branching(tree: DraftTree) -> DraftTree:
    """The same chain with a wider bound, so that the rule for trees takes it."""
    return replace(tree, width_bound=2)


@pytest.mark.parametrize(
    "nodes",
    [
        scheme([(IID, 0)], [(IID, 0)], [(IID, 1)]),
        scheme([(POINT, 0)], [(POINT, 0)], [(POINT, 0)]),
        scheme([(WITHOUT, 0)], [(POINT, 0)], [(IID, 1)]),
    ],
)
def test_mcsd_with_one_candidate_is_spec_decode_decision_for_decision(nodes: list) -> None:
    drafted, draws = sampled(world(6, 3), nodes, 3000), round_draws(3000, 1)
    chain = ChainRejection().verify(drafted.tree, drafted.view, draws)
    tree = Recursive().verify(as_if_branching(drafted.tree), drafted.view, draws)
    assert set(chain.count.tolist()) == {1, 2, 3, 4}
    for name in ("path", "count", "bonus", "fallbacks"):
        assert torch.equal(getattr(chain, name), getattr(tree, name)), name
    assert torch.equal(chain.why.isnan(), tree.why.isnan())
    assert torch.allclose(chain.why, tree.why, rtol=1e-15, atol=0, equal_nan=True)


def test_match_makes_no_difference_between_a_chain_and_a_tree() -> None:
    drafted, draws = sampled(world(6, 3), scheme(*[[(IID, 0)]] * 3), 3000), round_draws(3000, 1)
    chain = Match().verify(drafted.tree, drafted.view, draws)
    tree = Match().verify(as_if_branching(drafted.tree), drafted.view, draws)
    assert torch.equal(chain.path, tree.path)
    assert torch.equal(chain.bonus, tree.bonus)
    assert torch.equal(chain.why.nan_to_num(2), tree.why.nan_to_num(2))


@pytest.mark.parametrize("rule", [ChainRejection(), Recursive()])
def test_spec_decode_accepts_everything_when_the_laws_are_equal(rule: Verifier) -> None:
    w = world(7, 4, distance=0.0)
    drafted = sampled(w, scheme(*[[(IID, 0)]] * 4), 20_000)
    drafted.tree = as_if_branching(drafted.tree) if isinstance(rule, Recursive) else drafted.tree
    verdict = rule.verify(drafted.tree, drafted.view, round_draws(20_000, 1))
    assert bool((verdict.count == 5).all())
    # The largest coin there is, and the float32 laws of real models, change nothing.
    largest = torch.full((20_000, 5), HIGH, dtype=torch.float64)
    coins = Coins(largest, torch.zeros(20_000, dtype=torch.float64))
    drafted.tree = replace(drafted.tree, laws=drafted.tree.laws.float())
    assert bool((rule.verify(drafted.tree, view_of(drafted.p.float()), coins).count == 5).all())


@pytest.mark.parametrize("gamma", [1, 3, 6])
def test_spec_decode_tokens_per_call_follow_the_formula(gamma: int) -> None:
    """(1 - a^(gamma+1)) / (1 - a) with a = sum min(p, q), when the laws do not depend on the context
    (Leviathan et al. 2211.17192, equation 1)."""
    rows, w = 40_000, world(9, 0, distance=0.3)
    p, q = w.p[0], w.q[0][0]
    draws = round_draws(rows, 2)
    index = torch.arange(1, gamma + 1).expand(rows, gamma)
    drafted = Warped.from_probs(q.expand(rows, gamma, 9)).choose(draws.uniform(Purpose.DRAFT, index))
    tree = DraftTree(
        tokens=torch.nn.functional.pad(drafted, (1, 0)),
        parents=torch.arange(-1, gamma).expand(rows, gamma + 1),
        depth_bound=gamma,
        drawn=torch.full((rows, gamma + 1), int(IID)),
        law=torch.zeros(rows, gamma + 1, dtype=torch.int64),
        laws=q.expand(rows, 1, 9),
    )
    verdict = ChainRejection().verify(tree, view_of(p.expand(rows, gamma + 1, 9)), draws)
    a = float(torch.minimum(p, q).sum())
    assert mean_within(verdict.count, (1 - a ** (gamma + 1)) / (1 - a))
    assert not mean_within(verdict.count, (1 - a**gamma) / (1 - a)), "the test must see one token less"


@pytest.mark.parametrize("rule", RULES, ids=names)
@pytest.mark.parametrize("name", ["chain iid", "without replacement (2,2)", "merged"])
def test_temperature_zero_gives_the_greedy_text(rule: Verifier, name: str) -> None:
    if name != "chain iid" and not rule.branching:
        return
    w, rows = world(6, 2), 2000
    drafted, draws = sampled(w, SCHEMES[name], rows), round_draws(rows, 1)
    best = drafted.p.argmax(2)
    greedy = TargetView(Warped(drafted.p.log(), [True] * rows))
    mixed = TargetView(Warped(drafted.p.log(), [i % 2 == 0 for i in range(rows)]))
    sure = view_of(torch.nn.functional.one_hot(best, 6).double())
    for view in (greedy, sure):
        verdict = rule.verify(drafted.tree, view, draws)
        assert len(set(verdict.count.tolist())) >= 2
        _assert_greedy(drafted.tree, verdict.path, verdict.bonus, best, torch.arange(rows))
    verdict = rule.verify(drafted.tree, mixed, draws)
    _assert_greedy(drafted.tree, verdict.path, verdict.bonus, best, torch.arange(0, rows, 2))


def _assert_greedy(
    tree: DraftTree, path: torch.Tensor, bonus: torch.Tensor, best: torch.Tensor, rows: torch.Tensor
) -> None:
    for b in rows.tolist():
        nodes = [n for n in path[b].tolist() if n >= 0]
        text = [*tree.tokens[b, nodes[1:]].tolist(), int(bonus[b])]
        assert text == best[b, nodes].tolist()


@pytest.mark.parametrize("rule", RULES, ids=names)
def test_rows_do_not_see_each_other_or_padding(rule: Verifier) -> None:
    drafted, draws = sampled(world(6, 2), SCHEMES["chain iid"], 64), round_draws(64, 1)
    together = rule.verify(drafted.tree, drafted.view, draws)
    garbage = torch.full((64, 2, 6), torch.nan, dtype=torch.float64)
    padded = replace(
        drafted.tree,
        **{
            name: torch.nn.functional.pad(getattr(drafted.tree, name), (0, 2), value=value)
            for name, value in (("tokens", 0), ("parents", PADDING), ("drawn", int(IID)), ("law", 0))
        },
    )
    wide = rule.verify(padded, view_of(torch.cat([drafted.p, garbage], 1)), draws)
    assert torch.equal(together.path, wide.path)
    assert torch.equal(together.bonus, wide.bonus)
    assert torch.equal(together.count, wide.count)
    one = rule.verify(DraftTree.roots(drafted.tree.tokens[:, 0]), view_of(drafted.p[:, :1]), draws)
    assert one.path.tolist() == [[0]] * 64
    assert one.count.tolist() == [1] * 64
    if isinstance(rule, Match):  # the text does not depend on the draft
        first = torch.where(together.count > 1, drafted.tree.tokens[:, 1], together.bonus)
        assert torch.equal(one.bonus, first)


@pytest.mark.parametrize("rule", RULES, ids=names)
def test_probes_are_never_accepted(rule: Verifier) -> None:
    drafted, draws = sampled(world(6, 2), SCHEMES["chain iid"], 500), round_draws(500, 1)
    role = torch.tensor([Role.CANDIDATE, Role.CANDIDATE, Role.PROBE]).expand(500, 3)
    verdict = rule.verify(replace(drafted.tree, role=role), drafted.view, draws)
    free = rule.verify(drafted.tree, drafted.view, draws)
    assert torch.equal(verdict.count, free.count.clamp(max=2))
    assert bool(verdict.why[:, 2].isnan().all())


@pytest.mark.parametrize("rule", RULES, ids=names)
@pytest.mark.parametrize("wide", [False, True])
def test_an_accepted_late_leaf_is_the_bonus(rule: Verifier, wide: bool) -> None:
    if wide and not rule.branching:
        return
    drafted, draws = sampled(world(6, 2), SCHEMES["chain iid"], 500), round_draws(500, 1)
    tree = as_if_branching(drafted.tree) if wide else drafted.tree
    role = torch.tensor([Role.CANDIDATE, Role.CANDIDATE, Role.LATE]).expand(500, 3)
    p = drafted.p.clone()
    p[:, 2] = torch.nan  # the target was not run there
    verdict = rule.verify(replace(tree, role=role), view_of(p), draws)
    free = rule.verify(tree, drafted.view, draws)
    all_ = free.count == 3
    assert 50 < int(all_.sum()) < 450
    assert torch.equal(verdict.count, free.count.clamp(max=2))
    assert torch.equal(verdict.bonus, torch.where(all_, drafted.tree.tokens[:, 2], free.bonus))


def test_match_takes_the_deepest_of_equal_siblings_and_the_first_of_equal_depth() -> None:
    #            0
    #        1       2 (the same token)      a third path of depth 2 repeats 4
    #                3   4
    tree = DraftTree.build([([9, 5, 5, 7, 7], [-1, 0, 0, 2, 2])])
    law = torch.zeros(1, 5, 10)
    law[0, 0, 5] = law[0, 1, 1] = law[0, 2, 7] = law[0, 3, 2] = law[0, 4, 3] = 1
    verdict = Match().verify(tree, view_of(law), round_draws(1, 0))
    assert verdict.path.tolist() == [[0, 2, 3]]
    assert verdict.bonus.tolist() == [2]


def test_a_residual_lost_to_rounding_is_counted() -> None:
    p = torch.full((1, 2, 4), 0.25)
    q = torch.full((1, 1, 4), 0.25 * (1 + 2.0**-20))
    tree = DraftTree(
        tokens=torch.tensor([[0, 1]]),
        parents=torch.tensor([[-1, 0]]),
        depth_bound=1,
        drawn=torch.full((1, 2), int(Drawn.IID)),
        law=torch.tensor([[-1, 0]]),
        laws=q,
    )
    coins = Coins(torch.full((1, 2), HIGH, dtype=torch.float64), torch.tensor([0.9], dtype=torch.float64))
    for rule, shape in ((ChainRejection(), tree), (Recursive(), as_if_branching(tree))):
        verdict = rule.verify(shape, view_of(p), coins)
        assert verdict.count.tolist() == [1]
        assert verdict.fallbacks.tolist() == [True]
        assert verdict.bonus.tolist() == [3], "drawn from p itself"


def test_an_impossible_token_is_never_accepted_even_by_the_smallest_coin() -> None:
    drafted = sampled(world(5, 2), SCHEMES["siblings point"], 1)
    p = torch.zeros(1, 7, 5, dtype=torch.float64)
    free = [t for t in range(5) if t not in drafted.tree.tokens[0, 1:3].tolist()]
    p[0, 0, free] = 1 / len(free)
    zero = Coins(torch.zeros(1, 7, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
    verdict = Recursive().verify(drafted.tree, view_of(p), zero)
    assert verdict.count.tolist() == [1]
    assert int(verdict.bonus) in free


def test_the_rows_of_p_and_q_are_left_as_they_are() -> None:
    for name in ("chain iid", "merged"):
        drafted = sampled(world(6, 2), SCHEMES[name], 500)
        p, laws = drafted.p.clone(), drafted.tree.laws.clone()
        for rule in RULES if name == "chain iid" else [Match(), Recursive()]:
            rule.verify(drafted.tree, drafted.view, round_draws(500, 1))
        assert torch.equal(p, drafted.p)
        assert torch.equal(laws, drafted.tree.laws)


def test_a_tree_given_to_the_chain_rule_is_refused_with_the_remedy() -> None:
    drafted = sampled(world(6, 2), SCHEMES["without replacement (2,2)"], 2)
    with pytest.raises(IncompatibleParts, match="recursive rule"):
        ChainRejection().verify(drafted.tree, drafted.view, round_draws(2, 1))


def test_paths_of_random_trees_are_the_paths() -> None:
    state = Draws.of(torch.tensor([5]), torch.tensor([0]), torch.tensor([0]))
    for trial in range(20):
        u = state.uniform(Purpose.DRAFT, torch.arange(trial * 50, trial * 50 + 24)[None])[0]
        parents = [-1] + [int(x * n) for n, x in enumerate(u.tolist()[:11], 1)]
        tree = DraftTree.build([(list(range(12)), parents)] * 12)
        path, count = path_to(tree, torch.arange(12))
        for end in range(12):
            expected, at = [], end
            while at >= 0:
                expected.insert(0, at)
                at = parents[at]
            assert path[end, : count[end]].tolist() == expected
            assert bool((path[end, count[end] :] == -1).all())
