"""Records of steps: fates and reasons, probabilities against known laws, origins against the engine's own."""

from __future__ import annotations

import json
import math

import pytest
import torch

from outrider.draft.base import Drafter
from outrider.explain import Explainer, Fate, summarise
from outrider.explain.fates import Sight, judge, unknown
from outrider.explain.listen import _look
from outrider.explain.record import Bonus, Explanation, Node, Plan, Step
from outrider.explain.watch import Labels
from outrider.params import SamplingParams
from outrider.parts import Parts
from outrider.policy.base import Policy
from outrider.policy.fixed import Fixed
from outrider.registry import preset
from outrider.run.request import Stats
from outrider.testing.decode import engine
from outrider.testing.world import World, table_world, tiny_world
from outrider.types import PADDING, ROOT, Budget, DraftTree, Guarantee, Outcome, Verdict
from outrider.verify.match import Match

PROMPT = (3, 9) * 9


def explain(spec, prompt=PROMPT, world: World | None = None, parts: Parts | None = None, **params):
    """An explanation and the request it is about."""
    running = engine(world or tiny_world(), parts or preset(spec), max_rows=1)
    explainer = Explainer(running, Labels("tiny", spec))
    request = running.submit(prompt, SamplingParams(**{"seed": 1, "max_tokens": 24, "ignore_eos": True} | params))
    while not request.finished:
        running.step()
    return explainer.result(request), request


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize(
    "spec",
    [
        "plain",
        "pld",
        "sam|token-recycling(nodes=20)",
        "pld+token-recycling(nodes=20)",
        "spec-decode(depth=3)",
        "spec-decode(structure=top-k,depth=3,nodes=8)",
        "spec-decode(structure=sampled,depth=3,nodes=12)",
        "pld+spec-decode(structure=sampled,depth=2,nodes=6)",
    ],
)
def test_tokens_and_origins_are_the_requests_own(spec, temperature):
    found, request = explain(spec, temperature=temperature, max_tokens=30)
    (choice,) = request.choices
    tokens = list(found.tokens())
    assert [token.token for token in tokens] == choice.token_ids
    assert [(token.origin, token.depth) for token in tokens] == [(o.name, o.depth) for o in choice.origins]
    assert "".join(token.piece for token in tokens) == choice.text
    assert len(found.steps) == choice.stats.target_calls
    assert sum(step.drafted for step in found.steps) == choice.stats.draft_tokens
    fates = [node.fate for step in found.steps for node in step.nodes]
    assert fates.count(Fate.ACCEPTED) == choice.stats.accepted_tokens
    for step in found.steps:
        for node in step.nodes[1:]:
            assert node.depth == step.nodes[node.parent].depth + 1
            assert bool(node.reason) is (node.fate is not Fate.ACCEPTED)


def test_every_preset_has_something_to_reject_and_to_accept_here():
    """What the test above would miss if the tiny world were too easy or too hard."""
    found, _ = explain("pld+token-recycling(nodes=20)", temperature=0.8)
    fates = {node.fate for step in found.steps for node in step.nodes}
    assert {Fate.ACCEPTED, Fate.REJECTED, Fate.BELOW} <= fates
    assert {node.origin for step in found.steps for node in step.nodes[1:]} == {"pld", "token-recycling"}


def test_probabilities_are_those_of_the_known_law():
    """In a table world every law is known: p at the parent, the model's own, and q of the draft model."""
    world = table_world(vocab=6, seed=3)
    spec = "spec-decode(structure=sampled,depth=2,nodes=6)"
    found, _ = explain(spec, (1, 2, 3), world, temperature=0.7, max_tokens=12)
    text = [1, 2, 3]
    compared = 0
    for step in found.steps:
        above = {0: []}
        for index, node in enumerate(step.nodes[1:], start=1):
            above[index] = [*above[node.parent], node.token]
            prefix = text + above[node.parent]
            raw = world.target.law(prefix)
            law = (raw.log() / 0.7).softmax(-1)
            draft = (world.draft.law(prefix).log() / 0.7).softmax(-1)
            assert node.model_p == pytest.approx(float(raw[node.token]), abs=1e-5)
            assert node.p == pytest.approx(float(law[node.token]), abs=1e-5)
            assert node.q == pytest.approx(float(draft[node.token]), abs=1e-5)
            compared += 1
        end = text + above[step.path[-1] if step.path else 0]
        if step.bonus is not None:
            assert step.bonus.model_p == pytest.approx(float(world.target.law(end)[step.bonus.token]), abs=1e-5)
        text += step.emitted
    assert compared > 20


