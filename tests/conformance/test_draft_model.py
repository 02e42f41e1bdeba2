"""A second model as the drafter: what only such a drafter can get wrong."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from outrider import SamplingParams, preset
from outrider.draft.model import DraftModel
from outrider.model.base import Block
from outrider.model.hf import HFModel
from outrider.run.row import Row
from outrider.testing import conformance
from outrider.testing.conformance import PROMPTS, mixed_menu
from outrider.testing.decode import Case, check_same, decode, drain, engine, plain
from outrider.testing.world import World, tiny_llama, tiny_world
from outrider.types import Outcome
from outrider.verify.match import Match

SHAPES = ["chain", "top-k", "static", "sampled"]


def world_with(**changes: int) -> World:
    """The tiny world with another draft model."""
    right = tiny_world()
    draft = HFModel(tiny_llama(noise=0.02, **changes), "other")
    return World(right.target, draft, right.tokenizer, right.stop_tokens, memo=right.memo)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.3])
def test_a_model_that_drafts_for_itself_is_always_right(temperature: float) -> None:
    """p = q: every coin accepts, in the draft model's own store too."""
    right = tiny_world()
    mirror = World(right.target, right.target, right.tokenizer, right.stop_tokens)
    depth, length = 4, 15
    cases = [
        Case.of(prompt, seed=i, temperature=temperature, ignore_eos=True, max_tokens=length, top_p=0.9)
        for i, prompt in enumerate(PROMPTS)
    ]
    for request in decode(mirror, preset("spec-decode", depth=depth), cases):
        assert request.choices[0].stats.target_calls == -(-length // (depth + 1))


def wrong_laws(spec: str, prompts: Sequence[tuple[int, ...]], temperature: float = 0.8) -> list[float]:
    """How far every recorded draft law is from a full forward of the draft model along the node's path."""
    world, gaps = tiny_world(), []
    running = engine(world, preset(spec))
    near = world.draft.hf  # type: ignore[attr-defined]

    def look(outcome: Outcome) -> None:
        tree = outcome.tree
        if tree.laws is None or tree.law is None:
            return
        for b, row in enumerate(outcome.rows):
            assert isinstance(row, Row)
            text = row.tokens[: len(row.tokens) - len(outcome.emitted[b])]
            for node in range(1, tree.shape[1]):
                at, path = int(tree.parents[b, node]), []
                while at > 0:
                    path.insert(0, int(tree.tokens[b, at]))
                    at = int(tree.parents[b, at])
                if at < 0 or tree.law[b, node] < 0:  # padding, or a token that was looked up
                    continue
                with torch.inference_mode():
                    logits = near(torch.tensor([[*text, *path]]), use_cache=False).logits[0, -1]
                law = tree.laws[b, tree.law[b, node]]
                gaps.append(float((law - (logits / temperature).softmax(-1)).abs().max()))

    running.listen(look)
    for i, prompt in enumerate(prompts):
        params = SamplingParams(seed=i, temperature=temperature, ignore_eos=True, max_tokens=24)
        running.submit(prompt, params)
    drain(running)
    assert len(gaps) > 20
    return gaps


@pytest.mark.parametrize(
    ("spec", "rows"),
    [
        ("spec-decode(depth=3)", 1),
        ("spec-decode(depth=3)", 3),
        ("pld(depth=3)|spec-decode(depth=3)", 3),
        ("spec-decode(depth=3, structure=sampled, nodes=8)", 3),
        ("spec-decode(depth=3, structure=sampled, nodes=8)", 1),
    ],
)
def test_the_draft_law_is_that_of_the_draft_model(spec: str, rows: int) -> None:
    """The verifier is exact for any law that is the one drawn from, so only this shows whether it is the model's:
    its store must hold what was accepted, and every level see its own ancestors."""
    assert max(wrong_laws(spec, PROMPTS[1 : rows + 1])) < 1e-9


def test_the_second_child_of_the_root_is_kept_where_it_belongs() -> None:
    """Accepted alone, it is a path of one node that must still move to the front of the store."""
    world = tiny_world()
    parts = preset("spec-decode(depth=2, structure=static, width=3, nodes=6)")
    running = engine(world, parts)
    running.submit(PROMPTS[2], SamplingParams(ignore_eos=True, max_tokens=40, temperature=1.0, seed=1))
    running.submit(PROMPTS[1], SamplingParams(ignore_eos=True, max_tokens=60, temperature=1.0, seed=2))
    moved = 0
    drafter = parts.drafter
    assert isinstance(drafter, DraftModel)

    def look(outcome: Outcome) -> None:
        nonlocal moved
        assert outcome.verdict is not None
        paths = outcome.verdict.path.tolist()
        alone = [1 < path[1] <= 3 and path[2:3] in ([-1], []) for path in paths if len(path) > 1]
        moved += sum(alone)
        for place, row in enumerate(outcome.rows):
            assert isinstance(row, Row)
            stored = drafter.store.lengths[drafter._rows.index(row.id)]
            assert stored < len(row.tokens), f"row {place}: {stored} tokens stored of {len(row.tokens)}"
            keys = next(iter(drafter.store._buffers.values()))[:, drafter._rows.index(row.id), :, :stored]
            assert torch.allclose(keys, fresh_keys(world, row.tokens[:stored]), atol=1e-9)

    running.listen(look)
    drain(running)
    assert moved > 3


def fresh_keys(world: World, tokens: list[int]) -> torch.Tensor:
    """Keys and values of a text fed in one go."""
    store = world.draft.new_store(1, 256)
    store.add()
    world.draft.forward(Block.of_lists([tokens]), store)
    return next(iter(store._buffers.values()))[:, 0, :, : len(tokens)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("shape", ["chain", "sampled"])
def test_the_batch_does_not_change_sampled_text(shape: str) -> None:
    """Its own rejection rule: the same text alone and in company, until the budget shrinks towards the end."""
    depth, length = 3, 16
    cases = [
        Case.of(prompt, seed=i, temperature=0.8, ignore_eos=True, max_tokens=length, frequency_penalty=0.2)
        for i, prompt in enumerate(PROMPTS)
    ]
    alone, together, three = (
        [
            request.choices[0].token_ids[: length - depth - 1]
            for request in decode(
                tiny_world(), preset("spec-decode", depth=depth, structure=shape, nodes=8), cases, max_rows=rows
            )
        ]
        for rows in (1, 8, 3)
    )
    assert alone == together == three


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [64, 57])
def test_vocabularies_that_differ_by_padding(shape: str, size: int) -> None:
    """A few rows more, or fewer, than the target's 61."""
    world = world_with(vocab_size=size)
    cases = mixed_menu()[:9]
    parts = preset("spec-decode", depth=3, structure=shape, nodes=8, verifier=Match())
    check_same(decode(world, parts, cases), plain(tiny_world(), cases), f"{size} tokens")
    cases = [case for case in cases if case.params.greedy]
    own = preset("spec-decode", depth=3, structure=shape, nodes=8)
    check_same(decode(world, own, cases), plain(tiny_world(), cases), f"{size} tokens, its own verifier")


@pytest.mark.parametrize("shape", SHAPES)
def test_a_draft_model_with_a_shorter_context(shape: str) -> None:
    """It falls silent where its own context ends; the text goes on."""
    world = world_with(max_position_embeddings=24)
    cases = [
        Case.of(PROMPTS[i], seed=i, temperature=t, ignore_eos=True, max_tokens=24) for i, t in ((1, 0.0), (3, 0.7))
    ]
    cases.append(Case.of(PROMPTS[2], max_tokens=6))  # longer than the draft model's context from the start
    for case in cases:  # alone, so that nobody else silences it
        parts = preset("spec-decode", depth=3, structure=shape, nodes=8, verifier=Match())
        found = decode(world, parts, [case])
        check_same(found, plain(tiny_world(), [case]), "a shorter context")
        assert (found[0].choices[0].stats.draft_tokens > 0) == (len(case.prompt) < 24)


def test_rows_that_another_drafter_serves_are_caught_up() -> None:
    """Look-up serves a row for a while; the draft model's store lags behind and is filled in later."""
    cases = [
        Case.of((5, 6, 7, 8) * 4, seed=1, max_tokens=30, logit_bias={5: 4.0, 6: 4.0}, ignore_eos=True),
        Case.of((11, 12), seed=2, temperature=0.7, max_tokens=30, ignore_eos=True),
    ]
    wanted = plain(tiny_world(), cases)
    for spec in ("pld(depth=4)|spec-decode(depth=3)", "sam(depth=4)+spec-decode(depth=3)"):
        found = decode(tiny_world(), preset(spec, verifier=Match()), cases)
        check_same(found, wanted, spec)
        names = {origin.name for request in found for origin in request.choices[0].origins}
        assert "draft-model" in names
        assert len(names) == 3, names


RECURRENT_CHECKS = [
    "batch of 8",
    "guarantee",
    "join and leave",
    "everything accepted",
    "choices",
    "logprobs",
    "prompts",
]


@pytest.mark.parametrize("name", ["pld", "spec-decode"])
@pytest.mark.parametrize("check", RECURRENT_CHECKS)
def test_chains_on_a_recurrent_target(name: str, check: str) -> None:
    """Layers with a running state cannot branch; chains are exact by snapshot and replay."""
    conformance.check(lambda: preset(name), recurrent_world(), only=[check])


def recurrent_world() -> World:
    from outrider.model.recurrent import RecurrentModel
    from outrider.testing.tiny import tiny_model

    if "recurrent" not in tiny_world().memo:
        config = {
            "vocab_size": 61,
            "hidden_size": 16,
            "num_heads": 4,
            "head_dim": 8,
            "state_size": 8,
            "n_groups": 1,
            "chunk_size": 8,
            "num_hidden_layers": 2,
        }
        model = RecurrentModel(tiny_model("mamba2", torch.float64, **config), "tiny-mamba")
        right = tiny_world()
        tiny_world().memo["recurrent"] = World(model, right.draft, right.tokenizer, right.stop_tokens)
    return tiny_world().memo["recurrent"]
