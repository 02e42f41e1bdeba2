"""Predictions: the formula against the clock of an engine, ranking against brute force, what is not worth a try."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from tune_world import PricedModel, clocked, priced_llm

from outrider import SamplingParams, preset
from outrider.policy.cost import ForwardCost, StepCost
from outrider.run.engine import Engine
from outrider.run.scheduler import Limits
from outrider.tune import curve, trial
from outrider.tune.curve import Costs
from outrider.tune.predict import Check, Prediction, choose, draft_cost, hopeless, predict, rank
from outrider.tune.timing import Deadline
from outrider.tune.trial import Prompt, Step, Trial

PROMPTS = [
    Prompt("a", "x", (1, 2, 3, 1, 2, 3)),
    Prompt("b", "x", (5, 4)),
    Prompt("c", "y", (2, 2, 2, 0, 1, 4, 2, 2, 2)),
]
PARAMS = SamplingParams(max_tokens=60)
SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)


def exact_costs() -> Costs:
    """The curve that the priced model follows, at every size and two contexts."""
    points = {(1, n, c): PricedModel.seconds(n, c) for n in SIZES for c in (0, 200)}
    return Costs(StepCost(ForwardCost.measured(points)))


@pytest.mark.parametrize(
    "name", ["pld(depth=5)", "pld(depth=10,min_ngram=2)", "sam(depth=8)", "sam(depth=8)|pld(depth=2)"]
)
def test_a_replay_prices_steps_as_the_clock_of_the_engine_does(monkeypatch, name):
    time = clocked(monkeypatch)
    llm = priced_llm(time)
    records = trial.record(llm, PROMPTS, PARAMS, Deadline(1e9, time.perf_counter))
    assert [len(one.output) for one in records] == [60, 60, 60]
    replayed = trial.replay(llm, name, records, PARAMS, Deadline(1e9, time.perf_counter))
    expected = predict(replayed, trial.plain_steps(records), exact_costs())

    def run(spec):
        engine = Engine(llm.language_model, preset(spec), limits=Limits(max_rows=1, max_context=400))
        total = {"tokens": 0, "calls": 0, "seconds": 0.0}
        for prompt in PROMPTS:
            request = engine.submit(prompt.tokens, PARAMS)
            while not request.finished:
                engine.step()
            stats = request.choices[0].stats
            total["tokens"] += stats.emitted_tokens
            total["calls"] += stats.target_calls
            total["seconds"] += stats.decode_seconds
        return total

    fast, slow = run(name), run("plain")
    assert expected.mean_accepted_length == pytest.approx(fast["tokens"] / fast["calls"], abs=1e-12)
    assert expected.mean_accepted_length > 1.2
    assert expected.tokens_per_second == pytest.approx(fast["tokens"] / fast["seconds"], rel=1e-9)
    assert expected.speedup == pytest.approx(slow["seconds"] / fast["seconds"], rel=1e-9)


def test_the_mean_of_the_curve_is_not_the_curve_of_the_mean():
    costs = Costs(StepCost(ForwardCost((1, 2, 9), (((1.0, 1.0, 8.0),),))))
    prompt = Prompt("a", "", (1, 2))
    one = Trial("t", (prompt,), ((Step(1, 1, 1), Step(9, 2, 1)),), reads_along=False)
    plain = Trial("plain", (prompt,), ((Step(1, 1, 1), Step(1, 2, 1)),), reads_along=False)
    found = predict(one, plain, costs)
    assert found.seconds["target"] == pytest.approx(4.5)
    assert costs.step.forward.seconds(1, found.mean_nodes, 1) == pytest.approx(4.0)


def test_host_draft_and_the_first_step_are_in_the_price():
    costs = Costs(StepCost(ForwardCost((1, 5), (((0.1, 0.2),),)), host=0.01), host_per_node=0.002, prompt_token=0.003)
    prompt = Prompt("a", "", (1, 2, 3))
    steps = (Step(5, 2, 3, draft=0.02), Step(5, 5, 2, draft=0.04))
    plain = Trial("plain", (prompt,), (tuple(Step(1, 2 + i, 1) for i in range(5)),))
    found = predict(Trial("t", (prompt,), (steps,)), plain, costs)
    whole = (0.02 + 5 * 0.003 + 0.018) + (0.04 + 0.2 + 0.018)
    assert found.tokens_per_second == pytest.approx(5 / whole)
    slow = (0.003 + 0.01) + 4 * (0.1 + 0.01)
    assert found.speedup == pytest.approx(slow / whole)
    apart = predict(Trial("t", (prompt,), (steps,), reads_along=False), plain, costs)
    assert apart.speedup < found.speedup


def test_a_mix_weighs_groups_and_leaves_out_what_was_not_seen():
    costs = Costs(StepCost(ForwardCost((1, 2), (((1.0, 1.0),),))))
    prompts = (Prompt("a", "fast", (1,)), Prompt("b", "slow", (1,)), Prompt("c", "slow", (1,)))
    plain = Trial("plain", prompts, tuple((Step(1, 0, 1),) * 4 for _ in prompts))
    fast, slow = (Step(2, 0, 2), Step(2, 2, 2)), (Step(1, 0, 1),) * 4
    one = Trial("t", prompts, (fast, slow, slow))
    assert predict(one, plain, costs).speedup == pytest.approx(12 / 10)
    assert predict(one, plain, costs, {"fast": 7}).speedup == pytest.approx(2.0)
    assert predict(one, plain, costs, {"fast": 1, "slow": 1, "other": 5}).speedup == pytest.approx(8 / 6)
    assert predict(one, plain, costs, {"other": 5}).speedup == pytest.approx(12 / 10)


def test_ranking_is_that_of_brute_force():
    """Chains of every length over random acceptance and random curves: the best is the argmax of tokens per second."""
    rng = np.random.default_rng(7)
    lengths = range(9)
    best = set()
    for _ in range(30):
        alpha, slope, jump = rng.uniform(0.2, 0.95), rng.uniform(0, 0.4), rng.uniform(0, 1)
        times = [1.0 + slope * (n - 1) + jump * (n > 4) for n in range(1, 10)]
        costs = Costs(StepCost(ForwardCost(tuple(range(1, 10)), ((tuple(times),),))))
        runs = rng.geometric(1 - alpha, size=400) - 1  # accepted tokens if drafts were endless
        predictions, truth = [], {}
        for k in lengths:
            steps = tuple(Step(1 + k, 0, 1 + min(k, int(run))) for run in runs)
            tokens = sum(step.emitted for step in steps)
            prompt = Prompt("a", "", (1,))
            plain = Trial("plain", (prompt,), ((Step(1, 0, 1),) * tokens,))
            name = "plain" if k == 0 else f"chain{k}"
            predictions.append(predict(Trial(name, (prompt,), (steps,)), plain, costs))
            truth[name] = tokens / sum(times[k] for _ in runs)
        ranking = rank(predictions)
        assert ranking[0].name == max(truth, key=truth.__getitem__)
        assert [one.name for one in ranking] == sorted(truth, key=lambda name: -truth[name])
        best.add(ranking[0].name)
    assert len(best) > 3  # the worlds differ


def expecting(name: str, speedup: float, prompts: int = 6) -> Prediction:
    return Prediction(name, 10 * speedup, speedup, 1.5, 2.0, {"target": 0.1}, prompts)


def test_measurements_correct_predictions_by_their_weight():
    predictions = [expecting("plain", 1.0), expecting("a", 2.0), expecting("b", 1.8), expecting("c", 1.7)]
    checks = [
        Check("plain", 10.0, 1.0, 2, predictions[0]),
        Check("a", 12.0, 1.2, 2, predictions[1]),
        Check("b", 18.0, 1.9, 2, replace(predictions[2], speedup=1.9)),
    ]
    ranking = {one.name: one.speedup for one in rank(predictions, checks)}
    assert ranking["plain"] == 1.0
    assert ranking["a"] == pytest.approx(2.0 * (1.2 / 2.0) ** (2 / 8))
    assert ranking["b"] == pytest.approx(1.8)  # as predicted for the prompts it was measured on
    assert ranking["c"] == 1.7
    assert choose(rank(predictions, checks)).name == "b"


def test_only_what_was_checked_is_chosen_and_plain_where_nothing_gains():
    predictions = [expecting("plain", 1.0), expecting("a", 1.5), expecting("b", 1.4)]
    assert choose(rank(predictions)).name == "a"
    slow = [Check("plain", 10.0, 1.0, 30, predictions[0]), Check("b", 11.0, 1.1, 30, predictions[2])]
    assert choose(rank(predictions, slow)).name == "b"
    bad = [Check("plain", 10.0, 1.0, 30, predictions[0]), Check("a", 5.0, 0.6, 90, predictions[1])]
    assert choose(rank(predictions, bad)).name == "plain"
    assert choose(rank([expecting("plain", 1.0), expecting("a", 1.01)])).name == "plain"
    assert choose(rank([expecting("plain", 1.0)])).name == "plain"


def test_errors_are_relative_to_what_was_measured():
    check = Check("a", 8.0, 1.25, 3, expecting("a", 1.0))
    assert check.error == pytest.approx(0.25)
    assert check.speedup_error == pytest.approx(-0.2)


def test_a_larger_tree_is_given_up_only_if_doubling_cannot_save_it():
    steep = Costs(StepCost(ForwardCost((1, 9, 81), (((1.0, 2.0, 6.0),),))))
    flat = Costs(StepCost(ForwardCost((1, 9, 81), (((1.0, 1.1, 1.3),),))))
    small = replace(expecting("t", 0.7), mean_accepted_length=1.4, mean_nodes=9.0)
    assert hopeless(small, 80, steep, 0)
    assert not hopeless(small, 80, flat, 0)
    assert not hopeless(small, 8, steep, 0)  # not larger
    good = replace(small, mean_accepted_length=2.6)
    assert not hopeless(good, 80, steep, 0)  # granted 2.6 + 1.6 * log2(10) = 7.9 tokens for the price of 6


def test_draft_costs_by_proposal_and_by_level():
    prompts = (Prompt("a", "", (1,) * 10),)
    steps = (Step(4, 9, 2, draft=0.5 + 0.3, levels=3), Step(4, 11, 2, draft=0.3, levels=3), Step(2, 12, 1, 0.1, 1))
    by_level = draft_cost(Trial("t", prompts, (steps,)), by_level=True)
    assert by_level.level == pytest.approx(0.1)
    assert by_level.token == pytest.approx(0.05)
    assert by_level.proposal == 0
    assert draft_cost(Trial("t", prompts, (steps,)), by_level=False).proposal == pytest.approx(0.4)
    assert draft_cost(Trial("t", prompts, (steps[:1],)), by_level=True).level == pytest.approx(0.8 / 3)


def test_the_curve_is_measured_as_it_is(monkeypatch):
    """In the engine's loop, by an exact clock: forwards at every size and context, and no host time."""
    time = clocked(monkeypatch)
    model = PricedModel(time)
    text = [i % 6 for i in range(150)]
    told: list[float] = []
    sizes = (1, 2, 3, 4, 6, 11)
    found = curve.measure(model, text, sizes, (20, 150), Deadline(60.0, time.perf_counter), told.append)
    for nodes, context in itertools.product(sizes, (20, 150)):
        wanted = PricedModel.seconds(nodes, context)
        # Steps are filed under the context they began with, of which they move away by a token each.
        assert found.step.forward.seconds(1, nodes, context) == pytest.approx(wanted, rel=0.02)
    assert found.step.host == 0
    assert found.host_per_node == 0
    assert found.prompt_token is None  # a table model reads prompts apart
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1.0)
    assert time.now < 60 * 1.1