def test_a_coin_is_told_only_where_it_decided():
    found, _ = explain("spec-decode(depth=4)", world=table_world(vocab=6, seed=1), prompt=(1, 2), temperature=1.2)
    tested = [node for step in found.steps for node in step.nodes[1:] if node.coin is not None]
    assert {node.fate for node in tested} == {Fate.ACCEPTED, Fate.REJECTED}
    for node in tested:
        assert (node.coin < node.chance) is (node.fate is Fate.ACCEPTED)
        assert node.chance == pytest.approx(min(1.0, node.p / node.q), abs=1e-4)
        if node.fate is Fate.REJECTED:
            assert "kept with probability" in node.reason
            assert "the coin fell at" in node.reason


def test_at_temperature_0_the_reason_names_the_first_choice():
    found, _ = explain("pld")
    node = next(node for step in found.steps for node in step.nodes if node.fate is Fate.REJECTED)
    assert node.wanted != node.token
    assert node.reason.startswith(f"the target's first choice is “{node.wanted_text}”")
    assert node.p == 0.0
    assert 0 < node.model_p < 1


def test_with_match_a_rejected_token_is_not_what_the_position_drew():
    found, _ = explain("token-recycling(nodes=20)", temperature=0.9, max_tokens=30)
    for step in found.steps:
        for node in step.nodes[1:]:
            if node.fate is Fate.REJECTED:
                assert node.wanted is not None
                assert node.wanted != node.token
                assert node.reason.startswith("the target drew")
            elif node.fate is Fate.ACCEPTED:
                assert node.wanted == node.token
        if step.bonus is not None and len(step.path) < step.drafted:
            wanted = {n.wanted for n in step.nodes[1:] if n.parent == (step.path[-1] if step.path else 0)}
            assert wanted <= {step.bonus.token}


class _Chatty(Policy):
    """Skips every third step, and reviews the others down to three nodes (or, every fifth, to none)."""

    def __init__(self) -> None:
        self.steps = 0

    def plan(self, rows):
        self.steps += 1
        skip = frozenset(row.id for row in rows) if self.steps % 3 == 0 else frozenset()
        return Budget(10, 10, 1, skip=skip)

    def review(self, rows, tree):
        return [1 if self.steps % 5 == 0 else min(4, tree.shape[1])] * len(rows)


def test_what_the_policy_decided_is_recorded():
    parts = preset("pld").with_(policy=_Chatty())
    found, request = explain("pld", parts=parts, max_tokens=40)
    assert [step.plan.skipped for step in found.steps] == [i % 3 == 2 for i in range(len(found.steps))]
    dropped = [step for step in found.steps if step.silence == "draft dropped by the policy"]
    cut = [step for step in found.steps if step.drafted and step.plan.proposed > step.drafted]
    assert dropped
    assert cut
    assert all(step.drafted == 3 for step in cut)
    assert {step.silence for step in found.steps} == {
        "",
        "no draft",
        "no draft planned",
        "draft dropped by the policy",
    }
    plain, other = explain("plain", max_tokens=40)
    assert other.choices[0].token_ids == request.choices[0].token_ids  # listening changes nothing
    assert plain.steps[0].plan is None  # nobody was asked


