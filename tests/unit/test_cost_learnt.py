"""Costs learnt from steps: what a slow step, a first call, another context or a busy hour may change, and what not."""

from __future__ import annotations

import numpy as np
import pytest

from outrider.policy.cost import Cost, DraftCost, ForwardCost
from outrider.policy.learnt import PLAIN_CPU, LearntCost, LearntDraft, Window


def true(rows: int, nodes: int, context: float) -> float:
    return (0.02 + 0.004 * rows * nodes) * (1 + context / 4000)


def taught(prior: Cost, steps: int = 60, seed: int = 0, spikes: float = 0.0) -> LearntCost:
    """After ``steps`` steps of 1, 5 or 9 nodes, of which a share takes ten times as long."""
    cost, rng = LearntCost(prior), np.random.default_rng(seed)
    for step in range(steps):
        nodes = (1, 5, 9)[step % 3]
        seconds = true(1, nodes, 300) * float(rng.lognormal(0, 0.03)) * (10 if rng.random() < spikes else 1)
        cost.observe(1, nodes, 300 + step, seconds)
    return cost


@pytest.mark.parametrize("spikes", [0.0, 0.15])
def test_seconds_are_learnt_whatever_the_start(spikes: float) -> None:
    cost = taught(PLAIN_CPU, spikes=spikes)
    for nodes in (1, 5, 9):
        assert cost.seconds(1, nodes, 320) == pytest.approx(true(1, nodes, 320), rel=0.08)


def test_between_measured_sizes_the_correction_is_shared() -> None:
    cost = taught(PLAIN_CPU)
    assert cost.seconds(1, 7, 320) == pytest.approx(true(1, 7, 320), rel=0.15)


def test_a_profile_is_right_before_the_first_step_and_follows_the_day() -> None:
    profile = ForwardCost.measured({(1, n, c): true(1, n, c) for n in (1, 9, 33) for c in (0, 4000)})
    cost = LearntCost(profile)
    assert cost.seconds(1, 9, 2000) == pytest.approx(true(1, 9, 2000), rel=0.02)
    for _ in range(20):
        cost.observe(1, 1, 2000, 2 * true(1, 1, 2000))
    assert cost.seconds(1, 9, 2000) == pytest.approx(2 * true(1, 9, 2000), rel=0.02), "a busy machine"


def test_first_calls_do_not_count() -> None:
    cost = LearntCost(PLAIN_CPU)
    for _ in range(3):
        cost.observe(1, 1, 0, 0.02)
    cost.observe(1, 9, 0, 2.0)  # allocates
    assert cost.seconds(1, 9, 0) < 0.05
    for _ in range(2):
        cost.observe(1, 9, 0, 0.03)
    assert cost.seconds(1, 9, 0) == pytest.approx(0.03, rel=0.05)


def test_one_slow_step_changes_nothing_much() -> None:
    cost = taught(PLAIN_CPU)
    before = cost.seconds(1, 9, 320), cost.seconds(1, 1, 320)
    cost.observe(1, 9, 320, 5.0)
    cost.observe(1, 1, 320, 5.0)
    assert (cost.seconds(1, 9, 320), cost.seconds(1, 1, 320)) == pytest.approx(before, rel=0.05)


def test_more_nodes_never_seem_cheaper() -> None:
    cost = LearntCost(PLAIN_CPU)
    for nodes, seconds in ((1, 0.05), (9, 0.02), (5, 0.1)):
        for _ in range(5):
            cost.observe(1, nodes, 0, seconds)
    curve = cost.curve(1, 0, range(20))
    assert curve == sorted(curve)
    assert curve[0] == pytest.approx(0.05)


def test_without_a_plain_step_the_shape_is_believed() -> None:
    cost = LearntCost(PLAIN_CPU)
    for _ in range(4):
        cost.observe(1, 8, 0, 0.17)
    assert cost.seconds(1, 1, 0) == pytest.approx(0.1)
    assert cost.plain_steps(1, 0) == 0


def test_levels_are_kept_by_rows_and_context() -> None:
    cost = LearntCost(PLAIN_CPU)
    for context, seconds in ((50, 0.01), (3000, 0.04)):
        for _ in range(3):
            cost.observe(1, 1, context, seconds)
    assert cost.seconds(1, 1, 60) == pytest.approx(0.01)
    assert cost.seconds(1, 1, 2900) == pytest.approx(0.04)
    assert cost.seconds(1, 1, 9000) == pytest.approx(0.04), "the nearest that is known"
    assert cost.plain_steps(1, 60) == 3
    assert cost.plain_steps(1, 9000) == 0


def test_times_that_are_none_are_left_out() -> None:
    cost = LearntCost(PLAIN_CPU)
    cost.observe(1, 1, 0, 0.0)
    assert cost.plain_steps(1, 0) == 0


def test_medians_of_few_values_lean_to_the_small_one() -> None:
    window = Window(9, warm=False)
    for value in (1.0, 9.0):
        window.add(value)
    assert window.median == 1.0
    window.add(2.0)
    assert window.median == 2.0


def test_drafters_cost_by_level_and_by_what_they_have_to_read() -> None:
    draft = LearntDraft()
    assert not draft.measured
    draft.observe(5, 500, 1.0)  # the first call
    for _ in range(4):
        draft.observe(5, 3, 0.010)
    for _ in range(3):
        draft.observe(5, 200, 0.010 + 0.4)
    assert draft.measured
    assert draft.seconds(5) == pytest.approx(0.010)
    assert draft.seconds(2) == pytest.approx(0.004)
    assert draft.seconds(5, 100) == pytest.approx(0.010 + 0.2)
    assert draft.seconds(5, 4) == pytest.approx(0.010), "what one step emits is no catching-up"


def test_a_profile_knows_drafters_before_they_are_asked() -> None:
    draft = LearntDraft(DraftCost(0.001, 0.002, 0.0005))
    assert draft.measured
    assert draft.seconds(5) == pytest.approx(0.011)
    assert draft.seconds(5, 100) == pytest.approx(0.061)
