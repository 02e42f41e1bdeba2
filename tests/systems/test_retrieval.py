"""What the retrieval drafters must show once an engine runs them; names carry the system's key."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from outrider import Engine, SamplingParams, preset
from outrider.draft.recycling import TokenRecycling
from outrider.parts import Parts
from outrider.policy.fixed import Fixed
from outrider.run.request import Choice
from outrider.testing.decode import Case, decode, drain, engine
from outrider.testing.world import World, tiny_world
from outrider.types import PADDING, Outcome
from outrider.verify.match import Match

from .script_model import BigramModel, ScriptModel

VOCAB = 5000


def follow(script: list[int], prompt: int, parts: Parts) -> Choice:
    """Let ``parts`` decode the rest of ``script`` behind its first ``prompt`` tokens."""
    running = Engine(ScriptModel(script, VOCAB), parts)
    request = running.submit(script[:prompt], SamplingParams(max_tokens=len(script) - prompt - 2))
    drain(running)
    choice = request.choices[0]
    assert choice.token_ids == script[prompt : prompt + len(choice.token_ids)]
    return choice


def test_pld_copies_a_paragraph_that_stands_twice() -> None:
    paragraph = random.Random(0).sample(range(VOCAB), 60)
    choice = follow(paragraph * 3, 120, preset("pld"))
    assert choice.stats.mean_accepted_length > 3


def test_pld_costs_no_calls_on_random_tokens() -> None:
    rng = random.Random(1)
    script = [rng.randrange(VOCAB) for _ in range(400)]
    choice = follow(script, 200, preset("pld"))
    assert abs(choice.stats.mean_accepted_length - 1) < 0.05


def test_sam_beats_pld_where_short_contexts_are_ambiguous() -> None:
    rng = random.Random(2)
    # Ten phrases that begin with the same three tokens: only a longer match says which one comes next.
    phrases = [[1, 2, 3, *rng.sample(range(10, VOCAB), 3)] for _ in range(10)]
    script = [token for phrase in phrases for token in phrase] * 4
    with_pld = follow(script, 60, preset("pld")).stats
    with_sam = follow(script, 60, preset("sam")).stats
    assert with_sam.mean_accepted_length > with_pld.mean_accepted_length
    assert with_sam.target_calls < with_pld.target_calls


CASES = [Case.of((first, 9, 3), max_tokens=30, temperature=0.7, seed=first, ignore_eos=True) for first in range(1, 21)]
"""Sampled, so that a table of successors does not run into one cycle."""

BIGRAMS = World(target=BigramModel(200, seed=0), draft=BigramModel(200, seed=0))


def accepted_length(world: World, drafter: TokenRecycling, passes: int) -> list[float]:
    """Mean accepted length of each pass over the same prompts, one after the other, by one engine."""
    parts = Parts(drafter=drafter, policy=Fixed(6, nodes=80, width=8), verifier=Match())
    running = engine(world, parts)
    means = []
    for _ in range(passes):
        calls = emitted = 0
        for case in CASES:
            request = running.submit(case.prompt, case.params)
            drain(running)
            calls += request.choices[0].stats.target_calls
            emitted += request.choices[0].stats.emitted_tokens
        means.append(emitted / calls)
    return means


def test_token_recycling_is_better_on_the_second_pass() -> None:
    cold, warm = accepted_length(BIGRAMS, TokenRecycling(), 2)
    assert warm > cold


class AcceptedOnly(TokenRecycling):
    """Learns nothing from rejected nodes."""

    def observe(self, outcome: Outcome) -> None:
        if outcome.verdict is None:
            return
        tree = outcome.tree
        nodes = torch.zeros_like(tree.tokens, dtype=torch.bool)
        for row, path in enumerate(outcome.verdict.path.tolist()):
            nodes[row, [node for node in path if node >= 0]] = True
        kept = replace(tree, parents=torch.where(nodes, tree.parents, PADDING), host=None)
        super().observe(replace(outcome, tree=kept))


def test_token_recycling_learns_from_rejected_nodes() -> None:
    (full,) = accepted_length(tiny_world(), TokenRecycling(), 1)
    (accepted,) = accepted_length(tiny_world(), AcceptedOnly(), 1)
    assert accepted < full


def test_token_recycling_keeps_what_it_learnt_across_requests() -> None:
    shared = accepted_length(BIGRAMS, TokenRecycling(scope="engine"), 2)
    alone = accepted_length(BIGRAMS, TokenRecycling(scope="request"), 2)
    assert abs(alone[0] - alone[1]) < 1e-9
    assert shared[1] > alone[1]


def test_spec_decode_with_the_target_as_its_own_draft_accepts_everything() -> None:
    world = tiny_world()
    own = replace(world, draft=world.target, memo={})
    for temperature in (0.0, 1.0):
        cases = [
            Case.of((5, 6, first), max_tokens=30, temperature=temperature, seed=first, ignore_eos=True)
            for first in range(4)
        ]
        for request in decode(own, preset("spec-decode(depth=4)"), cases):
            assert request.choices[0].stats.acceptance_histogram == [0, 0, 0, 0, 6]


@pytest.mark.parametrize("sign", ["|", "+"])
def test_each_drafter_of_a_combination_keeps_to_its_own_settings(sign: str) -> None:
    """A setting of one part must not be widened by the other's budget."""
    world = tiny_world()
    running = engine(world, preset(f"sam(min_match=4){sign}token-recycling(nodes=3)"))
    widest = {"sam": 0, "token-recycling": 0}

    def look(outcome: Outcome) -> None:
        origin, names = outcome.tree.origin_of(), outcome.tree.origins
        for name in widest:
            if name in names:
                drafted = (origin == names.index(name)) & outcome.tree.real
                widest[name] = max(widest[name], int(drafted.sum(1).max()))

    running.listen(look)
    running.submit((5, 6, 7), SamplingParams(max_tokens=80, ignore_eos=True))
    drain(running)
    assert widest["token-recycling"] == 3
    assert widest["sam"] > 3
