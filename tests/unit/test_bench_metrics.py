"""From records to figures: known sums, known ratios, intervals that cover and shrink."""

from __future__ import annotations

import numpy as np
import pytest

from outrider.bench.metrics import (
    CONTEXT_EDGES,
    all_seconds,
    bucket,
    figures,
    grouped,
    interval,
    paired,
    speedup,
    sum_contexts,
    sum_depths,
    sum_lists,
)
from outrider.bench.result import AtContext, AtDepth, FirstDifference, Record


def record(prompt="a", tokens=10, seconds=1.0, **changes):
    values = {
        "prompt": prompt,
        "category": "c",
        "group": "g",
        "turn": 0,
        "run": 0,
        "place": 0,
        "prompt_tokens": 5,
        "token_ids": list(range(tokens)),
        "finish_reason": "length",
        "seconds": seconds
        if isinstance(seconds, dict)
        else {"prefill": 0.5, "draft": 0.0, "target": seconds, "verify": 0.0, "other": 0.0},
        "target_calls": tokens,
        "draft_tokens": 0,
        "accepted_tokens": 0,
        "acceptance_histogram": [tokens],
    }
    return Record(**values | changes)


def difference(kind):
    return FirstDifference(position=1, found=1, wanted=2, gap=0.1, tolerance=0.2, kind=kind)


def test_identical_answers_compare_by_time():
    ratio = speedup([record(seconds=0.5)], [record(seconds=2.0)], "plain")
    assert ratio.value == pytest.approx(4.0)
    assert ratio.baseline == "plain"
    assert ratio.interval is None, "one prompt gives no interval"


def test_answers_of_different_lengths_compare_by_time_per_token():
    assert speedup([record(tokens=20, seconds=1.0)], [record(tokens=10, seconds=1.0)], "plain").value == pytest.approx(
        2
    )


def test_a_group_compares_total_speeds_and_not_mean_ratios():
    fast = [record("a", 10, 1.0), record("b", 90, 1.0)]
    slow = [record("a", 10, 10.0), record("b", 90, 1.0)]
    # 100 tokens in 2 s against 100 tokens in 11 s; the mean of the ratios 10 and 1 would be 5.5
    assert speedup(fast, slow, "plain").value == pytest.approx(5.5)
    assert speedup(fast, [record("a", 10, 1.0), record("b", 90, 4.0)], "plain").value == pytest.approx(2.5)


def test_prefill_counts_only_where_it_is_asked_for():
    fast, slow = [record(seconds=0.5)], [record(seconds=1.5)]
    assert speedup(fast, slow, "plain").value == pytest.approx(3.0)
    assert speedup(fast, slow, "plain", seconds=all_seconds).value == pytest.approx(2.0)


def test_only_answers_that_both_sides_have_are_paired():
    sums = paired([record("a"), record("b"), record("a", turn=1)], [record("a"), record("c"), record("a", run=1)])
    assert sums.tolist() == [[10, 1.0, 10, 1.0]]
    assert speedup([record("a")], [record("b")], "plain") is None
    assert speedup([record("a", tokens=0)], [record("a")], "plain") is None


def test_turns_and_runs_of_a_prompt_are_one_unit():
    both = [record("a"), record("a", turn=1), record("a", run=1)]
    assert len(paired(both, both)) == 1
    assert speedup(both, both, "plain").interval is None


@pytest.mark.parametrize("prompts", [3, 8, 40])
def test_the_interval_covers_the_truth_about_as_often_as_it_says(prompts):
    """Prompts whose true ratio is 2, in 300 worlds. The twin, half as wide, must be found out."""
    rng = np.random.default_rng(1)
    hits = twin = 0
    for _ in range(300):
        base = rng.gamma(20.0, 1.0, size=prompts)
        fast = base / 2 * rng.gamma(30.0, 1 / 30, size=prompts)
        sums = np.stack([np.full(prompts, 50.0), fast, np.full(prompts, 50.0), base], axis=1)
        found = interval(sums)
        middle = (found.low * found.high) ** 0.5
        hits += found.low <= 2 <= found.high
        twin += middle * (found.low / middle) ** 0.5 <= 2 <= middle * (found.high / middle) ** 0.5
    assert 0.90 <= hits / 300 <= 0.99
    assert twin / 300 < 0.88


def test_pairing_is_kept_when_prompts_are_drawn():
    """Prompts of very different lengths, the same ratio everywhere: nothing is uncertain about the ratio."""
    base = np.geomspace(1, 1000, 12)
    sums = np.stack([np.full(12, 10.0), base / 3, np.full(12, 10.0), base], axis=1)
    found = interval(sums)
    assert found.low == pytest.approx(3)
    assert found.high == pytest.approx(3)
    shuffled = sums.copy()
    shuffled[:, 1] = shuffled[::-1, 1]  # the twin: sides that do not belong together
    assert interval(shuffled).high > 4