def test_recording_leaves_the_text_as_it_is():
    for temperature in (0.0, 0.8):
        running = engine(tiny_world(), preset("spec-decode(depth=3)"), max_rows=1)
        params = SamplingParams(seed=1, max_tokens=24, temperature=temperature, ignore_eos=True)
        request = running.submit(PROMPT, params)
        while not request.finished:
            running.step()
        _, recorded = explain("spec-decode(depth=3)", temperature=temperature)
        assert recorded.choices[0].token_ids == request.choices[0].token_ids


def test_one_row_of_several_is_recorded_and_the_next_request_begins_afresh():
    running = engine(tiny_world(), preset("pld"), max_rows=3)
    explainer = Explainer(running, Labels("tiny", "pld"))
    params = SamplingParams(seed=1, max_tokens=12, temperature=0.7, ignore_eos=True)
    requests = [running.submit(prompt, params) for prompt in (PROMPT, (1, 50), (5, 6, 7))]
    while not running.idle:
        running.step()
    found = explainer.result(requests[0])
    alone, _ = explain("pld", max_tokens=12, temperature=0.7)
    assert [step.emitted for step in found.steps] == [step.emitted for step in alone.steps]
    assert [step.nodes for step in found.steps] == [step.nodes for step in alone.steps]
    again = explainer.explain((1, 50), params)
    assert [token.token for token in again.tokens()] == requests[1].choices[0].token_ids


# -- fates, by hand ---------------------------------------------------------------------------------------


def sight(tokens, parents, path, bonus, kept, **changes) -> Sight:
    size = len(tokens)
    depth = [0] * size
    for node in range(1, size):
        depth[node] = depth[parents[node]] + 1
    chosen = [None] * size
    for node, token in zip([0, *path], [*(tokens[n] for n in path), bonus], strict=True):
        chosen[node] = token
    fields = {
        "origins": ["target", *["sam"] * (size - 1)],
        "roles": ["candidate"] * size,
        "drawn": ["point"] * size,
        "greedy": True,
        "matched": True,
        "chosen": chosen,
    }
    numbers = ("q", "p", "model_p", "chosen_p", "chosen_model_p", "chance", "coin")
    fields |= {name: unknown(size) for name in numbers}
    return Sight(tokens=tokens, parents=parents, depth=depth, path=path, bonus=bonus, kept=kept, **fields | changes)


def fates(seen: Sight) -> list[Fate]:
    return [node.fate for node in judge(seen, str)]


def test_fates_of_a_chain_that_stands_in_part():
    seen = sight([7, 1, 2, 3, 4], [-1, 0, 1, 2, 3], [1, 2], 9, 3)
    assert fates(seen) == [Fate.ROOT, Fate.ACCEPTED, Fate.ACCEPTED, Fate.REJECTED, Fate.BELOW]
    nodes = judge(seen, str)
    assert nodes[3].wanted == 9
    assert nodes[4].reason == "its parent “3” does not stand"


def test_below_the_end_of_the_text_nothing_is_judged():
    """The rule accepted four nodes, but the text ended with the second: a replay could not know more."""
    seen = sight([7, 1, 2, 3, 4, 5], [-1, 0, 1, 2, 3, 1], [1, 2, 3, 4], 9, 2)
    assert fates(seen) == [Fate.ROOT, Fate.ACCEPTED, Fate.ACCEPTED, Fate.CUT, Fate.CUT, Fate.REJECTED]
    node = judge(seen, str)[3]
    assert (node.p, node.wanted) == (None, None)
    assert node.reason == "the text ended above it"


def test_a_duplicate_of_what_stands_was_not_wrong():
    seen = sight([7, 1, 1, 2, 5], [-1, 0, 0, 2, 1], [2, 3], 9, 3)
    assert fates(seen) == [Fate.ROOT, Fate.DUPLICATE, Fate.ACCEPTED, Fate.ACCEPTED, Fate.BELOW]
    assert judge(seen, str)[1].reason == "the same token stands as node 2"


def test_probes_and_late_leaves():
    roles = ["candidate", "candidate", "probe", "late", "late"]
    seen = sight([7, 1, 1, 9, 8], [-1, 0, 0, 1, 1], [1], 9, 2, roles=roles)
    assert fates(seen) == [Fate.ROOT, Fate.ACCEPTED, Fate.PROBE, Fate.LATE, Fate.REJECTED]


