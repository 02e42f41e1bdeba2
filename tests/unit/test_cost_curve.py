"""The cost of a forward as a curve and as a fitted line; what a profile stores of it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from outrider.errors import ConfigError
from outrider.policy.cost import DraftCost, ForwardCost, LinearCost, StepCost, ascending

CURVE = ForwardCost.measured(
    {
        (rows, nodes, context): 0.010 * rows + 0.001 * rows * nodes + 0.00001 * context
        for rows in (1, 4)
        for nodes in (1, 8, 32)
        for context in (0, 1000)
    }
)


def test_the_curve_goes_through_its_points_and_straight_between_them() -> None:
    assert CURVE.seconds(1, 8, 1000) == pytest.approx(0.010 + 0.008 + 0.010)
    assert CURVE.seconds(1, 4.5, 0) == pytest.approx(0.0145)
    assert CURVE.seconds(1, 8, 500) == pytest.approx(0.023)
    assert CURVE.seconds(2, 20, 250) == pytest.approx(0.020 + 0.040 + 0.0025)


def test_beyond_the_grid_the_curve_goes_on() -> None:
    assert CURVE.seconds(1, 64, 0) == pytest.approx(0.010 + 0.064)
    assert CURVE.seconds(1, 8, 4000) == pytest.approx(0.010 + 0.008 + 0.040)
    assert CURVE.seconds(8, 8, 0) == pytest.approx(0.040 + 0.064), "8 rows of 8 are 4 rows of 16"
    assert CURVE.seconds(8, 8, 1000) > CURVE.seconds(8, 8, 0) + 0.015, "twice the rows have twice the context"


def test_a_level_last_piece_does_not_make_nodes_free() -> None:
    flat = ForwardCost.measured({(1, 1, 0): 1.0, (1, 8, 0): 2.0, (1, 16, 0): 2.0})
    assert flat.seconds(1, 160, 0) > 10


def test_noise_is_smoothed_to_a_curve_that_ascends() -> None:
    rng = np.random.default_rng(0)
    points = {(r, n, c): float(rng.uniform(1, 2)) for r in (1, 2, 4) for n in (1, 2, 4, 8) for c in (0, 128, 512)}
    curve = ForwardCost.measured(points)
    table = np.array(curve.table)
    for axis in range(3):
        assert (np.diff(table, axis=axis) >= -1e-12).all()
    nodes = [curve.seconds(1, n, 64) for n in np.linspace(1, 20, 40)]
    assert nodes == sorted(nodes)


def test_ascending_is_the_nearest_such_sequence() -> None:
    assert ascending(np.array([3.0, 1.0, 2.0, 5.0, 4.0])).tolist() == [2.0, 2.0, 2.0, 4.5, 4.5]
    assert ascending(np.array([1.0, 2.0, 3.0])).tolist() == [1.0, 2.0, 3.0]


def test_a_profile_keeps_everything() -> None:
    cost = StepCost(CURVE, {"pld": DraftCost(0.0001), "draft": DraftCost(0.001, 0.004, 0.0002)}, host=0.0005)
    again = StepCost.from_dict(json.loads(json.dumps(cost.as_dict())))
    assert again == cost
    line = StepCost(LinearCost(1e-6, 1e-4, 0.01))
    assert StepCost.from_dict(json.loads(json.dumps(line.as_dict()))) == line


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"curves": {}}, "curves"),
        ({"host": -1.0}, "host"),
        ({"host": None}, "host"),
        ({"curve": {**CURVE.as_dict(), "nodes": [1, 8]}}, "shape"),
        ({"curve": {**CURVE.as_dict(), "nodes": [2, 8, 32]}}, "plain decoding"),
        ({"curve": {**CURVE.as_dict(), "nodes": [1, 32, 8]}}, "ascending"),
        ({"curve": {**CURVE.as_dict(), "table": [[["x"]]]}}, "cannot be read"),
        ({"curve": [1, 2]}, "list"),
        ({"drafts": {"pld": {"proposal": 1.0}}}, "without"),
        ({"drafts": {"pld": {"proposal": -1.0, "level": 0.0, "token": 0.0}}}, "proposal"),
    ],
)
def test_a_profile_that_is_wrong_says_where(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        StepCost.from_dict(StepCost(CURVE).as_dict() | change)


def test_a_profile_without_a_part_says_which() -> None:
    data = StepCost(CURVE).as_dict()
    del data["host"]
    with pytest.raises(ConfigError, match="host"):
        StepCost.from_dict(data)


def test_a_grid_with_a_hole_names_it() -> None:
    points = {(1, n, c): 1.0 for n in (1, 8) for c in (0, 100)}
    del points[1, 8, 100]
    with pytest.raises(ConfigError, match="1 rows x 8 nodes behind 100"):
        ForwardCost.measured(points)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan")])
def test_impossible_times_are_refused(seconds: float) -> None:
    with pytest.raises(ConfigError, match="seconds"):
        ForwardCost((1, 8), (((1.0, seconds),),))


def test_the_line_is_found_again() -> None:
    rng = np.random.default_rng(1)
    steps = [(float(c), float(n)) for c in rng.integers(0, 5000, 20) for n in rng.integers(1, 100, 5)]
    samples = [(c, n, (2e-6 * c + 3e-4 * n + 0.02) * float(rng.normal(1, 0.02))) for c, n in steps]
    fit = LinearCost.fit(samples)
    assert fit.per_context == pytest.approx(2e-6, rel=0.1)
    assert fit.per_token == pytest.approx(3e-4, rel=0.1)
    assert fit.fixed == pytest.approx(0.02, rel=0.1)
    assert fit.seconds(4, 8, 100) == pytest.approx(2e-6 * 400 + 3e-4 * 32 + 0.02, rel=0.1)


def test_no_coefficient_is_negative() -> None:
    fit = LinearCost.fit([(0, 1, 1.0), (100, 1, 0.9), (0, 10, 1.5), (100, 10, 1.4)])
    assert min(fit.as_dict().values()) >= 0
    assert fit.per_context == 0
    assert fit.per_token > 0


def test_a_line_needs_steps() -> None:
    with pytest.raises(ConfigError, match="2 steps"):
        LinearCost.fit([(0, 1, 1.0), (0, 2, 1.0)])
