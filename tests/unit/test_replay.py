"""Replays: step for step what a live run does, or refused by name."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from outrider.draft.base import Drafter
from outrider.errors import ConfigError, IncompatibleParts, ModelError
from outrider.explain import Explainer, Fate
from outrider.explain.replay import RecordedModel, RecordedStore, Replay, replay
from outrider.explain.sweep import Trial, expand, load_cost, sweep, trial
from outrider.explain.trace import Trace, TraceRecorder
from outrider.explain.watch import Labels
from outrider.model.base import Block
from outrider.params import SamplingParams
from outrider.parts import Parts
from outrider.policy.base import Policy
from outrider.policy.cost import DraftCost, ForwardCost, StepCost
from outrider.policy.fixed import Fixed
from outrider.registry import REGISTRY, Preset, preset
from outrider.testing.decode import engine
from outrider.testing.world import table_world, tiny_world
from outrider.types import Budget, DraftTree, Needs
from outrider.verify.match import Match

PROMPT = (3, 9) * 9
SETTINGS = {
    "greedy": {"max_tokens": 60},
    "sampled": {"max_tokens": 60, "temperature": 0.7},
    "stopped by a string": {"max_tokens": 60, "temperature": 0.2, "seed": 3, "stop": ("k.J",)},
    "stopped by a token": {"max_tokens": 60, "temperature": 0.7, "stop_token_ids": (26,), "ignore_eos": False},
    "with penalties": {
        "max_tokens": 40,
        "temperature": 0.7,
        "repetition_penalty": 0.7,
        "presence_penalty": -0.4,
        "top_p": 0.9,
        "min_tokens": 5,
        "bad_words": [[26]],
        "logit_bias": {9: 1.5},
    },
}


def live(spec, world=None, prompt=PROMPT, **params):
    """A live explanation, and the trace of it."""
    running = engine(world or tiny_world(), preset(spec), max_rows=1)
    explainer = Explainer(running, Labels("tiny", spec))
    asked = SamplingParams(**{"seed": 5, "ignore_eos": True} | params)
    recorder = TraceRecorder(running, asked)
    found = explainer.explain(prompt, asked)
    return found, recorder.trace(found, explainer.texts)


def essence(explanation):
    """All of a record but times, and what the target would have said below a token that does not stand."""
    nothing = {"p": None, "model_p": None, "wanted": None, "wanted_text": ""}
    return [
        replace(
            step,
            seconds={},
            nodes=tuple(replace(node, **nothing) if node.fate is Fate.BELOW else node for node in step.nodes),
        )
        for step in explanation.steps
    ]


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    """Per setting a trace that went through a file, recorded with sam|pld."""
    found = {}
    for number, (name, params) in enumerate(SETTINGS.items()):
        path = tmp_path_factory.mktemp("traces") / f"{number}.trace"
        live("sam|pld", **params)[1].save(path)
        found[name] = Trace.load(path)
    return found


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("spec", ["pld", "sam", "sam|pld"])
def test_a_replay_of_the_recorded_preset_is_the_live_run(spec, setting):
    found, trace = live(spec, **SETTINGS[setting])
    again = replay(trace, spec)
    assert essence(again) == essence(found)
    assert again.stats.accepted_per_call == found.stats.accepted_per_call
    assert (again.text, again.finish_reason) == (found.text, found.finish_reason)
    assert again.replayed


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize(
    "spec",
    ["plain", "pld(depth=2)", "sam(alpha=1,min_match=2)", "pld(min_ngram=2)|sam", "pld(depth=4)+sam", "sam+pld|pld"],
)
def test_other_settings_are_what_they_are_live(spec, setting, traces):
    found, _ = live(spec, **SETTINGS[setting])
    again = replay(traces[setting], spec)
    assert essence(again) == essence(found)
    assert again.stats.draft_tokens == found.stats.draft_tokens


def test_the_settings_test_what_they_say(traces):
    assert {trace.header.finish_reason for trace in traces.values()} == {"length", "stop"}
    assert traces["stopped by a token"].tokens[-1] == 26
    assert len({trace.tokens for trace in traces.values()}) == len(traces)
    assert all(max(trace.header.calls) > 1 for trace in traces.values())
    assert max(traces["greedy"].header.calls) > 5


def test_a_trace_cut_short_is_replayed_as_far_as_it_goes():
    found, trace = live("pld", max_tokens=40)
    kept = 25
    header = trace.header.model_copy(update={"pieces": trace.header.pieces[:kept], "finish_reason": "cancelled"})
    again = replay(Trace(header, trace.prompt, trace.tokens[:kept], trace.logits[:kept]), "pld")
    assert [token.token for token in again.tokens()] == list(trace.tokens[:kept])
    whole = essence(found)
    assert essence(again)[:-1] == whole[: len(again.steps) - 1]
    assert again.finish_reason == "cancelled"


def test_rules_with_coins_are_replayed_at_temperature_0_with_the_draft_model_at_hand():
    world = tiny_world()
    for spec in ("spec-decode(depth=3)", "spec-decode(structure=sampled,depth=3)"):
        found, trace = live(spec, max_tokens=30)
        assert essence(replay(trace, spec, world.draft, world.tokenizer)) == essence(found)


def test_a_draft_model_over_a_trace_at_a_temperature():
    """Match reads no draft law, so that a tree of top-k tokens can be replayed sampled as well."""
    spec = "spec-decode(structure=top-k,depth=3,nodes=8)"
    found, _ = live(spec, max_tokens=30, temperature=0.7)
    _, trace = live("plain", max_tokens=30, temperature=0.7)
    world = tiny_world()
    assert essence(replay(trace, spec, world.draft, world.tokenizer)) == essence(found)


# -- the stand-in -----------------------------------------------------------------------------------------


def test_the_stand_in_answers_on_the_text_and_nowhere_else(traces):
    trace = traces["sampled"]
    model = RecordedModel(trace)
    store = model.new_store(2, 1000)
    store.add()
    store.extend(0, [len(PROMPT) + 2])
    a, b, c, d = trace.tokens[2:6]
    other = (b + 1) % 61
    # a - b - c, a - other - c (c again, but behind a wrong token), b at the wrong place
    tree = DraftTree.build([([a, b, other, c, c, b], [-1, 0, 0, 1, 2, 0])])
    out = model.forward(Block.of_tree(tree), store).logits
    assert out.shape == (1, 6, 61)
    alive = out.amax(-1)[0] > -torch.inf
    assert alive.tolist() == [True, True, False, True, False, True]
    for node, row in ((0, 3), (1, 4), (3, 5), (5, 4)):
        assert torch.equal(out[0, node], trace.logits[row])
    assert d == trace.tokens[5]


def test_the_stand_in_is_silent_behind_the_end(traces):
    trace = traces["greedy"]
    model = RecordedModel(trace)
    store = model.new_store(1, 1000)
    store.add()
    store.extend(0, [len(PROMPT) + len(trace.tokens) - 1])
    chain = Block.of_lists([[trace.tokens[-1], 5, 6]])
    assert not model.forward(chain, store).logits.isfinite().any()
    assert model.forward(chain, store, logits="none").logits.shape == (1, 0, 61)
    assert model.forward(chain, store, logits=2).logits.shape == (1, 2, 61)


def test_rows_of_the_store_stay_dense():
    store = RecordedStore(3, 10)
    assert store.add(2) == 0
    store.extend(0, [4, 6])
    assert store.fork(0) == 2
    store.commit(torch.tensor([[0], [0], [0]]), [1, 1, 2])
    assert store.lengths == store.next_positions == [5, 7, 6]
    store.free(0)
    assert store.lengths == [6, 7]
    store.rewind([3, 9])
    assert store.lengths == [3, 7]
    from outrider.errors import CacheFull

    with pytest.raises(CacheFull):
        store.reserve(0, 2, 4)
    with pytest.raises(CacheFull):
        store.add(2)


def test_logits_that_do_not_give_the_tokens_are_found_out(traces):
    trace = traces["greedy"]
    shifted = Trace(trace.header, trace.prompt, trace.tokens, trace.logits.roll(1, 0))
    with pytest.raises(ModelError, match="does not reproduce the recorded text"):
        replay(shifted, "pld")
    blank = Trace(trace.header, trace.prompt, trace.tokens, torch.full_like(trace.logits, -torch.inf))
    with pytest.raises(ModelError, match="does not reproduce"):
        replay(blank, "plain")


# -- what is refused --------------------------------------------------------------------------------------


class _Asks(Drafter):
    def __init__(self, needs: Needs) -> None:
        self.needs, self.name = needs, "asks"

    def propose(self, rows, budget, draws):
        return DraftTree.roots([row.tokens[-1] for row in rows])


class _Adapts(Policy):
    def plan(self, rows):
        return Budget(1, 1)

    def core(self):
        return Fixed(1)


@pytest.fixture
def odd_presets(monkeypatch):
    """Presets that ask for what a trace does not hold."""
    REGISTRY.load()
    known = dict(REGISTRY._presets)
    odd = {
        "asks-hidden": lambda: Parts(drafter=_Asks(Needs(hidden=(-1,))), policy=Fixed(1), verifier=Match()),
        "asks-prompt": lambda: Parts(drafter=_Asks(Needs(prefill_logits=True)), policy=Fixed(1), verifier=Match()),
        "adapts": lambda: Parts(drafter=_Asks(Needs()), policy=_Adapts(), verifier=Match()),
        "own-law": lambda: Parts(policy=Fixed(0), verifier=Match(), law=lambda logits, tree: logits),
    }
    known |= {name: Preset(name, build, "", False) for name, build in odd.items()}
    monkeypatch.setattr(REGISTRY, "_presets", known)


@pytest.mark.parametrize(
    ("spec", "setting", "words"),
    [
        (
            "token-recycling",
            "greedy",
            "'token-recycling' cannot be replayed: it needs the target's logits behind rejected",
        ),
        ("sam|token-recycling(nodes=5)", "greedy", "'token-recycling'.*rejected tokens"),
        ("spec-decode", "greedy", "'spec-decode' cannot be replayed: it needs a draft model"),
        ("sam|spec-decode", "greedy", "'spec-decode'.*--draft-model"),
        ("spec-decode", "sampled", "temperature 0.7.*ChainRejection flips coins"),
        ("asks-hidden", "greedy", r"'asks'.*hidden states of the target \(layers \(-1,\)\)"),
        ("asks-prompt", "greedy", "'asks'.*every token of the prompt"),
        ("adapts", "greedy", "'adapts'.*times, which its policy _Adapts follows"),
        ("own-law", "greedy", "'own-law' decodes a law of its own"),
    ],
)
def test_refused_by_name_and_need(spec, setting, words, traces, odd_presets):
    with pytest.raises(IncompatibleParts, match=words):
        replay(traces[setting], spec)


def test_an_unknown_preset_is_an_error_of_its_own(traces):
    with pytest.raises(ConfigError, match=r"'pdl'.*'pld'"):
        replay(traces["greedy"], "pdl")


# -- sweeps -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ("pld", ["pld"]),
        ("pld(depth={2,4})", ["pld(depth=2)", "pld(depth=4)"]),
        ("pld(depth={2..4})", ["pld(depth=2)", "pld(depth=3)", "pld(depth=4)"]),
        ("{sam, pld}(depth={2,4})", ["sam(depth=2)", "sam(depth=4)", "pld(depth=2)", "pld(depth=4)"]),
        ("pld(depth={3})", ["pld(depth=3)"]),
    ],
)
def test_braces_are_expanded(spec, found):
    assert expand(spec) == found


@pytest.mark.parametrize("spec", ["pld({1,2)", "pld(1,2})", "pld({{1},2})", "pld({})", "pld({1,,2})", "pld({5..2})"])
def test_braces_that_are_wrong(spec):
    with pytest.raises(ConfigError, match="sweep"):
        expand(spec)


def test_too_many_settings():
    with pytest.raises(ConfigError, match="1000000 settings"):
        expand("pld(depth={1..1000},max_ngram={1..1000})")


def test_a_sweep_counts_what_live_runs_count(traces):
    specs = expand("pld(depth={1,3,8},min_ngram={1,2})")
    trials = list(sweep(traces["sampled"], specs))
    assert [trial.preset for trial in trials] == specs
    for one in trials:
        stats = live(one.preset, **SETTINGS["sampled"])[0].stats
        assert (one.calls, one.tokens) == (stats.target_calls, stats.emitted_tokens)
        assert (one.drafted, one.accepted) == (stats.draft_tokens, stats.accepted_tokens)
        assert one.tokens_per_call == pytest.approx(stats.mean_accepted_length)
        assert one.speedup is None
    best = min(trials, key=lambda trial: trial.rank)
    assert best.tokens_per_call == max(trial.tokens_per_call for trial in trials)


def test_settings_that_cannot_be_replayed_come_last_with_their_reason(traces):
    trials = list(sweep(traces["greedy"], ["auto", "pld(min_ngram=9)", "nothing", "plain", "pld(depth=-1)"]))
    assert [bool(trial.refused) for trial in trials] == [True, True, True, False, True]
    assert "1 <= min <= max" in trials[1].refused
    ranked = sorted(trials, key=lambda trial: trial.rank)
    assert ranked[0].preset == "plain"
    assert ranked[0].drafted_per_accepted is None


def test_the_speedup_is_that_of_the_cost_curve(traces):
    """1 s for one node, a tenth more for each further one, 0.5 s a proposal: summed by hand from the live steps."""
    forward = ForwardCost(nodes=(1, 2, 101), table=(((1.0, 1.1, 11.0),),))
    cost = StepCost(forward, {"pld": DraftCost(proposal=0.5)}, host=0.25)
    found, _ = live("pld", **SETTINGS["greedy"])
    seconds = sum(1.0 + 0.1 * step.drafted + 0.5 + 0.25 for step in found.steps)
    plain = found.stats.emitted_tokens * 1.25
    assert trial(traces["greedy"], "pld", cost).speedup == pytest.approx(plain / seconds)
    assert trial(traces["greedy"], "plain", cost).speedup == pytest.approx(1.0, rel=1e-3)


def test_context_costs_too(traces):
    forward = ForwardCost(nodes=(1, 2), contexts=(0, 100), table=(((1.0, 1.0), (2.0, 2.0)),))
    found, _ = live("pld", **SETTINGS["greedy"])
    at = [len(PROMPT) - 1 + step.position for step in found.steps]
    plain = sum(1 + (len(PROMPT) - 1 + i) / 100 for i in range(found.stats.emitted_tokens))
    cost = StepCost(forward, {"pld": DraftCost()})
    assert trial(traces["greedy"], "pld", cost).speedup == pytest.approx(plain / sum(1 + c / 100 for c in at))


def test_cost_files(tmp_path):
    import json

    cost = StepCost(ForwardCost(nodes=(1, 8), table=(((1.0, 2.0),),)), {"pld": DraftCost(0.1)}, 0.2)
    path = tmp_path / "cost.json"
    path.write_text(json.dumps(cost.as_dict()))
    assert load_cost(path) == cost
    path.write_text(json.dumps({"cost": cost.as_dict(), "preset": "x"}))
    assert load_cost(path) == cost
    for text in ("{", "[]", '{"nodes": []}'):
        path.write_text(text)
        with pytest.raises(ConfigError, match="cost file"):
            load_cost(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_cost(tmp_path / "nowhere")


def test_a_trial_of_nothing():
    assert Trial("x").tokens_per_call == 0.0
    assert Trial("x").as_dict()["drafted_per_accepted"] is None


def test_a_table_world_agrees_as_well():
    world = table_world(vocab=5, seed=7)
    for spec in ("pld(depth=3,max_ngram=2)", "sam(depth=4)"):
        found, trace = live(spec, world, (1, 2, 3), max_tokens=200, temperature=0.6)
        assert essence(replay(trace, spec)) == essence(found)
        assert found.stats.accepted_tokens > 10


def test_a_replay_does_not_need_the_model(traces, tmp_path):
    """No weights, no tokenizer: a process that never imports transformers."""
    path = tmp_path / "one.trace"
    traces["greedy"].save(path)
    code = (
        "import sys; from outrider.explain.trace import Trace; from outrider.explain.replay import replay;"
        f"found = replay(Trace.load({str(path)!r}), 'pld');"
        "assert 'transformers' not in sys.modules; print(found.text)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == traces["greedy"].header.text


def test_the_engine_is_the_same_one(traces):
    from outrider.run.engine import Engine

    run = Replay(traces["greedy"], "sam")
    assert type(run.engine) is Engine
    assert type(run.engine.parts.verifier) is Match


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_real_model_in_its_own_type(temperature, tmp_path):
    """bfloat16 logits survive the file bit by bit, and the replay takes the same tokens from them."""
    from outrider import LLM

    llm = LLM("smollm2-135m", preset="sam|pld")
    explainer = Explainer.of(llm)
    params = SamplingParams(max_tokens=96, temperature=temperature, seed=7)
    recorder = TraceRecorder(llm.engine, params)
    prompt = [{"role": "user", "content": "Write a Python function that reverses a list, then one for strings."}]
    found = explainer.explain(llm.encode(prompt), params)
    assert found.stats.accepted_tokens > 0
    recorder.trace(found, explainer.texts).save(tmp_path / "real.trace")
    again = replay(Trace.load(tmp_path / "real.trace"), "sam|pld")
    assert essence(again) == essence(found)
