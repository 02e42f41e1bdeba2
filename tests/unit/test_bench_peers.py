"""Peers: transformers for real, llama-cpp-python and openvino-genai as fakes with the interfaces of the real ones."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch

from outrider import LLM, SamplingParams
from outrider.bench.peers import Exports, PeerRunner, PeerSetup, list_peers, open_peers
from outrider.bench.peers.base import PROBE, prefill
from outrider.errors import ConfigError, ModelError, RequestError
from outrider.testing.tiny import tiny_folder, tiny_tokenizer
from outrider.types import Guarantee

NAMES = [
    "transformers",
    "transformers-lookup",
    "transformers-assisted",
    "llama-cpp",
    "llama-cpp-lookup",
    "openvino",
    "openvino-lookup",
    "openvino-draft",
]
TEXT = "one two three, one two three, one two"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model whose own generation settings would change the greedy text."""
    path = tiny_folder(tmp_path_factory.mktemp("target"))
    settings = json.loads((path / "generation_config.json").read_text())
    settings |= {"repetition_penalty": 1.9, "do_sample": True, "top_k": 3}
    (path / "generation_config.json").write_text(json.dumps(settings))
    return path


@pytest.fixture(scope="module")
def draft_folder(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("draft"), seed=3)


@pytest.fixture(scope="module")
def llm(folder):
    return LLM(folder, preset="plain", dtype="float64", device="cpu")


@pytest.fixture
def setup(llm, folder, draft_folder):
    return PeerSetup.of(llm, folder, draft_folder)


@pytest.fixture
def bare():
    """A setup without any model behind it."""
    return PeerSetup(None, None, tiny_tokenizer(), torch.device("cpu"), torch.float64, max_context=200)


@pytest.fixture(autouse=True)
def _none_installed(monkeypatch):
    """As if neither of the optional engines were there, until a test puts a fake in."""
    for name in ("llama_cpp", "llama_cpp.llama_speculative", "openvino_genai"):
        monkeypatch.setitem(sys.modules, name, None)


def by_name(setup):
    return {peer.name: peer for peer in list_peers(setup)}


# -- the list ---------------------------------------------------------------------------------------------------


def test_every_peer_names_an_own_plain_baseline(setup):
    peers = by_name(setup)
    assert list(peers) == NAMES
    for peer in peers.values():
        base = peers[peer.baseline]
        assert base.baseline == base.name
        assert base.library == peer.library
        assert "plain" in base.method
        assert ("plain" in peer.method) == (peer is base)
    assert {peer.baseline for peer in peers.values()} == {"transformers", "llama-cpp", "openvino"}


def test_a_choice_brings_its_baseline_and_a_wrong_name_the_nearest(setup):
    chosen = [peer.name for peer in list_peers(setup, ["transformers-lookup", "openvino"])]
    assert chosen == ["transformers", "transformers-lookup", "openvino"]
    with pytest.raises(ConfigError, match=r"unknown peer 'lama-cpp'\. Did you mean 'llama-cpp'"):
        list_peers(setup, ["lama-cpp"])


def test_what_cannot_run_says_what_is_missing(bare, tmp_path):
    ready, left_out = open_peers(list_peers(bare))
    reasons = {each.name: each.reason for each in left_out}
    assert ready == []
    assert list(reasons) == NAMES
    assert "not read from a folder" in reasons["transformers"]
    assert "pip install llama-cpp-python" in reasons["llama-cpp"]
    assert "pip install openvino-genai" in reasons["openvino-draft"]
    empty = by_name(replace(bare, folder=tmp_path))
    assert "is not a transformers model folder" in empty["transformers"].available()
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "LoRA adapter" in empty["transformers"].available()


def test_a_peer_without_its_baseline_is_left_out(setup):
    wanted = by_name(setup)["transformers-lookup"]
    ready, left_out = open_peers([wanted])
    assert ready == []
    assert "baseline 'transformers' cannot run" in left_out[0].reason


def test_prefill_is_the_first_step_less_one_of_the_others():
    assert prefill(3.0, 12.0, 10) == pytest.approx(2.0)
    assert prefill(0.5, 10.0, 5) == 0.0
    assert prefill(1.0, 1.0, 1) is None


# -- transformers -----------------------------------------------------------------------------------------------


@pytest.fixture
def opened(setup):
    ready, left_out = open_peers(peer for peer in list_peers(setup) if peer.library == "transformers")
    assert left_out == []
    yield {peer.name: peer for peer in ready}
    for peer in ready:
        peer.close()


