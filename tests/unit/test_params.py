"""Sampling parameters: what is accepted, what it becomes, and what an error says."""

from __future__ import annotations

import numpy as np
import pytest

from outrider.errors import RequestError
from outrider.params import ALIASES, SamplingParams


def test_defaults_are_plain_greedy() -> None:
    params = SamplingParams()
    assert params.greedy
    assert (params.max_tokens, params.n, params.seed) == (256, 1, None)


def test_values_are_put_into_one_form() -> None:
    params = SamplingParams(
        temperature=np.float32(0.5),
        top_k=-1,
        stop="\n\n",
        stop_token_ids=[np.int64(3)],
        bad_words=["no", [1, np.int64(2)]],
        logit_bias={"7": 1, 8: -np.inf},
    )
    assert params.top_k == 0
    assert type(params.temperature) is float
    assert params.stop == ("\n\n",)
    assert params.stop_token_ids == (3,)
    assert params.bad_words == ("no", (1, 2))
    assert params.logit_bias == {7: 1.0, 8: -np.inf}
    assert SamplingParams(temperature=1e-7).greedy


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("n", 0, "1 or above"),
        ("n", 1.5, "whole number"),
        ("n", True, "whole number"),
        ("max_tokens", 0, "1 or above"),
        ("max_tokens", None, "whole number"),
        ("min_tokens", -1, "0 or above"),
        ("min_tokens", 257, "max_tokens, which is 256"),
        ("temperature", -0.1, "0 or above"),
        ("temperature", float("nan"), "finite"),
        ("temperature", float("inf"), "finite"),
        ("temperature", "hot", "finite"),
        ("temperature", True, "finite"),
        ("top_k", -2, "-1 or above"),
        ("top_k", 2.0, "whole number"),
        ("top_p", 0.0, "above 0"),
        ("top_p", 1.1, "at most 1"),
        ("min_p", -0.1, "between 0"),
        ("min_p", 1.1, "and 1"),
        ("typical_p", 0, "above 0"),
        ("repetition_penalty", 0.0, "above 0"),
        ("presence_penalty", 2.1, "between -2 and 2"),
        ("frequency_penalty", -3, "between -2 and 2"),
        ("logit_bias", [1], "mapping"),
        ("logit_bias", {-1: 1.0}, "token ids"),
        ("logit_bias", {"a": 1.0}, "token ids"),
        ("logit_bias", {1: float("nan")}, "NaN"),
        ("logit_bias", {1: float("inf")}, "inf"),
        ("bad_words", "word", "list of strings"),
        ("bad_words", [""], "not empty"),
        ("bad_words", [[]], "not empty"),
        ("bad_words", [[-1]], "from 0 up"),
        ("bad_words", [3], "list of strings"),
        ("stop", [""], "none of them empty"),
        ("stop", 3, "a string or a list"),
        ("stop_token_ids", [1.5], "from 0 up"),
        ("stop_token_ids", "eos", "from 0 up"),
        ("ignore_eos", 1, "True or False"),
        ("seed", 2**63, "between"),
        ("seed", "x", "whole number"),
        ("logprobs", -1, "0 or above"),
        ("logits_processors", abs, "a list"),
    ],
)
def test_a_wrong_value_is_named(field: str, value: object, says: str) -> None:
    with pytest.raises(RequestError) as caught:
        SamplingParams(**{field: value})
    message = str(caught.value)
    assert field in message
    assert says in message
    if field != "stop_token_ids":
        assert repr(value)[:20] in message


def test_from_dict_understands_what_people_paste() -> None:
    pasted = {
        "max_new_tokens": 5,
        "num_return_sequences": 2,
        "eos_token_id": 3,
        "do_sample": True,
        "top_p": 0.9,
    }
    params = SamplingParams.from_dict(pasted)
    assert params == SamplingParams(max_tokens=5, n=2, stop_token_ids=(3,), temperature=1.0, top_p=0.9)
    assert SamplingParams.from_dict({"do_sample": False, "temperature": 0.7}).greedy
    assert SamplingParams.from_dict({"do_sample": True, "temperature": 0.7}).temperature == 0.7
    assert SamplingParams.from_dict({"seed": None, "temperature": None}) == SamplingParams()
    for name in ALIASES:
        SamplingParams.from_dict({name: None})


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"temprature": 1.0}, "Did you mean 'temperature'?"),
        ({"max_new_token": 1}, "Did you mean 'max_new_tokens'?"),
        ({"max_tokens": 3, "max_new_tokens": 4}, "given twice, as 3 and 4"),
        ({"do_sample": "no"}, "True or False"),
        ({"do_sample": True, "temperature": 0}, "contradict"),
        ({"top_p": 7}, "top_p is 7"),
    ],
)
def test_from_dict_refuses(given: dict, says: str) -> None:
    with pytest.raises(RequestError) as caught:
        SamplingParams.from_dict(given)
    assert says in str(caught.value)


def test_the_same_value_under_two_names_is_fine() -> None:
    assert SamplingParams.from_dict({"max_tokens": 4, "max_new_tokens": 4}).max_tokens == 4