def test_siblings_behind_the_accepted_one_were_not_reached():
    chance, coin = [None, 0.4, 0.9, None], [0.0, 0.5, 0.2, 0.3]
    seen = sight([7, 1, 2, 3], [-1, 0, 0, 0], [2], 9, 2, matched=False, greedy=False, chance=chance, coin=coin)
    assert fates(seen) == [Fate.ROOT, Fate.REJECTED, Fate.ACCEPTED, Fate.UNREACHED]
    assert [node.coin for node in judge(seen, str)] == [None, 0.5, 0.2, None]


def test_a_coin_that_cannot_have_decided_is_not_told():
    """A rule that flips other coins: 0.1 would have accepted a token with a chance of 0.4."""
    chance, coin = [None, 0.4], [0.0, 0.1]
    seen = sight([7, 1], [-1, 0], [], 9, 1, matched=False, greedy=False, chance=chance, coin=coin)
    (_, node) = judge(seen, str)
    assert (node.fate, node.coin, node.chance) == (Fate.REJECTED, None, 0.4)
    assert "coin" not in node.reason


def test_a_position_where_nothing_can_follow():
    seen = sight([7, 1], [-1, 0], [], -1, 0, chosen=[None, None])
    assert judge(seen, str)[1].reason == "nothing could follow here"


class _Row:
    id, seed, sample, root_position = 0, 1, 0, 5
    params = SamplingParams()


def test_padding_between_nodes_is_left_out():
    from outrider.sampling import Warped

    tree = DraftTree(
        tokens=torch.tensor([[7, 1, 0, 2]]),
        parents=torch.tensor([[ROOT, 0, PADDING, 1]]),
        depth_bound=2,
    )
    logits = torch.full((1, 4, 10), 0.0)
    logits[0, 0, 1] = logits[0, 1, 2] = logits[0, 3, 4] = 5.0
    logits[0, 2] = torch.nan
    verdict = Verdict(torch.tensor([[0, 1, 3]]), torch.tensor([3]), torch.tensor([4]))
    p = Warped(logits, [True])
    outcome = Outcome([_Row()], tree, verdict, [[1, 2, 4]], logits=logits, p=p)
    seen = _look(outcome, _Row(), 0, Guarantee.IDENTICAL)
    assert seen.tokens == [7, 1, 2]
    assert seen.parents == [-1, 0, 1]
    assert seen.path == [1, 2]
    assert seen.model_p[1] == pytest.approx(seen.model_p[2])
    assert seen.chosen == [1, 2, 4]


# -- summary and record -----------------------------------------------------------------------------------


def node(token, parent, depth, fate, origin="sam", wanted=None, model_p=None) -> Node:
    return Node(
        token=token,
        text=f"t{token}",
        parent=parent,
        depth=depth,
        origin=origin,
        fate=fate,
        reason="",
        wanted=wanted,
        wanted_text="" if wanted is None else f"t{wanted}",
        model_p=model_p,
    )


ROOT_NODE = node(0, -1, 0, Fate.ROOT, "target")


def explanation(steps, **changes) -> Explanation:
    fields = {
        "model": "m",
        "preset": "sam",
        "drafters": "sam",
        "guarantee": "identical",
        "prompt": (1, 2),
        "prompt_text": "t1t2",
        "params": {},
        "seed": 0,
        "text": "",
        "finish_reason": "length",
        "stop_reason": None,
        "stats": Stats(),
    }
    return Explanation(steps=tuple(steps), **fields | changes)


