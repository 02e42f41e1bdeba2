"""What SmartSpec must show: the length of the largest goodput, by load and by acceptance, with times that are fitted.

Times are scripted, so that every decision repeats.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from outrider import ConfigError, SamplingParams, preset
from outrider.policy.acceptance import Book, Kind, chain_tokens, ladder
from outrider.policy.cost import DraftCost, LinearCost, StepCost
from outrider.policy.fixed import Fixed
from outrider.policy.goodput import Goodput
from outrider.policy.sources import best_length
from outrider.registry import needs
from outrider.run.row import Row
from outrider.sampling import RowSampling
from outrider.testing import conformance

from .simulated import simulate

K = 8


class ClosedForm(Book):
    """Knows the acceptance of every request."""

    def __init__(self, alphas: Sequence[float]) -> None:
        super().__init__()
        self.alphas = alphas

    def gains(self, kind: Kind, row: int | None, nodes: int) -> list[float]:
        assert row is not None
        return [chain_tokens(self.alphas[row], k) - 1 for k in ladder(nodes)]


def rows_of(count: int, context: int) -> list[Row]:
    params = SamplingParams(max_tokens=1000)
    sampling = RowSampling(params, 10, [1])
    return [Row(i, [1] * context, context, params, sampling, 0) for i in range(count)]


def planned(cost: LinearCost, alphas: Sequence[float], context: int) -> int:
    policy = Goodput(Fixed(K), StepCost(cost))
    rows = rows_of(len(alphas), context)
    policy.book = ClosedForm(alphas)
    policy.plan(rows)
    policy._sources[0].reach = K  # nothing is held back from a drafter that is known
    policy._sources[0].judged = -1
    return policy.plan(rows).depth


def brute_force(cost: LinearCost, alphas: Sequence[float], context: int) -> tuple[int, float]:
    """The length of the largest goodput, and that over the goodput of plain decoding."""
    n = len(alphas)
    goodput = [
        sum(chain_tokens(alpha, k) for alpha in alphas)
        / (cost.per_context * n * context + cost.per_token * n * (k + 1) + cost.fixed)
        for k in range(K + 1)
    ]
    best = int(np.argmax(goodput))
    return best, goodput[best] / goodput[0]


def test_smartspec_plans_the_argmax_found_by_brute_force() -> None:
    rng, met = np.random.default_rng(0), set()
    for _ in range(200):
        alphas = rng.uniform(0, 1, rng.integers(1, 9)).tolist()
        cost = LinearCost(*(10.0 ** rng.uniform([-8, -5, -3], [-5, -1.5, -1])).tolist())
        context = 64 * int(rng.integers(1, 32))
        best, gain = brute_force(cost, alphas, context)
        if abs(gain - 1.02) < 0.001:
            continue  # as good as plain, to the rounding of contexts
        expected = best if gain > 1.02 else 0
        assert planned(cost, alphas, context) == expected, f"{alphas}, {cost}, context {context}"
        met.add(expected)
    assert met == set(range(K + 1)), f"only the lengths {sorted(met)} were ever best"


def test_smartspec_takes_the_first_of_equals() -> None:
    assert best_length([1.0, 2.0, 4.0, 4.0], [1.0, 1.0, 2.0, 2.0]) == 1


def test_smartspec_stops_and_starts_at_different_gains() -> None:
    cost = LinearCost(0.0, 0.002, 0.008)  # one drafted token more costs a fifth of a plain step
    policy, rows = Goodput(Fixed(1), StepCost(cost), explore=0.0), rows_of(1, 64)

    def drafts(alpha: float) -> list[bool]:
        policy.book = ClosedForm([alpha])
        for source in policy._sources:
            source.judged = -1
        return [not policy.plan(rows).empty for _ in range(40)]

    assert all(drafts(0.26)[1:]), "worth 1.05 times plain, and running"
    assert not any(drafts(0.1))
    assert not any(drafts(0.26)), "worth 1.05 times plain, and stopped"
    assert all(drafts(0.4)[20:]), "worth 1.17 times plain"


@pytest.mark.parametrize("of", ["spec-decode(depth=3)", "sam(min_match=2)|token-recycling(nodes=9)", "pld+spec-decode"])
@pytest.mark.parametrize("check", ["batch of 8", "guarantee", "join and leave", "choices", "prefixes"])
def test_smartspec_of_other_presets_conforms(of: str, check: str) -> None:
    conformance.check(lambda: preset("smartspec", of=of), only=[check])


def test_smartspec_is_spelled_on_the_command_line() -> None:
    parts = preset('smartspec(of="spec-decode(depth=8, structure=top-k)", explore=0)')
    assert isinstance(parts.policy, Goodput)
    assert parts.policy.purse.share == 0
    assert parts.policy.core().plan([]).depth == 8
    assert preset("smartspec(of=sam)").policy.core().plan([]).depth == 40


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("smartspec(of=pldd)", "pldd"),
        ("smartspec(of=plain)", "plain"),
        ("smartspec(of=smartspec)", "smartspec"),
        ("smartspec(explore=2)", "explore"),
        ("smartspec(leave=1.2, back=1.1)", "back"),
        ("smartspec(leave=-1)", "leave"),
        ("smartspec(of=7)", "of"),
    ],
)
def test_smartspec_settings_that_cannot_work_are_named(spec: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        preset(spec)


@pytest.mark.parametrize("spec", ["smartspec(of=pld)|token-recycling(nodes=5)", "sam|smartspec(of=pld)"])
def test_smartspec_in_a_combination_decides_about_all_of_it(spec: str) -> None:
    policy = preset(spec).policy
    assert isinstance(policy, Goodput)
    assert not isinstance(policy.core(), Goodput)
    assert len(policy.core().plan([]).shares) == 2


def load(rows: int, nodes: int, step: int) -> float:
    """A GPU: up to some tokens their number hardly matters, then it is all that does."""
    return 0.010 + 0.0002 * rows * nodes


def test_smartspec_drafts_less_the_more_rows_there_are() -> None:
    cost, lengths = StepCost(LinearCost(0, 0.0002, 0.010), {"chance": DraftCost(level=0.0002)}), []
    for rows in (1, 8, 32, 128, 512):
        run = simulate(Goodput(Fixed(K), cost), lambda _: 0.9, load, rows=rows, tokens=100, level=0.0002)
        lengths.append(float(np.mean(run.nodes[-len(run.nodes) // 4 : -1])))
    print([f"{length:.1f}" for length in lengths])
    assert lengths[0] > 5
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[-1] < 1.0


def expensive(rows: int, nodes: int, step: int) -> float:
    return 0.010 + 0.002 * rows * nodes


WINDOW = 12
"""Drafts that the averages of a request run over."""


@pytest.mark.parametrize("lists", [True, False])
@pytest.mark.parametrize("level", [0.0, 0.002])
def test_smartspec_stops_when_acceptance_falls_and_tries_again(lists: bool, level: float) -> None:
    turn, tokens = 300, 1500
    run = simulate(
        Goodput(Fixed(K)),
        lambda emitted: 0.9 if emitted < turn else 0.0,
        expensive,
        tokens=tokens,
        level=level,
        lists=lists,
    )
    step = int(np.searchsorted(np.cumsum(run.emitted), turn))
    before, after = run.nodes[10:step], run.nodes[step + 3 * WINDOW :]
    assert np.mean(before) > 2
    assert np.mean(np.array(after) > 0) < 0.02
    if level or not lists:  # elsewhere proposals that are dropped tell enough
        assert sum(n > 0 for n in run.levels[step + 3 * WINDOW :]) >= 3, "never tried again"


@pytest.mark.parametrize("lists", [True, False])
def test_smartspec_does_not_try_again_when_told_not_to(lists: bool) -> None:
    policy = Goodput(Fixed(K), explore=0.0)
    run = simulate(policy, lambda _: 0.0, expensive, tokens=800, level=0.002, lists=lists)
    assert not any(run.levels[60:])


@pytest.mark.parametrize("lists", [True, False])
def test_smartspec_comes_back_when_acceptance_does(lists: bool) -> None:
    back = 600
    run = simulate(
        Goodput(Fixed(K)),
        lambda emitted: 0.95 if emitted >= back else 0.0,
        expensive,
        tokens=2400,
        level=0.001,
        lists=lists,
    )
    step = int(np.searchsorted(np.cumsum(run.emitted), back))
    assert np.mean(run.nodes[60:step]) < 0.2
    assert np.mean(run.nodes[-50:]) > 2
    assert run.nodes[-1] > 0


def test_smartspec_fit_predicts_held_out_steps() -> None:
    """Within 5 % in the mean, from steps that vary by 4 %, one in fifty of which was interrupted."""
    rng = np.random.default_rng(3)
    rows, nodes, context = rng.integers(1, 33, 400), rng.integers(1, 9, 400), rng.integers(20, 3000, 400)
    true = 0.008 + 0.0003 * rows * nodes + 2e-7 * rows * context
    seen = true * rng.lognormal(0, 0.04, 400)
    seen[rng.random(400) < 0.02] *= 1.5
    fit = LinearCost.fit(zip(rows[:200] * context[:200], rows[:200] * nodes[:200], seen[:200], strict=True))
    found = [fit.seconds(*map(int, step)) for step in zip(rows[200:], nodes[200:], context[200:], strict=True)]
    error = np.abs(np.array(found) / true[200:] - 1)
    assert error.mean() < 0.05
    blind = np.abs(seen[:200].mean() / true[200:] - 1)
    assert blind.mean() > 0.2, "a constant would do as well"


def test_smartspec_needs_what_it_is_built_of_needs() -> None:
    assert needs("smartspec") == {}
    assert needs('pld|smartspec(of="sam+spec-decode(depth=5, structure=top-k)")') == {"draft_model": "spec-decode"}
    assert needs("spec-decode(depth=2)|pld") == {"draft_model": "spec-decode"}
    with pytest.raises(ConfigError, match="nonsense"):
        needs('smartspec(of="sam|nonsense(depth=3)")')
