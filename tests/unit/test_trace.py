"""Traces: what is written is what is read, and what is no trace says so."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import save_file

import outrider.explain.trace as module
from outrider.errors import ConfigError, IncompatibleParts
from outrider.explain import Explainer
from outrider.explain.trace import KEY, Trace, TraceRecorder
from outrider.explain.watch import Labels
from outrider.params import SamplingParams
from outrider.registry import preset
from outrider.testing.decode import engine
from outrider.testing.world import Rising, table_world, tiny_world

PROMPT = (3, 9) * 9


def record(spec="pld", world=None, prompt=PROMPT, **params):
    """A trace, and the request it is of."""
    running = engine(world or tiny_world(), preset(spec), max_rows=1)
    explainer = Explainer(running, Labels("tiny", spec))
    asked = SamplingParams(**{"seed": 1, "max_tokens": 16, "ignore_eos": True} | params)
    recorder = TraceRecorder(running, asked)
    request = running.submit(prompt, asked)
    while not request.finished:
        running.step()
    return recorder.trace(explainer.result(request), explainer.texts), request


@pytest.fixture(scope="module")
def trace():
    return record(temperature=0.7)[0]


@pytest.fixture
def saved(trace, tmp_path):
    path = tmp_path / "one.trace"
    trace.save(path)
    return path


def test_a_trace_comes_back_as_it_was(tmp_path):
    bias = {5: -math.inf, 7: 0.25}
    trace, request = record(temperature=0.7, logit_bias=bias, bad_words=[[4, 4], [20]], top_p=0.9, min_tokens=3)
    path = tmp_path / "one.trace"
    trace.save(path)
    read = Trace.load(path)
    written = json.loads(json.dumps(trace.header.model_dump()))
    assert json.loads(json.dumps(read.header.model_dump())) == written
    assert (read.prompt, read.tokens) == (PROMPT, tuple(request.choices[0].token_ids))
    assert torch.equal(read.logits, trace.logits)
    assert read.logits.dtype == torch.float64
    params = read.params
    assert (params.temperature, params.seed, params.top_p, params.min_tokens) == (0.7, 1, 0.9, 3)
    assert params.logit_bias == bias
    assert params.bad_words == ((4, 4), (20,))
    assert sum(read.header.calls) == 16
    assert "".join(read.header.pieces) == request.choices[0].text == read.header.text
    assert [path.name for path in tmp_path.iterdir()] == ["one.trace"]


def test_the_rows_are_what_the_model_said():
    """In a table world: row i is the law after the prompt and i tokens, whatever was drafted."""
    world = table_world(vocab=6, seed=3)
    for spec in ("plain", "pld", "spec-decode(structure=top-k,depth=3,nodes=6)"):
        trace, _ = record(spec, world, (1, 2, 3), max_tokens=20, temperature=0.8)
        for i in range(20):
            law = world.target.law((*trace.prompt, *trace.tokens[:i]))
            assert torch.allclose(trace.logits[i].softmax(-1), law)


def test_nothing_was_decoded_yet(tmp_path):
    running = engine(tiny_world(), preset("pld"), max_rows=1)
    explainer = Explainer(running, Labels("tiny", "pld"))
    params = SamplingParams(max_tokens=4)
    recorder = TraceRecorder(running, params)
    request = running.submit(PROMPT, params)
    trace = recorder.trace(explainer.result(request, "cancelled"), explainer.texts)
    trace.save(tmp_path / "none.trace")
    read = Trace.load(tmp_path / "none.trace")
    assert (read.tokens, read.header.finish_reason, tuple(read.logits.shape)) == ((), "cancelled", (0, 61))


def test_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere.* cannot be read: No such file"):
        Trace.load(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="cannot be read"):
        Trace.load(tmp_path)


def test_a_foreign_file(tmp_path):
    path = tmp_path / "other"
    for content in (b"", b"{}", b"PK\x03\x04 something", bytes(range(256)) * 50):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="is not a trace of outrider"):
            Trace.load(path)
    save_file({"weight": torch.ones(3)}, path)
    with pytest.raises(ConfigError, match="is not a trace of outrider"):
        Trace.load(path)


def test_a_truncated_file(saved):
    content = saved.read_bytes()
    for length in (len(content) - 1, len(content) // 2, 300):
        saved.write_bytes(content[:length])
        with pytest.raises(ConfigError, match="damaged or cut off"):
            Trace.load(saved)


def test_another_version(saved):
    saved.write_bytes(saved.read_bytes().replace(b'\\"version\\": 1', b'\\"version\\": 7'))
    with pytest.raises(ConfigError, match="has version 7, and this outrider reads version 1"):
        Trace.load(saved)


def rewritten(trace, path, header=None, **tensors):
    """The same trace with parts of it replaced."""
    parts = {"prompt": torch.tensor(trace.prompt), "tokens": torch.tensor(trace.tokens), "logits": trace.logits}
    values = json.loads(json.dumps(trace.header.model_dump())) | (header or {})
    save_file(parts | tensors, path, {KEY: json.dumps(values)})
    return path


@pytest.mark.parametrize(
    ("header", "tensors", "words"),
    [
        ({"vocab_size": 5}, {}, "tokens outside the vocabulary of 5"),
        ({"vocab_size": "x"}, {}, "vocab_size"),
        ({"surprise": 1}, {}, "surprise"),
        ({"calls": [1, 2]}, {}, "calls that gave 3 tokens, but 16 tokens"),
        ({"pieces": []}, {}, "0 pieces of text for 16 tokens"),
        ({"params": {"temperature": -1}}, {}, "wrong sampling parameters.*temperature"),
        ({"params": {"temprature": 1}}, {}, "temprature"),
        ({}, {"tokens": torch.tensor([1, 2])}, "2 tokens of 61 with logits of shape"),
        ({}, {"prompt": torch.tensor([], dtype=torch.int64)}, "no prompt"),
        ({}, {"prompt": torch.tensor([-4])}, "outside the vocabulary"),
        ({}, {"logits": torch.ones(16, 60)}, r"16 tokens of 61 with logits of shape \(16, 60\)"),
        ({}, {"logits": torch.ones(16, 61, dtype=torch.int64)}, "logits"),
    ],
)
def test_what_does_not_fit_together(trace, tmp_path, header, tensors, words):
    with pytest.raises(ConfigError, match=words):
        Trace.load(rewritten(trace, tmp_path / "bad.trace", header, **tensors))


def test_a_header_that_is_no_json(trace, tmp_path):
    path = tmp_path / "bad.trace"
    save_file({"logits": trace.logits}, path, {KEY: "{"})
    with pytest.raises(ConfigError, match="header that cannot be read"):
        Trace.load(path)


def test_a_tensor_that_is_not_there(trace, tmp_path):
    path = tmp_path / "bad.trace"
    save_file({"logits": trace.logits}, path, {KEY: json.dumps(trace.header.model_dump())})
    with pytest.raises(ConfigError, match="damaged or cut off"):
        Trace.load(path)


def test_a_place_that_cannot_be_written(trace, tmp_path):
    with pytest.raises(ConfigError, match="cannot be written"):
        trace.save(tmp_path / "nowhere" / "one.trace")


def test_what_cannot_be_replayed_is_not_recorded():
    world = tiny_world()
    cases = [
        ("spec-decode", {"temperature": 0.5}, "ChainRejection flips coins"),
        ("pld", {"logits_processors": [Rising]}, "logits_processors"),
        ("pld", {"n": 2}, "n=2"),
    ]
    for spec, params, words in cases:
        with pytest.raises(IncompatibleParts, match=words):
            TraceRecorder(engine(world, preset(spec)), SamplingParams(**params))
    parts = preset("pld").with_(law=lambda logits, tree: logits)
    with pytest.raises(IncompatibleParts, match="a law of its own"):
        TraceRecorder(engine(world, parts), SamplingParams())


def test_a_trace_that_would_be_too_large(monkeypatch):
    monkeypatch.setattr(module, "MOST_BYTES", 10 * 61 * 8)
    running = engine(tiny_world(), preset("pld"))
    TraceRecorder(running, SamplingParams(max_tokens=10))
    with pytest.raises(ConfigError, match="--max-tokens 10 or less"):
        TraceRecorder(running, SamplingParams(max_tokens=11))
