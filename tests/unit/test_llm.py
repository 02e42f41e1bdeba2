"""The public face: prompts of every form, options that do not exist, answers that are asked for badly."""

from __future__ import annotations

from functools import lru_cache

import pytest
from torch import Tensor

from outrider import LLM, ConfigError, Limits, RequestError, RowProcessor, SamplingParams, preset
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


def test_streams_that_interleave_lose_nothing() -> None:
    params = SamplingParams(max_tokens=12, ignore_eos=True)
    wanted = [out.token_ids for out in llm().generate([[1, 2, 3], [4, 5]], params)]
    first, second = llm().stream([1, 2, 3], params), llm().stream([4, 5], params)
    found: list[list[int]] = [[], []]
    running = [True, True]
    while any(running):
        for i, stream in enumerate((first, second)):
            event = next(stream, None)
            running[i] = event is not None
            found[i] += [] if event is None else event.token_ids
    assert found == wanted


def test_a_dead_end_ends_one_request_and_not_its_neighbour() -> None:
    vocab = tiny_world().vocab
    dead = SamplingParams(max_tokens=4, logprobs=1, logit_bias={token: -float("inf") for token in range(vocab)})
    fine = SamplingParams(max_tokens=4, ignore_eos=True)
    broken, whole = llm().generate([[1, 2], [3, 4]], [dead, fine])
    assert broken.finish_reason == "error"
    assert broken.choices[0].error is not None
    assert whole.token_ids == llm().generate([3, 4], fine)[0].token_ids
    with pytest.raises(RequestError, match="No token can follow"):
        llm().generate([1, 2], dead)


class Faulty(RowProcessor):
    """Raises as soon as it is told of a token."""

    def advance(self, token: int) -> None:
        raise KeyError("oops")

    def fork(self) -> Faulty:
        return self

    def mask(self, logits: Tensor) -> Tensor:
        return logits


def test_a_processor_that_fails_harms_nobody_else() -> None:
    fine = SamplingParams(max_tokens=6, temperature=1.0, seed=3, ignore_eos=True)
    faulty = SamplingParams(max_tokens=6, ignore_eos=True, logits_processors=[Faulty])
    broken, whole = llm().generate([[1, 2], [3, 4]], [faulty, fine])
    assert broken.choices[0].error is not None
    assert whole.token_ids == llm().generate([3, 4], fine)[0].token_ids


def test_a_prefill_that_fails_leaves_no_half_made_row(monkeypatch: pytest.MonkeyPatch) -> None:
    params = SamplingParams(max_tokens=6, ignore_eos=True)
    wanted = llm().generate([1, 2, 3], params)[0].token_ids
    forward = type(llm().language_model).forward

    def fail(*args: object, **kwargs: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(type(llm().language_model), "forward", fail)
    with pytest.raises(MemoryError):
        llm().generate([[1, 2, 3], [4, 5, 6]], params)
    monkeypatch.setattr(type(llm().language_model), "forward", forward)
    assert llm().engine.idle
    assert llm().generate([1, 2, 3], params)[0].token_ids == wanted


@pytest.mark.parametrize("prompt", [None, {"role": "user", "content": "x"}, [{"text": "x"}], [True, False], b"abc"])
def test_prompts_of_no_known_form_are_refused(prompt: object) -> None:
    with pytest.raises(RequestError):
        llm().generate(prompt, SamplingParams(max_tokens=2))


def test_options_for_a_loaded_model_are_refused() -> None:
    with pytest.raises(ConfigError, match="dtype was given"):
        LLM(tiny_world().target, dtype="float16")


def test_parts_serve_one_engine() -> None:
    parts = preset("sam")
    LLM(tiny_world().target, preset=parts)
    with pytest.raises(ConfigError, match="already serve"):
        LLM(tiny_world().target, preset=parts)


def test_a_context_beyond_the_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_context=9999"):
        LLM(tiny_world().target, limits=Limits(max_context=9999))
