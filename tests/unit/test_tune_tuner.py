"""The whole run on tiny models, by a fake clock where time matters."""

from __future__ import annotations

import itertools

import pytest
from tune_world import FakeTime, PricedModel, clocked

from outrider import LLM, SamplingParams
from outrider.bench.suite import Suite, SuitePrompt
from outrider.errors import ConfigError, SpecError
from outrider.run.scheduler import Limits
from outrider.testing.world import tiny_world
from outrider.tune import profile, trial, tuner
from outrider.tune.curve import Costs
from outrider.tune.timing import Deadline
from outrider.tune.tuner import CHECK, PHASES, Listener, Task, Tuner, split


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("OUTRIDER_HOME", str(tmp_path))
    return tmp_path


class Digits:
    """A tokenizer of single digits."""

    eos_token_id = None

    def encode(self, text, add_special_tokens=True):
        return [int(char) for char in text]

    def decode(self, tokens, skip_special_tokens=True):
        return "".join(map(str, tokens))


def suite(*texts: str, groups: int = 2) -> Suite:
    prompts = tuple(
        SuitePrompt(id=f"p{i}", category="c", group=f"g{i % groups}", turns=(text, "more"), system=None, raw=True)
        for i, text in enumerate(texts)
    )
    return Suite("mine", "0", "0" * 64, "", 32, prompts)


TEXTS = ("123123", "54", "222014222", "010101", "3", "501250", "444", "12", "2013", "5150", "33", "0")


@pytest.fixture
def world(monkeypatch) -> tuple[FakeTime, LLM]:
    time = clocked(monkeypatch)
    return time, LLM(PricedModel(time), preset="plain", tokenizer=Digits(), limits=Limits(max_context=400))


def run(world, task: Task, **hooks) -> profile.Profile:
    time, llm = world
    return Tuner(llm, task, "priced", listener=Listener(**hooks), clock=time.perf_counter).run()


def test_the_whole_run(world, home):
    time, _ = world
    phases: list[tuple[str, float]] = []
    seen: list[int] = []

    def predicted(predictions):
        assert not any(name == CHECK for name, _ in phases)
        assert (home / ".profiles" / "predictions.jsonl").exists()  # written before anything is checked
        seen.append(len(predictions))

    found = run(
        world,
        Task(suite(*TEXTS), None, budget=120.0, max_tokens=40),
        phase=lambda *p: phases.append(p),
        predicted=predicted,
    )
    assert [name for name, _ in itertools.groupby(phases, lambda p: p[0])] == list(PHASES)
    assert all(0 <= done <= 1 for _, done in phases)
    assert seen == [len(found.ranking)]
    assert time.now < 130
    speedups = [one.speedup for one in found.ranking]
    assert speedups == sorted(speedups, reverse=True)
    checked = [one for one in found.ranking if one.measured]
    assert {one.preset for one in checked} >= {"plain", found.preset}
    assert found.preset != "plain"
    assert found.speedup > 1.02
    assert found.workload.recorded + found.workload.checked <= len(TEXTS)
    assert found.workload.source == "mine"
    # Everything follows the clock, so that measured and predicted differ by the prompts alone.
    plain = next(one for one in found.ranking if one.preset == "plain")
    assert abs(plain.measured.error) < 0.05
    assert found.step_cost.forward.seconds(1, 1, 60) == pytest.approx(PricedModel.seconds(1, 60), rel=0.05)
    assert not profile.files()  # to save it is the caller's business
    profile.save(found)
    assert profile.read(found.file) == found


def test_predictions_agree_with_measurements_on_the_same_prompts(world, monkeypatch):
    """The check on the very prompts that were recorded: what is left is the error of the model, next to nothing."""
    monkeypatch.setattr(tuner, "split", lambda whole: (split(whole)[0],) * 2)
    names = ("pld(depth=5)", "sam(depth=6)")
    found = run(world, Task(suite(*TEXTS), names, budget=400.0, max_tokens=40))
    measured = [one.measured for one in found.ranking if one.measured]
    assert len(measured) == 3
    for one in measured:
        assert abs(one.error) < 0.03
        assert abs(one.speedup_error) < 0.03


def test_the_budget_is_kept(world):
    time, _ = world
    for budget in (12.0, 30.0, 60.0):
        began = time.now
        found = run(world, Task(suite(*TEXTS), ("pld", "sam"), budget=budget, max_tokens=40))
        assert time.now - began < budget * 1.1 + 5  # a started answer of the check is finished
        assert found.seconds <= time.now - began + 1e-9


