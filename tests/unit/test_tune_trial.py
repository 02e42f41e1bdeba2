"""Recorded texts and replays: step for step what the engine does with the target itself."""

from __future__ import annotations

import pytest
import torch

from outrider import LLM, SamplingParams, preset
from outrider.policy.cost import DraftCost
from outrider.policy.fixed import Fixed
from outrider.run.scheduler import Limits
from outrider.testing.decode import engine
from outrider.testing.world import table_world, tiny_world
from outrider.tune import agreement, trial
from outrider.tune.timing import Deadline, Timed
from outrider.tune.trial import Prompt, Record, Step, Trial, follow, replayable
from outrider.types import DraftTree

GREEDY = SamplingParams(max_tokens=40)
PROMPTS = [Prompt("a", "x", (5, 6, 7, 5, 6, 7)), Prompt("b", "y", (11, 30, 35, 59, 25, 42, 30, 18, 42, 11, 30))]
FOREVER = 1e9


@pytest.fixture(scope="module")
def llm():
    world = tiny_world()
    return LLM(
        world.target, preset="plain", draft_model=world.draft, tokenizer=world.tokenizer, limits=Limits(max_context=200)
    )


def steps_of(llm, name, prompts, params):
    """What the engine does, run live: (nodes, context, emitted) per step and prompt."""
    found = []
    for prompt in prompts:
        running = trial._engine(llm, preset(name), 1)
        steps = []

        def note(outcome, steps=steps):
            emitted = len(outcome.emitted[0])
            context = len(outcome.rows[0].tokens) - emitted - 1
            steps.append((int(outcome.tree.real.sum()), context, emitted))

        running.listen(note)
        request = running.submit(prompt.tokens, params)
        while not request.finished:
            running.step()
        found.append(steps)
    return found


def bare(found: Trial):
    return [[(step.nodes, step.context, step.emitted) for step in steps] for steps in found.steps]


LOOK_UPS = [
    "pld",
    "pld(depth=3,min_ngram=2)",
    "sam",
    "sam(min_match=2,depth=6)|pld(depth=2)",
    "pld(depth=4)+sam(depth=4)",
]


@pytest.mark.parametrize("name", [*LOOK_UPS, "spec-decode(depth=3)", "spec-decode(structure=top-k,depth=3,nodes=6)"])
def test_replay_takes_the_very_steps_of_a_live_run(llm, name):
    records = trial.record(llm, PROMPTS, GREEDY, Deadline(FOREVER))
    found = trial.replay(llm, name, records, GREEDY, Deadline(FOREVER))
    assert bare(found) == steps_of(llm, name, PROMPTS, GREEDY)
    assert found.tokens == sum(len(one.output) for one in records)
    assert max(step.nodes for steps in found.steps for step in steps) > 1
    assert any(step.emitted > 1 for steps in found.steps for step in steps)
    assert not found.live


@pytest.mark.parametrize("depth", [1, 2, 3, 6, 60])
def test_one_reading_tells_what_chains_of_every_length_do(llm, depth):
    """Without drafting anything: the steps are those of a live run with the draft model."""
    records = trial.record(llm, PROMPTS, GREEDY, Deadline(FOREVER))
    found = agreement.agreements(llm.draft.model, records, llm.language_model.vocab_size, Deadline(FOREVER))
    name = f"spec-decode(depth={depth})"
    assert agreement.depth_of(preset(name), GREEDY) == depth
    chains = agreement.chains(name, depth, found, DraftCost(level=0.5, token=0.25), GREEDY.max_tokens)
    assert bare(chains) == steps_of(llm, name, PROMPTS, GREEDY)
    assert any(step.emitted > 1 for steps in chains.steps for step in steps)
    first, later = chains.steps[0][:2]
    assert first.draft == pytest.approx(0.5 * first.levels + 0.25 * len(PROMPTS[0].tokens))
    assert later.draft == pytest.approx(0.5 * later.levels)
    assert agreement.level_cost(llm, records, GREEDY, Deadline(FOREVER)).level > 0


def test_what_is_no_chain_of_the_draft_model():
    for name in ("spec-decode(threshold=0.4)", "spec-decode(structure=top-k)", "pld", "sam|spec-decode"):
        assert agreement.depth_of(preset(name), GREEDY) is None
    assert agreement.depth_of(preset("spec-decode"), SamplingParams(temperature=1.0)) is None


@pytest.mark.parametrize("name", ["pld", "sam(min_match=2,depth=6)|pld(depth=2)"])
def test_replay_is_right_at_a_temperature_where_match_decides(llm, name):
    params = SamplingParams(max_tokens=40, temperature=0.3, seed=5)
    records = trial.record(llm, PROMPTS, params, Deadline(FOREVER))
    found = trial.replay(llm, name, records, params, Deadline(FOREVER))
    assert bare(found) == steps_of(llm, name, PROMPTS, params)


def test_a_live_trial_takes_the_very_steps_as_well(llm):
    name = "token-recycling(nodes=10)"
    records = trial.record(llm, PROMPTS[:1], GREEDY, Deadline(FOREVER))
    found = trial.live(llm, name, records, GREEDY, Deadline(FOREVER))
    assert bare(found) == steps_of(llm, name, PROMPTS[:1], GREEDY)
    assert found.live
    assert sum(step.draft for step in found.steps[0]) > 0