def test_transformers_gives_the_plain_text(llm, opened):
    prompt = llm.encode(TEXT)
    wanted = llm.generate([prompt], SamplingParams(max_tokens=40, ignore_eos=True))[0]
    calls = {}
    for name, peer in opened.items():
        run = peer.generate(prompt, 40)
        assert run.token_ids == wanted.token_ids, name
        assert run.seconds_prefill is not None
        assert 0 <= run.seconds_prefill < run.seconds_total
        assert peer.version
        calls[name] = run.target_calls
        drafted = run.draft_tokens
        assert drafted == 0 if name == "transformers" else drafted >= 40 - run.target_calls
    assert calls["transformers"] == 40
    assert calls["transformers-lookup"] < 40


def test_the_settings_of_the_checkpoint_would_change_the_text(folder, llm):
    """The test above can fail: with the folder's own repetition penalty the text is another."""
    from transformers import AutoModelForCausalLM

    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    prompt = torch.tensor([llm.encode(TEXT)])
    found = hf.generate(prompt, max_new_tokens=40, do_sample=False)[0, prompt.shape[1] :].tolist()
    wanted = llm.generate([llm.encode(TEXT)], SamplingParams(max_tokens=40, ignore_eos=True))[0]
    assert found != wanted.token_ids


def test_stop_tokens_end_the_text_and_are_in_it(llm, opened):
    prompt = llm.encode(TEXT)
    whole = opened["transformers"].generate(prompt, 20).token_ids
    last = whole[7]
    for peer in opened.values():
        assert peer.generate(prompt, 20, {last}).token_ids == whole[: whole.index(last) + 1]


def test_weights_are_apart_from_ours_shared_and_let_go(llm, opened):
    plain, lookup = opened["transformers"], opened["transformers-lookup"]
    theirs = plain._weights.model
    assert theirs is lookup._weights.model
    assert theirs is not llm.language_model.hf
    assert theirs.config._attn_implementation == "sdpa"
    assert theirs.dtype == llm.language_model.dtype
    for peer in opened.values():
        peer.close()
    assert plain._weights._model is None
    for peer in opened.values():
        peer.open()
    assert plain._weights._model is not None


def test_vocabularies_that_differ_are_refused(setup, draft_folder, tmp_path):
    other = tiny_folder(tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"vocab_size": 300}))
    peer = by_name(replace(setup, draft_folder=other))["transformers-assisted"]
    assert "different vocabularies (262 and 300 tokens)" in peer.available()
    assert "--draft-model" in by_name(replace(setup, draft_folder=None))["transformers-assisted"].available()