def hand_made() -> Explanation:
    bonus = Bonus(9, "t9")
    chain = (ROOT_NODE, node(1, 0, 1, Fate.ACCEPTED), node(2, 1, 2, Fate.REJECTED, wanted=9, model_p=0.3))
    wrong = (ROOT_NODE, node(2, 0, 1, Fate.REJECTED, wanted=9, model_p=0.1), node(3, 1, 2, Fate.BELOW))
    whole = (ROOT_NODE, node(1, 0, 1, Fate.ACCEPTED, "pld"))
    return explanation(
        [
            Step(0, 0, chain, (1,), bonus, ("a", "b")),
            Step(1, 2, wrong, (), bonus, ("c",)),
            Step(2, 3, (ROOT_NODE,), (), bonus, ("d",)),
            Step(3, 4, (ROOT_NODE,), (), bonus, ("e",), Plan(4, 4, 1, skipped=True)),
            Step(4, 5, whole, (1,), bonus, ("f", "g"), Plan(4, 4, 1, proposed=4)),
        ]
    )


def test_summary_counts():
    found = summarise(hand_made())
    assert (found.steps, found.tokens, found.drafted, found.accepted) == (5, 7, 5, 2)
    assert found.tokens_per_step == pytest.approx(7 / 5)
    assert [(level.depth, level.tested, level.accepted) for level in found.levels] == [(1, 3, 2), (2, 1, 0)]
    assert [(s.origin, s.nodes, s.accepted, s.steps) for s in found.sources] == [("sam", 4, 1, 2), ("pld", 1, 1, 1)]
    assert found.fates == {"accepted": 2, "rejected": 2, "below": 1}
    assert [(miss.drafted, miss.wanted, miss.times) for miss in found.misses] == [("t2", "t9", 2)]
    assert found.facts == (
        "1 of 5 steps (20 %) gave one token: no draft.",
        "1 of 5 steps (20 %) gave one token: no draft planned.",
        "The policy shortened 1 of 3 drafts (33 %).",
        "In the steps with a draft 1.7 tokens were drafted and 0.67 stood, on average.",
        "In 1 of 3 drafts (33 %) no first token was right.",
        "1 of 3 drafts (33 %) stood to the last level: deeper ones could have gone on.",
        "1 of 5 nodes (20 %) stood below a token that was wrong already.",
        "Where a draft ended, 1 of 2 first proposals (50 %) had a probability of 0.2 or more: near misses.",
    )


def test_summary_of_nothing():
    found = summarise(explanation([]))
    assert (found.steps, found.tokens, found.tokens_per_step, found.facts) == (0, 0, 0.0, ())


def test_the_record_is_plain_json():
    found, request = explain("pld+token-recycling(nodes=20)", temperature=0.7, logit_bias={3: -math.inf})
    record = json.loads(json.dumps(found.as_dict()))
    assert (record["format"], record["version"]) == ("outrider-explanation", 1)
    assert [token["token"] for token in record["answer"]["tokens"]] == request.choices[0].token_ids
    assert record["answer"]["text"] == request.choices[0].text
    assert len(record["steps"]) == len(found.steps)
    assert record["steps"][3]["nodes"][0]["fate"] == "root"
    assert record["summary"]["drafted"] == request.choices[0].stats.draft_tokens
    assert record["params"]["temperature"] == 0.7


class _Repeats(Drafter):
    """Drafts the same token twice among siblings, with a subtree under each."""

    name = "repeats"
    branching = True

    def propose(self, rows, budget, draws):
        trees = [([row.tokens[-1], 5, 5, 6, 7, 8], [ROOT, 0, 0, 1, 2, 0]) for row in rows]
        return DraftTree.build(trees, origin=self.name)


def test_siblings_that_repeat_a_token_are_told_apart_from_wrong_ones():
    world = table_world(vocab=9, seed=0)
    parts = Parts(drafter=_Repeats(), policy=Fixed(2, nodes=5, width=3), verifier=Match())
    found, request = explain("repeats", (1, 2), world, parts, temperature=1.0, max_tokens=60)
    seen = [node.fate for step in found.steps for node in step.nodes]
    assert Fate.DUPLICATE in seen
    assert [token.token for token in found.tokens()] == request.choices[0].token_ids
    for step in found.steps:
        for node in step.nodes:
            if node.fate is Fate.DUPLICATE:
                assert node.token == step.nodes[step.path[0]].token
