"""The public face: prompts of every form, options that do not exist, answers that are asked for badly."""

from __future__ import annotations

from functools import lru_cache

import pytest

from outrider import LLM, ConfigError, RequestError, SamplingParams
from outrider.testing.world import tiny_world


@lru_cache(maxsize=1)
def llm() -> LLM:
    world = tiny_world()
    return LLM(world.target, preset="sam", tokenizer=world.tokenizer)


def test_prompts_of_every_form_give_one_output_each() -> None:
    params = SamplingParams(max_tokens=4, ignore_eos=True)
    ids = [1, 2, 3]
    assert len(llm().generate("123", params)) == 1
    assert len(llm().generate(["123", "45", "6"], params)) == 3
    assert len(llm().generate(ids, params)) == 1
    assert len(llm().generate([ids, [4, 5]], params)) == 2
    assert llm().generate("123", params)[0].token_ids == llm().generate(ids, params)[0].token_ids


def test_stream_gives_the_text_of_generate_in_pieces() -> None:
    params = SamplingParams(max_tokens=20, ignore_eos=True)
    events = list(llm().stream("123", params))
    whole = llm().generate("123", params)[0]
    assert "".join(event.text for event in events) == whole.text
    assert [token for event in events for token in event.token_ids] == whole.token_ids
    assert events[-1].finish_reason == "length"
    assert events[-1].stats is not None


def test_closing_a_stream_cancels_it() -> None:
    stream = llm().stream("123", SamplingParams(max_tokens=50, ignore_eos=True))
    next(stream)
    stream.close()
    assert llm().engine.idle


def test_an_option_that_does_not_exist_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no option 'devise'.*'device'"):
        LLM(tiny_world().target, devise="cpu")


def test_one_bad_prompt_stops_the_batch_before_it_runs() -> None:
    with pytest.raises(RequestError, match="outside the vocabulary"):
        llm().generate([[1, 2], [999]], SamplingParams(max_tokens=2))
    assert llm().engine.idle


def test_messages_need_a_chat_template() -> None:
    with pytest.raises(RequestError, match="chat template"):
        llm().chat("hello")


def test_parameters_must_fit_the_prompts() -> None:
    with pytest.raises(RequestError, match="2 sampling parameters for 1 prompts"):
        llm().generate("1", [SamplingParams(), SamplingParams()])
