"""Any two presets combine; any structure, policy and fitting verifier do; and the text stays that of plain decoding."""

from __future__ import annotations

import os
import random
from datetime import date
from itertools import permutations
from typing import Any

import pytest

from outrider import Parts, list_presets, preset
from outrider.draft.model import DraftModel
from outrider.policy.base import Policy
from outrider.policy.fixed import Fixed
from outrider.policy.signals import Confidence
from outrider.registry import REGISTRY
from outrider.testing.conformance import menu
from outrider.testing.decode import Case, check_same, decode, plain
from outrider.testing.world import tiny_world
from outrider.tree.grow import Chain, Structure, Template, TopK
from outrider.tree.static import StaticTree
from outrider.verify.base import Verifier
from outrider.verify.match import Match
from outrider.verify.recursive import Recursive
from outrider.verify.rejection import ChainRejection

WORLD = tiny_world()


def training_free() -> list[str]:
    """Presets that draft and need neither training nor a second model."""
    found = [REGISTRY.get(name) for name in list_presets()]
    return [p.name for p in found if not p.trained and not p.needs and p.build().drafter is not None]


FREE = training_free()
PAIRS = [f"{left}{sign}{right}" for left, right in permutations([*FREE, "spec-decode(depth=3)"], 2) for sign in "|+"]


def test_every_pair_is_here() -> None:
    n = len(FREE) + 1
    assert n >= 5
    assert len(PAIRS) == 2 * n * (n - 1)


def few(temperature: float) -> list[Case]:
    return [case.with_(max_tokens=8) for case in menu(temperature)[:4]]


@pytest.mark.parametrize("spec", PAIRS)
def test_a_pair(spec: str) -> None:
    parts = preset(spec)
    assert parts.drafter is not None
    assert parts.drafter.kinds <= parts.verifier.kinds
    cases = few(0.0) + few(0.7)[1:3]
    found = decode(WORLD, parts.with_(verifier=Match()), cases, max_rows=4)
    check_same(found, plain(WORLD, cases), spec)
    if not isinstance(parts.verifier, Match):
        cases = few(0.0)
        check_same(decode(WORLD, preset(spec), cases), plain(WORLD, cases), f"{spec} with its own verifier")


@pytest.mark.parametrize("spec", ["pld+sam|token-recycling", "sam|pld+spec-decode(depth=2)"])
def test_three(spec: str) -> None:
    cases = few(0.7)
    found = decode(WORLD, preset(spec, verifier=Match()), cases, max_rows=3)
    check_same(found, plain(WORLD, cases), spec)


SEED = int(os.environ.get("OUTRIDER_TEST_SEED", date.today().toordinal()))
"""Another sample every day; the message of a failure says which."""


def structure(rng: random.Random) -> tuple[Structure, int]:
    """(a structure, siblings it needs)."""
    kind = rng.choice(["chain", "top", "sample", "top-k"])
    if kind == "chain":
        return Chain(), 1
    width = rng.randint(2, 4)
    if kind == "top-k":
        return TopK(), width
    ranks = sorted((rng.random() for _ in range(width)), reverse=True)
    shape = StaticTree.best_first(ranks, nodes=rng.randint(2, 12), depth=rng.randint(1, 4))
    return Template(shape, kind), width  # type: ignore[arg-type]


def random_parts(rng: random.Random) -> tuple[Parts, str]:
    shape, width = structure(rng)
    depth, nodes = rng.randint(1, 5), rng.randint(1, 16)
    policy: Policy = Fixed(depth, nodes, width)
    if rng.random() < 0.4:
        policy = Confidence(depth, rng.choice([0.1, 0.4, 0.9]), nodes, width)
    fitting: list[Verifier] = [Match(), Recursive()]
    if not shape.branching:
        fitting.append(ChainRejection())
    verifier = rng.choice(fitting)
    parts = Parts(drafter=DraftModel(shape), policy=policy, verifier=verifier)
    return parts, f"{type(shape).__name__}, {policy}, {type(verifier).__name__}"


def check_one(number: int) -> None:
    rng = random.Random(1000 * SEED + number)
    parts, words = random_parts(rng)
    temperature = rng.choice([0.0, 0.7, 1.3])
    limits: dict[str, Any] = {"max_rows": rng.choice([1, 3, 8])}
    if rng.random() < 0.3:
        limits["max_nodes"] = rng.choice([8, 24])
    words += f", T = {temperature}, {limits}; again with OUTRIDER_TEST_SEED={SEED} and -k 'random and {number}'"
    cases = few(temperature) if isinstance(parts.verifier, Match) else few(0.0) + few(temperature)
    try:
        found = decode(WORLD, parts, cases, **limits)
        same = len(cases) if isinstance(parts.verifier, Match) else 4
        check_same(found[:same], plain(WORLD, cases[:same]), "a random combination")
    except Exception as error:
        raise AssertionError(f"{words}: {error}") from error


@pytest.mark.parametrize("number", range(20))
def test_random_parts(number: int) -> None:
    check_one(number)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(20, 300))
def test_more_random_parts(number: int) -> None:
    check_one(number)