def test_a_slow_second_does_not_bend_the_curve(monkeypatch):
    """Every fifth forward takes twice as long: the shape stays, the level is that of the median."""
    time = clocked(monkeypatch)
    model = PricedModel(time)
    real, count = PricedModel.seconds, itertools.count()
    monkeypatch.setattr(
        PricedModel, "seconds", staticmethod(lambda n, c: real(n, c) * (2.0 if next(count) % 5 == 0 else 1.0))
    )
    found = curve.measure(model, [i % 6 for i in range(30)], (1, 2, 4, 8, 11), (30,), Deadline(30, time.perf_counter))
    assert found.unrest >= 1
    price = found.step.forward.seconds
    for nodes in (2, 4, 8, 11):
        assert price(1, nodes, 30) / price(1, 1, 30) == pytest.approx(real(nodes, 30) / real(1, 30), rel=0.02)


def test_without_time_the_curve_has_fewer_points_and_one_context(monkeypatch):
    time = clocked(monkeypatch)
    model = PricedModel(time)
    sizes = (1, 2, 3, 4, 5, 6, 8, 11)
    found = curve.measure(model, [i % 6 for i in range(150)], sizes, (20, 150), Deadline(0.5, time.perf_counter))
    forward = found.step.forward
    assert isinstance(forward, ForwardCost)
    assert forward.nodes[:2] == (1, 2)
    assert forward.nodes[-1] == 11
    assert len(forward.nodes) == 4
    assert forward.contexts == (0,)