def test_a_budget_that_is_too_short_is_said(world):
    with pytest.raises(ConfigError, match=r"too short for this model.*--budget 2"):
        run(world, Task(suite(*TEXTS), ("pld",), budget=0.5, max_tokens=40))


def test_one_prompt_cannot_be_checked(world):
    found = run(world, Task(suite("123123", groups=1), ("pld",), budget=60.0))
    assert found.workload.checked == 0
    assert all(one.measured is None for one in found.ranking)


def test_without_checks_the_prediction_decides(world):
    found = run(world, Task(suite(*TEXTS), ("pld", "sam"), budget=60.0, checks=0))
    assert all(one.measured is None for one in found.ranking)
    assert found.preset in ("plain", found.ranking[0].preset)


def test_where_forwards_of_many_cost_much_plain_is_chosen(world, monkeypatch):
    monkeypatch.setattr(PricedModel, "seconds", staticmethod(lambda tokens, context: 0.05 * tokens))
    found = run(world, Task(suite(*TEXTS), None, budget=300.0, max_tokens=40))
    assert found.preset == "plain"
    assert found.speedup == 1.0
    assert "plain decoding is the fastest here" in found.why
    reasons = {one.preset: one.reason for one in found.left_out}
    assert "k=8 is more than the vocabulary" in reasons["token-recycling(nodes=80)"]
    assert "not worth a try" in reasons["sam(min_match=2)|token-recycling(nodes=80)"]


def test_larger_trees_are_judged_by_smaller_ones(world, monkeypatch):
    monkeypatch.setattr(PricedModel, "seconds", staticmethod(lambda tokens, context: 0.05 * tokens))
    names = tuple(f"token-recycling(k=4,nodes={nodes})" for nodes in (4, 60))
    both = (*names, "sam|token-recycling(k=4,nodes=4)")
    found = run(world, Task(suite(*TEXTS), both, budget=900.0, max_tokens=40))
    assert found.preset == "plain"
    reasons = {one.preset: one.reason for one in found.left_out}
    assert reasons == {
        names[1]: f"a tree of 60 nodes cannot repay its cost here, judging by {names[0]}",
        both[2]: f"{names[0]} alone was slower than plain",
    }
    (tried,) = [one.predicted for one in found.ranking if one.preset == names[0]]
    assert tried.source == "run"


def test_a_named_candidate_that_cannot_serve_the_model_is_refused(world):
    with pytest.raises(ConfigError, match="k=8"):
        run(world, Task(suite(*TEXTS), ("token-recycling",), budget=60.0))


def test_an_interrupted_check_leaves_no_profile(world):
    def phase(name, done):
        if name == CHECK:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(world, Task(suite(*TEXTS), ("pld",), budget=60.0), phase=phase)
    assert profile.files() == []


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"budget": 0.0}, "budget"),
        ({"budget": -1.0}, "budget"),
        ({"budget": float("nan")}, "budget"),
        ({"budget": float("inf")}, "budget"),
        ({"max_tokens": 1}, "max_tokens"),
        ({"checks": -1}, "checks"),
        ({"temperature": -1.0}, "temperature"),
    ],
)
def test_tasks_that_cannot_work(options, match):
    with pytest.raises(SpecError, match=match):
        Task(suite("12"), **options)


def test_prompts_that_do_not_fit_are_left_out_or_refused(world):
    _, llm = world
    long = "1" * 390
    found = Tuner(llm, Task(suite("12", long, "13", groups=1), ("pld",)), "priced")
    assert [prompt.id for prompt in found.prompts] == ["p0"]
    with pytest.raises(ConfigError, match="no prompt of 'mine' fits"):
        Tuner(llm, Task(suite(long), ("pld",)), "priced")
    found = Tuner(llm, Task(suite("1", "2", long, "3", long, groups=1), ("pld",)), "priced")
    assert [prompt.id for prompt in found.prompts] == ["p0", "p1", "p3"]
    assert found.checked.prompts == ()