def test_a_damaged_folder_is_left_out_with_the_reason(setup, folder, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in folder.iterdir():
        (broken / file.name).write_bytes(file.read_bytes()[: 900 if file.suffix == ".safetensors" else None])
    _, left_out = open_peers(list_peers(replace(setup, folder=broken), ["transformers-lookup"]))
    assert [each.name for each in left_out] == ["transformers", "transformers-lookup"]
    assert "model.safetensors' is damaged or incomplete" in left_out[0].reason
    assert "baseline" in left_out[1].reason


def test_a_program_that_cannot_start_is_left_out(llama, monkeypatch):
    def fail(self, **_):
        raise OSError("libgomp.so.1: cannot open shared object file")

    with monkeypatch.context() as patch:
        patch.setattr(FakeLlama, "__init__", fail)
        ready, left_out = open_peers(list_peers(llama, ["llama-cpp-lookup"]))
    assert ready == []
    assert "libgomp.so.1" in left_out[0].reason
    monkeypatch.delattr(sys.modules["llama_cpp"], "Llama")  # a release with another interface
    _, left_out = open_peers(list_peers(llama, ["llama-cpp"]))
    assert left_out[0].reason == "AttributeError: module 'llama_cpp' has no attribute 'Llama'"


def test_what_transformers_refuses_is_a_request_error(opened):
    peer = opened["transformers"]
    with pytest.raises(RequestError, match="transformers failed"):
        peer.generate([1, 2, 999_999], 4)
    assert not peer._weights.model._forward_hooks, "the hook stayed on"


# -- the runner -------------------------------------------------------------------------------------------------


def test_runner_speaks_the_language_of_the_harness(llm, opened):
    runner = PeerRunner(opened["transformers-lookup"], llm.tokenizer, llm.engine.stop_tokens)
    params = SamplingParams(max_tokens=30, ignore_eos=True)
    answer = runner.answer(llm.encode(TEXT), params)
    wanted = llm.generate([llm.encode(TEXT)], params)[0]
    assert answer.token_ids == wanted.token_ids
    assert answer.text == wanted.text
    assert answer.finish_reason == wanted.finish_reason == "length"
    assert set(answer.seconds) == {"prefill", "target"}
    assert answer.prefill_measured
    assert answer.accepted_tokens == 30 - answer.target_calls
    assert runner.guarantee is Guarantee.EXACT


def test_runner_ends_where_we_end(llm, opened):
    prompt = llm.encode(TEXT)
    token = opened["transformers"].generate(prompt, 9).token_ids[5]
    answer = PeerRunner(opened["transformers"], llm.tokenizer, {token}).answer(prompt, SamplingParams(max_tokens=30))
    wanted = llm.generate([prompt], SamplingParams(max_tokens=30, ignore_eos=True, stop_token_ids=[token]))[0]
    assert answer.finish_reason == "stop"
    assert answer.token_ids == wanted.token_ids


@pytest.mark.parametrize(
    "asked", [{"temperature": 0.7}, {"repetition_penalty": 1.2}, {"stop": ["x"]}, {"min_tokens": 2}]
)
def test_runner_refuses_what_a_peer_would_ignore(llm, opened, asked):
    runner = PeerRunner(opened["transformers"], llm.tokenizer, ())
    with pytest.raises(RequestError, match=f"temperature 0 only, not with {next(iter(asked))}"):
        runner.answer([1, 2, 3], SamplingParams(max_tokens=4, **asked))


# -- llama-cpp-python -------------------------------------------------------------------------------------------


class FakeLlama:
    """Counts up by one modulo 50 from the last token; ``generate`` and ``eval`` as in llama-cpp-python 0.3."""

    made: ClassVar[list] = []
    gpu = False
    broken = False

    def __init__(self, model_path, *, n_ctx, n_threads, n_threads_batch, n_gpu_layers, verbose, **more):
        if self.broken:
            raise ValueError("Failed to load model from file")
        self.options = {"n_ctx": n_ctx, "n_threads": n_threads, "n_gpu_layers": n_gpu_layers, **more}
        self.metadata = {"general.file_type": "3"}
        self.draft_model, self.resets, self.closed, self.n_tokens = more.get("draft_model"), 0, False, 0
        FakeLlama.made.append(self)

    def tokenize(self, text, add_bos, special):
        assert not add_bos
        assert not special
        return tiny_tokenizer().encode(text.decode(), add_special_tokens=False)

    def reset(self):
        self.resets, self.n_tokens = self.resets + 1, 0

    def eval(self, tokens):
        self.n_tokens += len(tokens)

    def close(self):
        self.closed = True

    def generate(self, tokens, temp, top_k, repeat_penalty):
        assert (temp, top_k, repeat_penalty) == (0.0, 1, 1.0)
        assert self.n_tokens == 0, "the cache of the last answer is still there"
        last, batch, emit = tokens[-1], list(tokens), 1
        while True:
            if last == 13:
                raise RuntimeError("llama_decode returned 1")
            self.eval(batch)
            for _ in range(emit):
                last = (last + 1) % 50
                yield last
            batch = [last] if self.draft_model is None else [last, (last + 1) % 50, (last + 2) % 50]
            emit = len(batch)


@pytest.fixture
def llama(monkeypatch, bare, tmp_path):
    """llama-cpp-python is installed, and a GGUF file at hand."""
    module, speculative = ModuleType("llama_cpp"), ModuleType("llama_cpp.llama_speculative")
    module.Llama, module.llama_supports_gpu_offload = FakeLlama, lambda: FakeLlama.gpu
    speculative.LlamaPromptLookupDecoding = lambda num_pred_tokens: ("lookup", num_pred_tokens)
    module.llama_speculative = speculative
    monkeypatch.setitem(sys.modules, "llama_cpp", module)
    monkeypatch.setitem(sys.modules, "llama_cpp.llama_speculative", speculative)
    monkeypatch.setattr(FakeLlama, "made", [])
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    return replace(bare, exports=Exports(gguf=tmp_path / "tiny.gguf"))


def test_llama_generates_on_tokens_and_counts_calls(llama):
    ready, left_out = open_peers(list_peers(llama, ["llama-cpp-lookup"]))
    assert [peer.name for peer in ready] == ["llama-cpp", "llama-cpp-lookup"]
    assert left_out == []
    plain, lookup = ready
    for _ in range(2):
        run = plain.generate([20, 21, 22], 6, stop={27})
        assert run.token_ids == [23, 24, 25, 26, 27]
        assert (run.target_calls, run.draft_tokens) == (5, 0)
    run = lookup.generate([20, 21, 22], 7)
    assert run.token_ids == [23, 24, 25, 26, 27, 28, 29]
    assert (run.target_calls, run.draft_tokens) == (3, 4)
    first, second = FakeLlama.made
    assert first.resets == 2
    assert first.options["n_threads"] == torch.get_num_threads()
    assert second.options["draft_model"] == ("lookup", 10)
    runner = PeerRunner(plain, llama.tokenizer, ())
    assert runner.guarantee is Guarantee.RELAXED, "other numerics must not be called wrong"
    plain.close()
    assert first.closed
    assert not second.closed
    assert "'tiny.gguf' (Q4_1)" in plain.notes[0], "reports are written when the weights are gone"


def test_llama_refuses_what_cannot_work(llama, monkeypatch):
    (peer,), _ = open_peers(list_peers(llama, ["llama-cpp"]))
    with pytest.raises(RequestError, match="150 prompt tokens and 51 new ones do not fit its context of 200"):
        peer.generate([1] * 150, 51)
    with pytest.raises(RequestError, match="llama_decode returned 1"):
        peer.generate([10], 8)
    assert peer.generate([30], 1).seconds_prefill is None
    assert peer.generate([40], 2).token_ids == [41, 42], "the watch of a failed answer stayed on"
    on_gpu = by_name(replace(llama, device=torch.device("cuda")))["llama-cpp"]
    with pytest.raises(ConfigError, match="built without an accelerator"):
        on_gpu.open()
    monkeypatch.setattr(FakeLlama, "gpu", True)
    on_gpu.open()
    assert FakeLlama.made[-1].options["n_gpu_layers"] == -1
    monkeypatch.setattr(FakeLlama, "tokenize", lambda self, text, add_bos, special: [1, 2, 3])
    with pytest.raises(ConfigError, match="has other tokens than the model"):
        peer.open()
    monkeypatch.setattr(FakeLlama, "broken", True)
    with pytest.raises(ModelError, match=r"cannot read .*tiny\.gguf.*Failed to load"):
        peer.open()


def test_llama_without_its_file(llama, tmp_path):
    assert "no GGUF file" in by_name(replace(llama, exports=Exports()))["llama-cpp"].available()
    gone = replace(llama, exports=Exports(gguf=tmp_path / "gone.gguf"))
    assert "does not exist" in by_name(gone)["llama-cpp"].available()


# -- openvino-genai ---------------------------------------------------------------------------------------------


class FakePipeline:
    """Counts up like the fake above, as ``openvino_genai.LLMPipeline`` does it: tensors in, encoded results out."""

    made: ClassVar[list] = []
    other = False

    def __init__(self, path, device, **options):
        assert device == "CPU"
        if "broken" in path:
            raise RuntimeError("Exception from src/core.cpp:84:\nCheck failed:\nCould not open the file\n")
        self.path, self.options = path, options
        FakePipeline.made.append(self)

    def get_tokenizer(self):
        def encode(text, add_special_tokens):
            assert not add_special_tokens
            ids = tiny_tokenizer().encode(text, add_special_tokens=False)
            return SimpleNamespace(input_ids=SimpleNamespace(data=np.array([ids[1:] if self.other else ids])))

        return SimpleNamespace(encode=encode)

    def generate(self, tensor, config):
        last = int(tensor.data[0, -1])
        if last == 13:
            raise RuntimeError("Exception from here:\nout of memory\n")
        tokens = []
        while len(tokens) < config.max_new_tokens and not (tokens and tokens[-1] in config.stop_token_ids):
            last = (last + 1) % 50
            tokens.append(last)
        assert config.ignore_eos == (not config.stop_token_ids)
        width = 1 + getattr(config, "num_assistant_tokens", 0)
        calls = [1] + [width] * -(-(len(tokens) - 1) // width)
        raw = SimpleNamespace(m_times_to_first_token=[1.0], m_batch_sizes=calls)
        return SimpleNamespace(tokens=[tokens], perf_metrics=SimpleNamespace(raw_metrics=raw))


@pytest.fixture
def genai(monkeypatch, bare, tmp_path):
    """openvino-genai is installed, and an export of the model and of a draft model at hand."""
    module, core = ModuleType("openvino_genai"), ModuleType("openvino")
    module.LLMPipeline, module.SchedulerConfig, module.GenerationConfig = FakePipeline, dict, SimpleNamespace
    module.draft_model = lambda path, device, **options: ("draft", path, device)
    core.Tensor = lambda array: SimpleNamespace(data=array)
    monkeypatch.setitem(sys.modules, "openvino_genai", module)
    monkeypatch.setitem(sys.modules, "openvino", core)
    monkeypatch.setattr(FakePipeline, "made", [])
    for name in ("target", "draft"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "openvino_model.xml").write_text("<net/>")
    return replace(bare, exports=Exports(openvino=tmp_path / "target", openvino_draft=tmp_path / "draft"))


def test_openvino_generates_on_tokens(genai):
    ready, left_out = open_peers(peer for peer in list_peers(genai) if peer.library == "openvino-genai")
    assert [peer.name for peer in ready] == ["openvino", "openvino-lookup", "openvino-draft"]
    assert left_out == []
    runs = [peer.generate([5, 6], 13, stop={30}) for peer in ready]
    assert [run.token_ids for run in runs] == [list(range(7, 20))] * 3
    assert [run.target_calls for run in runs] == [13, 3, 3]
    assert ready[0].generate([5, 6], 13, stop={9}).token_ids == [7, 8, 9]
    assert ready[0].generate([5, 6], 2).token_ids == [7, 8]
    assert all(made.options["INFERENCE_NUM_THREADS"] == torch.get_num_threads() for made in FakePipeline.made)
    assert FakePipeline.made[1].options["prompt_lookup"] is True
    assert FakePipeline.made[2].options["draft_model"][0] == "draft"
    assert PeerRunner(ready[0], genai.tokenizer, ()).guarantee is Guarantee.RELAXED
    assert "'target'" in ready[0].notes[0]
    with pytest.raises(RequestError, match=r"openvino failed\. out of memory"):
        ready[0].generate([13], 4)


def test_openvino_reads_a_gguf_file_where_there_is_no_export(genai, tmp_path):
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    peers = by_name(replace(genai, exports=Exports(gguf=tmp_path / "tiny.gguf")))
    assert peers["openvino"].available() is None
    peers["openvino"].open()
    assert FakePipeline.made[-1].path.endswith("tiny.gguf")
    assert "no OpenVINO export of the draft model" in peers["openvino-draft"].available()


def test_openvino_refuses_what_cannot_work(genai, tmp_path, monkeypatch):
    peers = by_name(replace(genai, exports=Exports()))
    assert "no OpenVINO export of the model" in peers["openvino"].available()
    assert (
        "holds no openvino_model.xml"
        in by_name(replace(genai, exports=Exports(openvino=tmp_path)))["openvino"].available()
    )
    assert "runs on the CPU" in by_name(replace(genai, device=torch.device("cuda")))["openvino"].available()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "openvino_model.xml").write_text("")
    with pytest.raises(ModelError, match=r"cannot read .*broken.*Could not open the file"):
        by_name(replace(genai, exports=Exports(openvino=broken)))["openvino"].open()
    monkeypatch.setattr(FakePipeline, "other", True)
    with pytest.raises(ConfigError, match="has other tokens than the model"):
        by_name(genai)["openvino"].open()


def test_exports_are_found_in_the_models_own_folders(llm, folder, tmp_path):
    assert PeerSetup.of(llm, folder).exports == Exports()
    (tmp_path / "openvino_model.xml").write_text("")
    (tmp_path / "one.gguf").write_bytes(b"")
    found = PeerSetup.of(llm, tmp_path, tmp_path).exports
    assert found == Exports(tmp_path / "one.gguf", tmp_path, tmp_path)
    (tmp_path / "two.gguf").write_bytes(b"")
    assert PeerSetup.of(llm, tmp_path).exports.gguf is None, "of two files neither is the model's"
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    for record in ("{", "[]", '{"source": 3}', '{"source": "hub:a/b"}', '{"source": "/gone.gguf"}'):
        (unpacked / "outrider.json").write_text(record)
        assert PeerSetup.of(llm, unpacked).exports.gguf is None
    (unpacked / "outrider.json").write_text(json.dumps({"source": str(tmp_path / "one.gguf")}))
    assert PeerSetup.of(llm, unpacked).exports.gguf == tmp_path / "one.gguf"
    given = Exports(gguf=tmp_path / "two.gguf")
    assert PeerSetup.of(llm, tmp_path, exports=given).exports.gguf == tmp_path / "two.gguf"


def test_the_probe_tells_tokenizers_apart():
    ids = tiny_tokenizer().encode(PROBE, add_special_tokens=False)
    assert len(ids) == len(PROBE)