def test_what_can_be_replayed():
    sampled = SamplingParams(temperature=1.0)
    assert replayable(preset("pld"), GREEDY)
    assert replayable(preset("sam"), sampled)
    assert replayable(preset("spec-decode"), GREEDY)
    assert not replayable(preset("spec-decode"), sampled)  # a coin decides, and it needs the law
    assert not replayable(preset("token-recycling"), GREEDY)  # learns from rejected nodes
    assert not replayable(preset("sam|token-recycling"), GREEDY)
    assert not replayable(preset("plain"), GREEDY)
    assert not replayable(preset("pld").with_(law=lambda logits, tree: logits), GREEDY)


def test_recorded_texts_are_those_of_plain_decoding(llm):
    records = trial.record(llm, PROMPTS, GREEDY, Deadline(FOREVER), rows=2)
    alone = [trial.record(llm, [prompt], GREEDY, Deadline(FOREVER))[0] for prompt in PROMPTS]
    assert [one.output for one in records] == [one.output for one in alone]
    plain = trial.plain_steps(records)
    assert bare(plain) == steps_of(llm, "plain", PROMPTS, GREEDY)


class Steps:
    """A clock that moves by one whenever it is read."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def test_recording_keeps_what_there_was_time_for(llm):
    """Cut short, every record is the beginning of the whole text; who was not read has none."""
    whole = {one.prompt.id: one.output for one in trial.record(llm, PROMPTS, GREEDY, Deadline(FOREVER))}
    cut = trial.record(llm, PROMPTS, GREEDY, Deadline(12.0, Steps()))
    assert cut
    for one in cut:
        assert one.output == whole[one.prompt.id][: len(one.output)]
    assert sum(len(one.output) for one in cut) < sum(map(len, whole.values()))
    none = trial.record(llm, PROMPTS, GREEDY, Deadline(0.0, Steps()))
    assert len(none) == 1
    assert len(none[0].output) >= 1


def test_replays_and_live_runs_end_at_the_deadline(llm):
    records = trial.record(llm, PROMPTS, GREEDY, Deadline(FOREVER))
    whole = trial.replay(llm, "pld", records, GREEDY, Deadline(FOREVER))
    cut = trial.replay(llm, "pld", records, GREEDY, Deadline(0.0))
    assert bare(cut) == [bare(whole)[0][:1]]
    live = trial.live(llm, "pld", records, GREEDY, Deadline(0.0))
    assert bare(live) == [bare(whole)[0][:1]]
    beside = cut.beside(trial.plain_steps(records))
    assert beside.tokens == cut.tokens


@pytest.mark.parametrize(
    ("tokens", "parents", "text", "path"),
    [
        ([9], [-1], [1, 2], [0]),
        ([9, 1, 2, 3], [-1, 0, 1, 2], [1, 2, 4, 5], [0, 1, 2]),
        ([9, 1, 2, 3], [-1, 0, 1, 2], [1, 2], [0, 1]),  # the last token is the target's own
        ([9, 1, 2], [-1, 0, 1], [1], [0]),
        ([9, 3, 1, 2, 2], [-1, 0, 0, 1, 2], [1, 2, 7], [0, 2, 4]),
        ([9, 1, 1, 2], [-1, 0, 0, 2], [1, 2, 7], [0, 2, 3]),  # twins: the deeper one
        ([9, 1, 1], [-1, 0, 0], [1, 2, 7], [0, 1]),  # the first of equals
        ([9, 5, 2], [-1, 0, 1], [1, 2, 3], [0]),
    ],
)
def test_the_path_along_a_text(tokens, parents, text, path):
    tree = DraftTree.build([(tokens, parents)])
    assert follow(tree, text) == path
    tree.host = None
    assert follow(tree, text) == path


def test_padding_is_not_followed():
    tree = DraftTree(torch.tensor([[9, 1, 0, 0]]), torch.tensor([[-1, 0, -2, -2]]), depth_bound=1)
    assert follow(tree, [1, 0, 0, 0]) == [0, 1]


def test_timed_drafters_do_the_same_and_count():
    world = table_world()
    parts = preset("pld", depth=3)
    assert parts.drafter is not None
    clock = Steps()
    drafter = Timed(parts.drafter, clock)
    assert (drafter.name, drafter.sources, drafter.branching) == ("pld", (("pld",),), False)
    texts = []
    for chosen in (preset("pld", depth=3), parts.with_(drafter=drafter)):
        running = engine(world, chosen)
        request = running.submit((1, 2, 1, 2), SamplingParams(max_tokens=12, n=2, temperature=1.0, seed=1))
        while not request.finished:
            running.step()
        texts.append([choice.token_ids for choice in request.choices])
    assert texts[0] == texts[1]
    spent = drafter.take()
    assert spent >= 2  # a proposal and an outcome at least, one tick each
    assert drafter.take() == 0


def test_groups_and_lengths_of_a_trial():
    prompts = (Prompt("a", "x", (1,)), Prompt("b", "y", (1,)))
    found = Trial("t", prompts, ((Step(1, 0, 1), Step(3, 1, 3)), (Step(1, 0, 1),)))
    assert (found.tokens, found.calls) == (5, 3)
    records = [Record(prompts[0], (1, 2, 3, 4, 5)), Record(prompts[1], (1, 2))]
    beside = found.beside(trial.plain_steps(records))
    assert [len(steps) for steps in beside.steps] == [4, 1]


def test_plans_of_nothing_replay_as_plain(llm, monkeypatch):
    records = trial.record(llm, PROMPTS, GREEDY, Deadline(FOREVER))
    parts = preset("pld").with_(policy=Fixed(0))
    monkeypatch.setattr(trial, "preset", lambda name: parts)
    found = trial.replay(llm, "pld", records, GREEDY, Deadline(FOREVER))
    assert bare(found) == bare(trial.plain_steps(records))
