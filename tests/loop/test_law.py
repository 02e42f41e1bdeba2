"""Through the loop, with its own verifier, every way of decoding has the law of the target.

The joint law of the first depth + 2 tokens spans at least two rounds. Parts with one deliberate mistake must be
caught by the same test with the same power.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from outrider import Parts, Verifier, list_presets, preset
from outrider.model.table import TableModel
from outrider.policy.fixed import Fixed
from outrider.registry import REGISTRY
from outrider.testing.loop import check_law, law_test, sample
from outrider.testing.world import World, missing, table_world
from outrider.types import Guarantee
from outrider.verify.recursive import Recursive
from outrider.verify.rejection import ChainRejection

from .parts import Block, NoResidual, ReusedCoins, ReusedDrafts, TableDrafter

PRESETS = list_presets()
DEPTH, LENGTH = 2, 4
WIDER = {"auto": 8, "token-recycling": 8}
"""Vocabularies of presets that rank more than four successors."""


def flat_world() -> World:
    """Nearly uniform laws over three tokens: drafts are often wrong, and a coin that is used twice shows most."""
    target = TableModel(3, seed=1, sharpness=0.3)
    return World(target, target.near(1.0, 1001))


FLAT = flat_world()


def at_depth(name: str) -> Parts:
    """A preset that drafts ``DEPTH`` levels."""
    if "depth" in REGISTRY.get(name).settings:
        return preset(name, depth=DEPTH)
    parts = preset(name)
    return parts if parts.drafter is None else parts.with_(policy=Fixed(DEPTH, nodes=6, width=3))


def chain(rule: Verifier, drafter: TableDrafter, depth: int = DEPTH) -> Parts:
    return Parts(drafter=drafter, policy=Fixed(depth), verifier=rule, name=type(rule).__name__)


def learner() -> TableDrafter:
    return TableDrafter(FLAT.draft, learning=True)  # type: ignore[arg-type]


def stateless() -> TableDrafter:
    return TableDrafter(FLAT.draft)  # type: ignore[arg-type]


def test_every_preset_is_here() -> None:
    assert len(PRESETS) >= 6
    assert set(WIDER) <= set(PRESETS)
    assert not [name for name in PRESETS if missing(name, FLAT)]


def preset_world(name: str) -> World:
    return table_world(WIDER.get(name, 4))


@pytest.mark.parametrize("name", PRESETS)
def test_law_of_a_preset(name: str) -> None:
    """20,000 rows. A preset that promises the identical text is compared with plain decoding row by row, which says
    more with fewer rows; its own 20,000 rows are marked slow."""
    parts, world = at_depth(name), preset_world(name)
    if parts.drafter is not None and parts.guarantee is Guarantee.IDENTICAL:
        drawn, right = (
            sample(make, world, 4_000, LENGTH) for make in (lambda: at_depth(name), lambda: preset("plain"))
        )
        assert drawn.stats.accepted_tokens > 200
        assert drawn.rounds > 1
        assert drawn.tokens.equal(right.tokens)
        return
    result = check_law(lambda: at_depth(name), LENGTH, world, drafts=parts.drafter is not None)
    print(f"{name}: {result}")
    assert result.bins > 100


@pytest.mark.slow
def test_law_of_plain_decoding_over_more_tokens() -> None:
    """The reference for presets that are compared over eight tokens."""
    print(check_law(lambda: preset("plain"), LENGTH, table_world(8), drafts=False))


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_law_of_a_preset_with_more_rows(name: str) -> None:
    drafts = at_depth(name).drafter is not None
    print(name, check_law(lambda: at_depth(name), LENGTH, preset_world(name), 60_000, drafts))


RIGHT: dict[str, tuple[Callable[[], Parts], World, dict[str, float]]] = {
    "sampled siblings, recursive rejection": (
        lambda: preset("spec-decode", structure="sampled", depth=DEPTH, width=2, nodes=5),
        table_world(4),
        {},
    ),
    "learning drafter": (lambda: chain(ChainRejection(), learner()), FLAT, {}),
    "learning drafter, top-p": (
        lambda: chain(ChainRejection(), learner()),
        FLAT,
        {"temperature": 0.7, "top_p": 0.8},
    ),
    "a rule that looks behind a failed coin": (lambda: chain(Block(), stateless()), FLAT, {}),
}

SLOW: dict[str, tuple[Callable[[], Parts], World, dict[str, float]]] = {
    "stateless drafter": (lambda: chain(ChainRejection(), stateless()), FLAT, {}),
    "drafts of three": (lambda: chain(ChainRejection(), learner(), depth=3), FLAT, {}),
    "merged": (
        lambda: preset(f"pld(depth={DEPTH}) + spec-decode(depth={DEPTH}, structure=sampled, width=2, nodes=5)"),
        table_world(4),
        {},
    ),
    "merged, top-p": (
        lambda: preset(f"pld(depth={DEPTH}) + spec-decode(depth={DEPTH}, structure=sampled, width=2, nodes=5)"),
        table_world(4),
        {"temperature": 0.8, "top_p": 0.9},
    ),
    "priority": (lambda: preset(f"pld(depth={DEPTH}, min_ngram=2) | spec-decode(depth={DEPTH})"), table_world(4), {}),
    "confidence": (lambda: preset("spec-decode", depth=DEPTH, threshold=0.5), table_world(4), {}),
}


def run(case: tuple[Callable[[], Parts], World, dict[str, float]], rows: int) -> None:
    make, world, params = case
    length = make().policy.plan([]).depth + 2
    print(f"{make().name}: {check_law(make, length, world, rows, **params)}")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", RIGHT)
def test_law(name: str) -> None:
    run(RIGHT[name], 20_000)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*RIGHT, *SLOW])
def test_law_with_many_rows(name: str) -> None:
    run((RIGHT | SLOW)[name], 60_000)


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_law_of_a_preset_with_top_p(name: str) -> None:
    drafts = at_depth(name).drafter is not None
    shape = {"temperature": 0.8, "top_p": 0.9}
    print(name, check_law(lambda: at_depth(name), LENGTH, preset_world(name), 60_000, drafts, **shape))


BROKEN: dict[str, Callable[[], Parts]] = {
    "reused draws, learning drafter": lambda: chain(
        ReusedCoins(ChainRejection()),
        ReusedDrafts(FLAT.draft, learning=True),  # type: ignore[arg-type]
    ),
    "reused coins, a rule that looks behind a failed one": lambda: chain(ReusedCoins(Block()), stateless()),
    "no residual": lambda: chain(NoResidual(ChainRejection()), stateless()),
    "no residual, siblings": lambda: preset(
        "spec-decode",
        structure="sampled",
        depth=DEPTH,
        width=2,
        nodes=5,
        verifier=NoResidual(Recursive()),
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_twin_is_caught(name: str) -> None:
    result, drawn = law_test(BROKEN[name], LENGTH, FLAT, rows=10_000)
    print(f"{name}: {result}")
    assert drawn.rounds > 2
    assert result.p_value < 1e-9
