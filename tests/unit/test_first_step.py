"""The end of a prompt is read along with the first draft where a row is alone: a forward less, the same text."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from outrider.model.base import Block
from outrider.registry import preset
from outrider.testing.decode import Case, drain, engine, plain
from outrider.testing.world import World, tiny_world
from outrider.types import DraftTree, Needs

PROMPT = (11, 30, 35, 59, 25, 42, 30, 18, 42, 11, 30, 35, 59)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> tuple[World, list[tuple[int, ...]]]:
    """The tiny world, and the (rows, tokens, scored) of each forward of its target."""
    world, calls = tiny_world(), []
    inner = world.target.forward

    def forward(block: Block, store: Any, **options: Any) -> Any:
        out = inner(block, store, **options)
        calls.append((*block.shape, out.logits.shape[1]))
        return out

    monkeypatch.setattr(world.target, "forward", forward)
    return world, calls


def tokens_of(world: World, name: str, cases: list[Case], **limits: Any) -> list[list[int]]:
    running = engine(world, preset(name), **limits)
    requests = [running.submit(case.prompt, case.params) for case in cases]
    drain(running)
    return [request.choices[0].token_ids for request in requests]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("name", ["plain", "pld", "token-recycling(nodes=20)", "spec-decode(structure=top-k)"])
def test_the_text_is_the_same(name: str, temperature: float, counted: tuple[World, list[Any]]) -> None:
    world, calls = counted
    case = Case.of(PROMPT, temperature=temperature, ignore_eos=True, max_tokens=12)
    wanted = plain(world, [case, case])[0].choices[0].token_ids  # two rows: the prompt is read apart
    calls.clear()
    (found,) = tokens_of(world, name, [case])
    assert found == wanted
    rows, tokens, scored = calls[0]
    assert (rows, tokens - scored) == (1, len(PROMPT) - 1)
    assert all(tokens == scored for _, tokens, scored in calls[1:])
    if name == "plain":
        assert len(calls) == 12


def test_prompts_longer_than_a_chunk(counted: tuple[World, list[Any]]) -> None:
    world, calls = counted
    case = Case.of(PROMPT, ignore_eos=True, max_tokens=4)
    wanted = plain(world, [case, case])[0].choices[0].token_ids
    calls.clear()
    assert tokens_of(world, "pld", [case], prefill_tokens=5) == [wanted]
    assert calls[:2] == [(1, 5, 0), (1, 5, 0)]
    assert calls[2][1] - calls[2][2] == 2


def test_only_a_row_that_is_alone(counted: tuple[World, list[Any]]) -> None:
    world, calls = counted
    case = Case.of(PROMPT, ignore_eos=True, max_tokens=4)
    tokens_of(world, "plain", [case, case])
    assert calls[0] == (2, len(PROMPT) - 1, 0)
    calls.clear()
    tokens_of(world, "plain", [case.with_(n=2)])
    assert calls[0] == (1, len(PROMPT) - 1, 0)


def test_parts_that_want_the_prompt_s_states_see_them(counted: tuple[World, list[Any]]) -> None:
    world, calls = counted
    running = engine(world, preset("plain"))
    seen: list[int] = []
    running.listen(lambda outcome: seen.append(outcome.hidden.shape[1]), Needs(hidden=(1,)))
    running.submit(PROMPT, Case.of(PROMPT, max_tokens=2, ignore_eos=True).params)
    drain(running)
    assert seen == [len(PROMPT) - 1, 1, 1]
    assert calls[0] == (1, len(PROMPT) - 1, 0)


def test_a_block_behind_a_prompt() -> None:
    tree = DraftTree.build([([5, 6, 7, 8], [-1, 0, 0, 1])])
    block = Block.of_tree(tree).behind([1, 2])
    assert block.tokens.tolist() == [[1, 2, 5, 6, 7, 8]]
    assert block.counts == [6]
    assert block.depth is not None
    assert block.depth.tolist() == [[0, 1, 2, 3, 3, 4]]
    assert block.ancestors is not None
    assert block.ancestors[0, 4].tolist() == [True, True, True, False, True, False]
    assert block.ancestors[0, 1].tolist() == [True, True, False, False, False, False]
    chain = Block.of_tree(DraftTree.roots([4])).behind([1, 2])
    assert chain.ancestors is None
    assert torch.equal(chain.tokens, torch.tensor([[1, 2, 4]]))