def test_the_same_records_give_the_same_interval():
    sums = np.random.default_rng(0).gamma(5.0, size=(30, 4))
    assert interval(sums) == interval(sums.copy())
    assert interval(sums[:2]) is None
    assert interval(sums[:3]) is not None


def test_where_prefill_cannot_be_told_apart_all_time_counts_on_both_sides():
    whole = {"prefill": 0.0, "draft": 0.0, "target": 1.0, "verify": 0.0, "other": 0.0}
    ratio = speedup([record(seconds=whole, prefill_measured=False)], [record(seconds=1.5)], "plain")
    assert ratio.value == pytest.approx(2.0)


def test_figures_add_up():
    records = [
        record("a", 10, 1.0, target_calls=4, draft_tokens=12, accepted_tokens=6, acceptance_histogram=[1, 1, 1, 1]),
        record("b", 10, 3.0, target_calls=6, draft_tokens=8, accepted_tokens=4, acceptance_histogram=[3, 2, 1]),
        record("c", 10, 2.0, target_calls=5, draft_tokens=0, accepted_tokens=0, acceptance_histogram=[5]),
    ]
    total = figures(records, [record(name, 10, 4.0) for name in "abc"], "plain")
    assert (total.prompts, total.answers, total.emitted_tokens) == (3, 3, 30)
    assert total.tokens_per_second == pytest.approx(5.0)
    assert total.tokens_per_second_with_prefill == pytest.approx(4.0)
    assert total.mean_accepted_length == pytest.approx(2.0)
    assert total.acceptance_rate == pytest.approx(0.5)
    assert total.acceptance_histogram == [9, 3, 2, 1]
    assert total.speedup == pytest.approx(2.0)
    assert total.speedup_with_prefill == pytest.approx(9 / 5)
    assert total.interval.low < 2 < total.interval.high
    assert total.seconds["target"] == pytest.approx(6.0)


def test_what_a_peer_does_not_tell_stays_unknown():
    silent = record(target_calls=None, draft_tokens=None, accepted_tokens=None, acceptance_histogram=[])
    total = figures([silent, record("b")], [record(), record("b")], "plain")
    assert total.target_calls is None
    assert total.mean_accepted_length is None
    assert total.acceptance_rate is None


def test_nothing_drafted_has_no_acceptance_rate():
    assert figures([record()], [record()], "plain").acceptance_rate is None


def test_identity_is_counted_by_kind():
    records = [
        record("a"),
        record("b", difference=difference("tie")),
        record("c", difference=difference("wrong")),
        record("d", compared=False),
    ]
    total = figures(records, records, "plain")
    assert (total.compared, total.identical_answers, total.ties, total.wrong) == (3, 1, 1, 1)
    assert total.identical == pytest.approx(1 / 3)
    assert figures(records[3:], records, "plain").identical is None


def test_no_records_are_no_crash():
    total = figures([], [], "plain")
    assert (total.speedup, total.tokens_per_second, total.identical, total.target_calls) == (None, 0.0, None, 0)


def test_groups_keep_their_order_and_their_own_base():
    fast = [record("a", seconds=1.0, group="x"), record("b", seconds=1.0, group="y"), record("c", group="x")]
    slow = [record("a", seconds=2.0), record("b", seconds=5.0), record("c", seconds=2.0)]
    parts = grouped(fast, slow, "plain", lambda each: each.group)
    assert list(parts) == ["x", "y"]
    assert parts["x"].speedup == pytest.approx(2.0)
    assert parts["y"].speedup == pytest.approx(5.0)
    assert parts["y"].interval is None


def test_sums_of_histograms_depths_and_contexts():
    assert sum_lists([[1, 2], [], [0, 1, 5]]) == [1, 3, 5]
    depths = [AtDepth(depth=2, drafted=3, accepted=1), AtDepth(depth=1, drafted=5, accepted=4)]
    assert sum_depths([*depths, *depths]) == [
        AtDepth(depth=1, drafted=10, accepted=8),
        AtDepth(depth=2, drafted=6, accepted=2),
    ]
    assert depths[0].rate == pytest.approx(1 / 3)
    one = {"target_calls": 2, "emitted_tokens": 5, "draft_tokens": 6, "accepted_tokens": 3}
    late = AtContext(low=65536, high=None, **one)
    early = AtContext(low=0, high=128, **one)
    found = sum_contexts([late, early, early])
    assert [(entry.low, entry.target_calls) for entry in found] == [(0, 4), (65536, 2)]
    assert found[0].mean_accepted_length == pytest.approx(2.5)
    assert found[0].rate == pytest.approx(0.5)


def test_buckets_hold_their_lower_edge():
    assert bucket(0) == 0
    assert bucket(127) == 0
    assert bucket(128) == 1
    assert bucket(10**9) == len(CONTEXT_EDGES) - 1