def test_the_two_sides_are_disjoint_and_alike():
    whole = suite(*TEXTS * 3, groups=4)
    recorded, checked = split(whole)
    ids = [{prompt.id for prompt in side.prompts} for side in (recorded, checked)]
    assert not ids[0] & ids[1]
    assert ids[0] | ids[1] == {prompt.id for prompt in whole.prompts}
    assert len(ids[1]) == int(0.4 * 36)
    for group in ("g0", "g1", "g2", "g3"):
        share = [sum(prompt.group == group for prompt in side.prompts) for side in (recorded, checked)]
        assert share[0] >= 5
        assert 3 <= share[1] <= 4
    assert [prompt.group for prompt in recorded.prompts[:4]] == ["g0", "g1", "g2", "g3"]  # in turns
    assert {len(prompt.turns) for prompt in recorded.prompts} == {1}
    assert [len(side.prompts) for side in split(suite("1"))] == [1, 0]
    assert [len(side.prompts) for side in split(suite("1", "2", "3", groups=3))] == [2, 1]


def test_deadlines():
    time = FakeTime()
    whole = Deadline(10.0, time.perf_counter)
    part = whole.part(0.5)
    time.now = 4.0
    assert (whole.left, whole.used, part.left) == (6.0, 4.0, 1.0)
    time.now = 20.0
    assert (whole.left, part.left, whole.part(0.5).left) == (0.0, 0.0, 0.0)


def test_temperature_is_part_of_the_task(world):
    task = Task(suite(*TEXTS), ("pld",), budget=60.0, temperature=0.7)
    assert task.params == SamplingParams(max_tokens=48, temperature=0.7, seed=0)
    assert run(world, task).workload.temperature == 0.7


@pytest.fixture
def twins(monkeypatch):
    """The tiny target takes fake time, and its near twin none."""
    time, two = clocked(monkeypatch), tiny_world()
    inner = two.target.forward

    def forward(block, store, **options):
        time.now += 0.05 + 0.001 * block.shape[0] * block.shape[1]
        return inner(block, store, **options)

    monkeypatch.setattr(two.target, "forward", forward)
    return time, two


def test_a_draft_model_that_costs_nothing_is_chosen_and_is_part_of_the_key(twins):
    time, two = twins
    options = {"draft_model": two.draft, "tokenizer": two.tokenizer, "limits": Limits(max_context=200)}
    llm = LLM(two.target, preset="plain", **options)
    names = ("pld(depth=2)", "spec-decode(depth=4)", "spec-decode(depth=4,structure=top-k,nodes=6)")
    task = Task(suite(*TEXTS), names, budget=200.0, max_tokens=40)
    found = Tuner(llm, task, "two", "its-twin", clock=time.perf_counter).run()
    assert found.preset.startswith("spec-decode")
    assert found.draft_model == "its-twin"
    assert found.key.draft_weights
    assert found.key.around.draft_dtype == "float64"
    assert {"draft-model", "pld"} == set(found.step_cost.drafts)
    profile.save(found)
    assert LLM(two.target, **options).parts.name == found.preset
    alone = LLM(two.target, tokenizer=two.tokenizer)
    assert alone.parts.name == "auto"
    assert "with a draft model, and there is none" in alone.tuned.notes[0]


def test_draft_models_leave_half_of_the_time_to_live_runs(twins, monkeypatch):
    """A drafter that takes for ever does not keep the others from being tried."""
    time, two = twins
    real = trial.replay

    def slow(llm, name, records, params, deadline):
        if "spec-decode" in name:
            time.now += deadline.left
        return real(llm, name, records, params, deadline)

    monkeypatch.setattr(trial, "replay", slow)
    llm = LLM(
        two.target, preset="plain", draft_model=two.draft, tokenizer=two.tokenizer, limits=Limits(max_context=200)
    )
    names = (*(f"spec-decode(depth={k},threshold=0.5)" for k in range(2, 40)), "token-recycling(nodes=8)")
    task = Task(suite(*TEXTS), names, budget=60.0, max_tokens=40, checks=0)
    found = Tuner(llm, task, "two", clock=time.perf_counter).run()
    assert "token-recycling(nodes=8)" in {one.preset for one in found.ranking}


def test_costs_reach_the_profile(world):
    found = run(world, Task(suite(*TEXTS), ("pld", "sam|pld"), budget=60.0))
    assert set(found.step_cost.drafts) == {"pld"}  # what a drafter takes is known where it was tried alone
    assert Costs(found.step_cost, found.host_per_node).seconds(3, 10) > 0
