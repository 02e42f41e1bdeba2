"""What cannot work is refused by name, before anything runs, with the remedy in the message."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from outrider import (
    LLM,
    ConfigError,
    Engine,
    IncompatibleParts,
    Parts,
    RequestError,
    SamplingParams,
    list_presets,
    preset,
)
from outrider.draft.model import DraftModel
from outrider.policy.fixed import Fixed
from outrider.testing.decode import Case, drain, engine, plain
from outrider.testing.world import World, table_world, tiny_llama, tiny_world
from outrider.tree.grow import Template, TopK
from outrider.tree.static import StaticTree
from outrider.verify.base import Verifier
from outrider.verify.match import Match
from outrider.verify.rejection import ChainRejection

PAIR = StaticTree.from_paths([[0], [1]])


class NoBranches(type(table_world().target)):  # type: ignore[misc]
    """A target whose state belongs to one path."""

    branching = False


def parts_of(structure: object, verifier: Verifier) -> Parts:
    return Parts(drafter=DraftModel(structure), policy=Fixed(2, 4, 2), verifier=verifier)  # type: ignore[arg-type]


class MixedOnly(Match):
    """A rule for chains of points only."""

    kinds = preset("pld").drafter.kinds  # type: ignore[union-attr]


BUILDS: list[tuple[Callable[[], object], type[ConfigError], str]] = [
    (lambda: parts_of(Template(PAIR, "sample"), ChainRejection()), IncompatibleParts, "branch.*Match or Recursive"),
    (lambda: parts_of(TopK(), ChainRejection()), IncompatibleParts, "branch.*Match or Recursive"),
    (lambda: parts_of(Template(PAIR, "sample"), MixedOnly()), IncompatibleParts, "without_replacement.*Match"),
    (lambda: preset("pld|plain"), IncompatibleParts, "plain.*Leave 'plain' out"),
    (lambda: preset("plain+sam"), IncompatibleParts, "plain.*Leave 'plain' out"),
    (lambda: preset("smm"), ConfigError, "smm.*Did you mean 'sam'"),
    (lambda: preset("token-recyclng"), ConfigError, "Did you mean 'token-recycling'"),
    (lambda: preset("pld(dept=3)"), ConfigError, "dept.*Did you mean 'depth'"),
    (lambda: preset("pld", max_gram=3), ConfigError, "max_gram.*Did you mean '(max|min)_ngram'"),
    (lambda: preset("pld|sam", depth=3), ConfigError, "depth.*Write it inside"),
    (lambda: preset("pld(depth=)"), ConfigError, r"name\(setting=value"),
    (lambda: preset("pld||sam"), ConfigError, "Write name"),
    (lambda: Engine(table_world().target, preset("spec-decode")), ConfigError, "second model.*draft_model"),
    (lambda: Engine(NoBranches(4), preset("token-recycling")), IncompatibleParts, "recurrent.*'pld' or 'sam'"),
    (lambda: Engine(NoBranches(4), preset("sam+pld")), IncompatibleParts, "recurrent.*'pld' or 'sam'"),
]


@pytest.mark.parametrize(("build", "error", "words"), BUILDS, ids=[str(i) for i in range(len(BUILDS))])
def test_parts_that_cannot_work(build: Callable[[], object], error: type[ConfigError], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        build()
    assert caught.value.hint


def test_a_chain_rule_on_a_store_without_branches_is_fine() -> None:
    Engine(NoBranches(4), preset("pld"))


def test_names_in_any_spelling_that_is_documented() -> None:
    assert preset("ngram").name == "pld"
    assert preset("spec-decode", num_speculative_tokens=7).policy.plan([]).depth == 7
    assert len(list_presets()) >= 6


REQUESTS: list[tuple[dict[str, object], str]] = [
    ({"logit_bias": {61: 1.0}}, "logit_bias.*61.*0 to 60"),
    ({"stop_token_ids": [99]}, "stop_token_ids.*99"),
    ({"bad_words": [[1, 99]]}, "bad_words.*99"),
    ({"logits_processors": [3]}, "logits_processors"),
    ({"n": 9}, "n=9.*max_rows"),
]


@pytest.mark.parametrize(("params", "words"), REQUESTS, ids=[str(next(iter(p))) for p, _ in REQUESTS])
def test_a_bad_request_is_refused_and_the_others_go_on(params: dict[str, object], words: str) -> None:
    """Refused when it is submitted: in the middle of a step it would be everybody's error."""
    world = tiny_world()
    good = Case.of([5, 6, 5, 6], temperature=0.7, max_tokens=6)
    running = engine(world, preset("sam"))
    first = running.submit(good.prompt, good.params)
    running.step()
    with pytest.raises(RequestError, match=words):
        running.submit([1, 2], SamplingParams(**params))  # type: ignore[arg-type]
    second = running.submit(good.prompt, good.params)
    drain(running)
    right = plain(world, [good])[0].choices[0].token_ids
    assert first.choices[0].token_ids == second.choices[0].token_ids == right


@pytest.mark.parametrize("params", [{"stop": "x"}, {"bad_words": ["x"]}], ids=["stop", "bad_words"])
def test_text_without_a_tokenizer(params: dict[str, object]) -> None:
    bare = World(tiny_world().target, tiny_world().draft)
    with pytest.raises(RequestError, match="tokenizer"):
        engine(bare, preset("plain")).submit([1], SamplingParams(**params))  # type: ignore[arg-type]


def test_a_request_cancelled_while_it_waits_is_finished() -> None:
    running = engine(tiny_world(), preset("sam"), max_rows=1)
    running.submit([1, 2], SamplingParams(max_tokens=3))
    waiting = running.submit([1, 2], SamplingParams(n=1))
    running.step()
    running.cancel(waiting)
    assert waiting.finished
    assert [choice.finish_reason for choice in waiting.choices] == ["cancelled"]
    drain(running)


def test_an_empty_prompt_starts_from_the_begin_of_text_token_or_is_refused() -> None:
    llm = LLM(tiny_world().target, preset="sam")
    (out,) = llm.generate([[]], SamplingParams(max_tokens=4))
    assert out.prompt_token_ids == [tiny_llama().config.bos_token_id]
    with pytest.raises(RequestError, match=r"empty.*begin-of-text"):
        LLM(table_world().target, preset="sam").generate([[]])


def dead(tokens: list[int], logits: torch.Tensor) -> torch.Tensor:
    """Forbids everything once the text is five tokens long."""
    return torch.full_like(logits, -torch.inf) if len(tokens) >= 5 else logits


@pytest.mark.parametrize("name", list_presets())
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_dead_end_is_one_request_s_error(name: str, temperature: float) -> None:
    world = tiny_world()
    good = Case.of([5, 6, 5, 6], temperature=0.0, max_tokens=8)
    running = engine(world, preset(name))
    doomed = running.submit(
        [5, 6], SamplingParams(temperature=temperature, seed=1, logits_processors=[dead], ignore_eos=True)
    )
    healthy = running.submit(good.prompt, good.params)
    drain(running)
    (choice,) = doomed.choices
    assert choice.finish_reason == "error"
    assert len(choice.token_ids) == 3
    assert "No token can follow after 3 new tokens" in str(choice.error)
    assert healthy.choices[0].token_ids == plain(world, [good])[0].choices[0].token_ids
