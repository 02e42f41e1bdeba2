"""Exact laws on tiny vocabularies: over all drafts and all coins, the joint law of depth+1 tokens is p's."""

from __future__ import annotations

import pytest
import torch

from outrider.verify.base import Verifier
from outrider.verify.match import Match
from outrider.verify.recursive import Recursive
from outrider.verify.rejection import ChainRejection

from . import twins
from .drafts import IID, POINT, SCHEMES, WITHOUT, Node, enumerated, scheme, world
from .integrate import joint_of_match, joint_of_rejection, thresholds

CHAIN, TREE, MATCH = ChainRejection(), Recursive(), Match()

# rule, vocabulary, scheme, how many drafts there are
CASES: dict[str, tuple[Verifier, int, list[Node], int]] = {
    "chain iid": (CHAIN, 5, SCHEMES["chain iid"], 5**2),
    "chain iid, three deep": (CHAIN, 3, scheme([(IID, 0)], [(IID, 0)], [(IID, 0)]), 3**3),
    "chain point": (CHAIN, 5, scheme([(POINT, 0)], [(POINT, 0)], [(POINT, 0)]), 1),
    "chain of mixed kinds": (CHAIN, 4, scheme([(POINT, 0)], [(IID, 1)], [(WITHOUT, 0)]), 4**2),
    "recursive (3,1)": (TREE, 4, SCHEMES["without replacement (3,1)"], 24 * 2**3),
    "recursive (3)": (TREE, 5, scheme([(WITHOUT, 0)] * 3), 60),
    "recursive (2,2)": (TREE, 3, SCHEMES["without replacement (2,2)"], 6 * 6**2),
    "recursive iid": (TREE, 4, scheme([(IID, 0)] * 2, [(IID, 0)]), 4**2 * 4**2),
    "recursive point": (TREE, 4, SCHEMES["siblings point"], 1),
    "recursive, support used up": (TREE, 3, scheme([(WITHOUT, 0)] * 3, [(WITHOUT, 0)]), 6 * 3**3),
    "merged": (TREE, 3, scheme([(WITHOUT, 0), (IID, 1), (WITHOUT, 0), (POINT, 0)], [(POINT, 0)]), 6 * 3),
    "merged, two laws": (TREE, 3, scheme([(WITHOUT, 0), (WITHOUT, 1), (WITHOUT, 0), (WITHOUT, 1)]), 6 * 6),
}


def error_of(rule: Verifier, vocab: int, nodes: list[Node], drafts: int) -> float:
    """The largest difference between the joint law under ``rule`` and the target's."""
    w = world(vocab, max(node.depth for node in nodes))
    if nodes is SCHEMES["without replacement (3,1)"]:
        w = w.truncated(2)
    drafted = enumerated(w, nodes)
    assert drafted.tree.shape[0] == drafts, "all drafts, and each of them once"
    assert abs(float(drafted.weight.sum()) - 1) < 1e-12
    integrate = joint_of_match if isinstance(rule, Match | twins.BestOfTwo) else joint_of_rejection
    joint = integrate(rule, w, drafted, nodes)
    return float((joint - w.joint(joint.dim())).abs().max())


@pytest.mark.parametrize("name", CASES)
def test_the_joint_law_is_exact(name: str) -> None:
    assert error_of(*CASES[name]) < 1e-9


@pytest.mark.parametrize(
    ("vocab", "nodes", "drafts"),
    [
        (4, SCHEMES["chain iid"], 4**2),
        (3, SCHEMES["without replacement (2,2)"], 6 * 6**2),
        (4, scheme([(IID, 0)] * 2, [(IID, 0)]), 4**2 * 4**2),
        (3, scheme([(WITHOUT, 0), (IID, 1), (POINT, 0)], [(IID, 0)]), 3 * 3 * 3**3),
    ],
)
def test_the_joint_law_of_match_is_exact(vocab: int, nodes: list[Node], drafts: int) -> None:
    assert error_of(MATCH, vocab, nodes, drafts) < 1e-9


TWINS = {
    "residual p, chain": (twins.BonusFromP(CHAIN), "chain iid"),
    "residual p, points": (twins.BonusFromP(CHAIN), "chain point"),
    "residual p, tree": (twins.BonusFromP(TREE), "recursive (2,2)"),
    "top-k as sampled": (twins.TopKAsSampled(TREE), "recursive point"),
    "replacement forgotten (3)": (twins.ReplacementForgotten(TREE), "recursive (3)"),
    "replacement forgotten (2,2)": (twins.ReplacementForgotten(TREE), "recursive (2,2)"),
    "replacement forgotten, merged": (twins.ReplacementForgotten(TREE), "merged, two laws"),
    "one law for all": (twins.OneLawForAll(TREE), "merged, two laws"),
}


@pytest.mark.parametrize("name", TWINS)
def test_a_broken_rule_is_off(name: str) -> None:
    twin, case = TWINS[name]
    assert error_of(twin, *CASES[case][1:]) > 1e-4


@pytest.mark.parametrize("name", ["chain iid", "recursive (3)", "merged, two laws"])
def test_why_is_the_acceptance_probability(name: str) -> None:
    rule, vocab, nodes, _ = CASES[name]
    found, said = thresholds(rule, enumerated(world(vocab, max(n.depth for n in nodes)), nodes), nodes)
    tested = ~said.isnan()
    tested[:, 0] = False
    assert int(tested.sum()) > tested.shape[0]
    assert float((found - said)[tested].abs().max()) < 1e-9


def test_without_replacement_accepts_more_than_iid_and_that_more_than_one() -> None:
    """The ordering of Yang et al. (2401.06706) and Jeon et al. (2402.14160), over random pairs of laws."""
    rates = {}
    for kind, count in ((IID, 1), (IID, 3), (WITHOUT, 3)):
        nodes, total = scheme([(kind, 0)] * count), 0.0
        for seed in range(4):
            drafted = enumerated(world(5, 1, seed=seed, distance=1.5), nodes)
            passed, _ = thresholds(TREE, drafted, nodes)
            total += float((drafted.weight * (1 - (1 - passed[:, 1:]).prod(1))).sum())
        rates[kind, count] = total / 4
    print(rates)
    assert rates[WITHOUT, 3] > rates[IID, 3] + 0.01 > rates[IID, 1] + 0.05
    assert torch.tensor(list(rates.values())).max() < 1
