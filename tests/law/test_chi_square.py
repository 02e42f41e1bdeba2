"""Large samples: the first two tokens of 100,000 rows against the exact law, and twins that must fail."""

from __future__ import annotations

from functools import cache

import pytest

from outrider.testing.stats import ChiSquare, chi_square, histogram
from outrider.verify.base import Verifier
from outrider.verify.match import Match
from outrider.verify.recursive import Recursive
from outrider.verify.rejection import ChainRejection

from . import twins
from .drafts import SCHEMES, Drafted, emitted, round_draws, sampled, world

ROWS, VOCAB, SEED = 100_000, 8, 3
FEWER = 40_000  # a mistake is found with less
WORLD = world(VOCAB, 2)
CHAINS = ["chain iid", "chain point"]


@cache
def drafts(scheme: str, resort: bool = False) -> Drafted:
    return sampled(WORLD, SCHEMES[scheme], ROWS, seed=7, resort=resort)


def law_of(rule: Verifier, drafted: Drafted) -> tuple[ChiSquare, ChiSquare]:
    """Tests of the first token and of the first two, from one call of the rule."""
    verdict = rule.verify(drafted.tree, drafted.view, round_draws(drafted.tree.shape[0], SEED))
    tokens = emitted(WORLD, drafted.tree, verdict, 2, SEED)
    return (
        chi_square(histogram(tokens[:, :1], VOCAB), WORLD.joint(1)),
        chi_square(histogram(tokens, VOCAB), WORLD.joint(2)),
    )


CASES = [
    *((ChainRejection(), name) for name in CHAINS),
    *((Recursive(), name) for name in SCHEMES),
    *((Match(), name) for name in SCHEMES),
]


@pytest.mark.parametrize(("rule", "scheme"), CASES, ids=[f"{type(r).__name__}-{s}" for r, s in CASES])
def test_the_law_is_that_of_the_target(rule: Verifier, scheme: str) -> None:
    first, pair = law_of(rule, drafts(scheme))
    print(f"{type(rule).__name__} | {scheme} | first {first} | pair {pair}")
    assert first.bins == VOCAB
    assert pair.bins > VOCAB * VOCAB / 2
    assert first.p_value > 0.001, first
    assert pair.p_value > 0.001, pair


TWINS = [
    *((twins.BonusFromP(ChainRejection()), name) for name in CHAINS),
    *((twins.BonusFromP(Recursive()), name) for name in SCHEMES if name not in CHAINS),
    *((twins.BestOfTwo(), name) for name in ("chain iid", "without replacement (3,1)", "merged")),
    (twins.ReplacementForgotten(Recursive()), "without replacement (3,1)"),
    (twins.ReplacementForgotten(Recursive()), "without replacement (2,2)"),
    (twins.TopKAsSampled(ChainRejection()), "chain point"),
    (twins.TopKAsSampled(Recursive()), "siblings point"),
    (twins.OneLawForAll(Recursive()), "merged"),
    (twins.OneLawForAll(Recursive()), "merged, two laws"),
]


@pytest.mark.parametrize(("twin", "scheme"), TWINS, ids=[f"{type(t).__name__}-{s}" for t, s in TWINS])
def test_a_broken_rule_is_caught(twin: Verifier, scheme: str) -> None:
    first, pair = law_of(twin, drafts(scheme).head(FEWER))
    print(f"{type(twin).__name__} | {scheme} | first {first} | pair {pair}")
    assert min(first.p_value, pair.p_value) < 1e-6


@pytest.mark.parametrize("scheme", ["without replacement (3,1)", "without replacement (2,2)"])
def test_siblings_sorted_by_probability_are_caught(scheme: str) -> None:
    first, pair = law_of(Recursive(), drafts(scheme, resort=True).head(FEWER))
    print(f"resorted | {scheme} | first {first} | pair {pair}")
    assert min(first.p_value, pair.p_value) < 1e-6


def test_match_does_not_care_for_the_order_of_siblings() -> None:
    for scheme in ("without replacement (3,1)", "without replacement (2,2)"):
        assert min(t.p_value for t in law_of(Match(), drafts(scheme, resort=True))) > 0.001