def test_unrest_is_seen_in_plain_steps():
    def times(*plain):
        return [curve.StepTime(1, 9, seconds, 0.0) for seconds in plain] + [curve.StepTime(2, 9, 2.0, 0.0)]

    assert curve.fit(times(1.0, 1.0, 1.0)).unrest == 1.0
    assert curve.fit(times(1.0, 1.5, 9.0)).unrest == 1.5
    assert curve.fit([*times(1.0, 1.0), *(curve.StepTime(1, 99, s, 0.0) for s in (1.0, 2.0, 3.0))]).unrest == 2.0


def test_which_sizes_a_sweep_has_time_for():
    sizes = (1, 2, 3, 4, 6, 8, 11, 16, 24, 41)
    assert curve.affordable(sizes, (1.0, 4.0), 1000) == list(sizes)
    fewer = curve.affordable(sizes, (1.0, 4.0), 15)
    assert {1, 2, 41} < set(fewer) < set(sizes)
    assert curve.affordable(sizes, (1.0, 4.0), 0.0)[:2] == [1, 2]
    assert len(curve.affordable(sizes, (1.0, 4.0), 0.0)) == 4
    assert curve.sizes_up_to(5) == (1, 2, 3, 4, 5)
    assert curve.sizes_up_to(1) == (1,)
