"""Loading from objects, folders and adapters; every bad input gets an error that names it and the remedy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from outrider.errors import ConfigError, ModelError
from outrider.model import files
from outrider.model import load as loading
from outrider.model.base import Block
from outrider.model.load import Loaded, default_dtype, load, wrap
from outrider.types import DraftTree


def tiny(**changes: Any) -> Any:
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        **{
            "vocab_size": 61,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 64,
            **changes,
        }
    )
    model = tf.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.3)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    tiny().save_pretrained(path)
    return path


def tokens_of(model: Any, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    return model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False)[0].tolist()


def test_a_model_object_is_used_as_it_is() -> None:
    model = tiny().double()
    loaded = load(model)
    assert loaded.hf is model
    assert loaded.model.dtype == torch.float64
    assert loaded.tokenizer is None
    assert not loaded.chat_template


def test_a_folder_without_tokenizer_is_loaded_in_the_dtype_asked_for(folder: Path) -> None:
    loaded = load(folder, dtype="float64", device="cpu")
    assert isinstance(loaded, Loaded)
    assert loaded.model.dtype == torch.float64
    assert loaded.tokenizer is None
    assert tokens_of(loaded.hf, [1, 2, 3]) == tokens_of(tiny().double(), [1, 2, 3])


def test_the_default_dtype_follows_the_machine(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(loading, "_cpu_flags", lambda: {"avx2", "amx_bf16"})
    assert default_dtype("cpu") == (torch.bfloat16, "the CPU multiplies bfloat16 (amx_bf16)")
    assert load(folder, device="cpu").model.dtype == torch.bfloat16
    monkeypatch.setattr(loading, "_cpu_flags", lambda: {"avx2"})
    assert default_dtype("cpu")[0] == torch.float32
    assert load(folder, device="cpu", dtype="auto").model.dtype == torch.float32


def test_bad_dtype_and_device_name_the_nearest(folder: Path) -> None:
    with pytest.raises(ConfigError, match="'bfloat16'"):
        load(folder, dtype="bfloat15")
    with pytest.raises(ConfigError, match="device 'gpu' is unknown"):
        load(folder, device="gpu")


def test_a_truncated_file_is_named(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    file = broken / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"model\.safetensors' is damaged or incomplete"):
        load(broken)


@pytest.mark.parametrize("text", ['{"model_type": "lla', "[1, 2]"])
def test_a_damaged_configuration_is_named(folder: Path, tmp_path: Path, text: str) -> None:
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match=r"config\.json"):
        load(str(tmp_path / "model"))


def test_a_folder_without_weights_and_an_unknown_path(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(ModelError, match="has no weights"):
        load(tmp_path)
    with pytest.raises(ModelError, match="does not exist"):
        load("./no-such-folder")


def test_pickles_are_read_only_when_allowed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    torch.save(tiny().state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="allow_pickle=True"):
        load(tmp_path)
    loaded = load(tmp_path, allow_pickle=True, dtype="float32")
    assert tokens_of(loaded.hf, [1, 2]) == tokens_of(tiny(), [1, 2])


class _Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("ran-code"),))


def test_an_allowed_pickle_still_cannot_run_code(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    torch.save({"weight": _Payload()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(tmp_path, allow_pickle=True)
    assert not Path("ran-code").exists()


def test_remote_code_is_refused_unless_asked_for(folder: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    shutil.copytree(folder, foreign)
    config = json.loads((foreign / "config.json").read_text())
    config |= {"model_type": "mystery", "auto_map": {"AutoConfig": "x.C", "AutoModelForCausalLM": "x.M"}}
    (foreign / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="trust_remote_code=True"):
        load(foreign)


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "made-up"])
def test_quantised_checkpoints_name_what_is_missing(
    folder: Path, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_installed", lambda package: False)
    other = tmp_path / "quantised"
    shutil.copytree(folder, other)
    config = json.loads((other / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4}
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=method) as caught:
        load(other)
    assert "unquantised" in caught.value.hint


def test_a_refused_family_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    config = tf.BloomConfig(vocab_size=61, hidden_size=16, n_layer=1, n_head=2)
    tf.BloomForCausalLM(config).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"never read")
    with pytest.raises(ModelError, match="bloom uses ALiBi"):
        load(tmp_path)


# -- adapters ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapter(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """(folder of a LoRA adapter, the peft model it was saved from, in float64)."""
    peft = pytest.importorskip("peft")
    base = tf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    settings = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(base, settings).double().eval()
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn(weight.shape, generator=source, dtype=torch.float64) * 0.3)
    path = tmp_path_factory.mktemp("adapters") / "lora"
    model.save_pretrained(path)
    return path, model


def difference_from_peft(loaded: Loaded, model: Any) -> float:
    past = [5, 6, 7]
    rows = [([1, 2, 3, 4], [-1, 0, 0, 1])]
    store = loaded.model.new_store(1, 32)
    store.add()
    loaded.model.forward(Block.of_lists([past]), store, logits="none")
    store.extend(0, [3])
    found = loaded.model.forward(Block.of_tree(DraftTree.build(rows)), store).logits[0]
    worst = 0.0
    for node, path in enumerate(([1], [1, 2], [1, 3], [1, 2, 4])):
        with torch.no_grad():
            expected = model(input_ids=torch.tensor([past + path])).logits[0, -1]
        worst = max(worst, (expected - found[node]).abs().max().item())
    return worst


def test_an_adapter_folder_finds_its_base_and_is_merged(adapter: tuple[Path, Any]) -> None:
    path, model = adapter
    assert difference_from_peft(load(path, dtype="float64", device="cpu"), model) < 1e-5


def test_an_adapter_on_top_and_a_peft_object(adapter: tuple[Path, Any], folder: Path) -> None:
    path, model = adapter
    merged = load(folder, dtype="float64", device="cpu", adapter=path)
    assert difference_from_peft(merged, model) < 1e-5
    plain = load(folder, dtype="float64", device="cpu")
    assert difference_from_peft(plain, model) > 1e-2  # the adapter does something
    assert difference_from_peft(load(model), model) < 1e-5  # unmerged: linear layers carry the adapter


def test_a_missing_peft_names_the_extra(adapter: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_installed", lambda package: False)
    with pytest.raises(ModelError, match=r"outrider\[lora\]"):
        load(adapter[0])


def test_a_base_that_is_gone_is_named(adapter: tuple[Path, Any], tmp_path: Path) -> None:
    shutil.copytree(adapter[0], tmp_path / "lora")
    file = tmp_path / "lora" / "adapter_config.json"
    settings = json.loads(file.read_text()) | {"base_model_name_or_path": "./gone"}
    file.write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=r"base model '\./gone'"):
        load(tmp_path / "lora")


# -- the self-check ---------------------------------------------------------------------------------------


class _Deaf(tf.models.llama.modeling_llama.LlamaAttention):
    """Attention that ignores the mask it is given."""

    def forward(self, hidden_states: Any, position_embeddings: Any, attention_mask: Any = None, **kw: Any) -> Any:
        kw.pop("plan", None)
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        q = self.q_proj(hidden_states).view(shape).transpose(1, 2)
        k = self.k_proj(hidden_states).view(shape).transpose(1, 2)
        v = self.v_proj(hidden_states).view(shape).transpose(1, 2)
        cache = kw.get("past_key_values")
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return self.o_proj(out.transpose(1, 2).flatten(2)), None


def test_a_family_that_ignores_the_mask_is_refused() -> None:
    model = tiny()
    for index, layer in enumerate(model.model.layers):
        deaf = _Deaf(model.config, index)
        deaf.load_state_dict(layer.self_attn.state_dict())
        layer.self_attn = deaf
    model.config.model_type = "deaf_llama"
    before = model.config._attn_implementation
    with pytest.raises(ModelError, match="deaf_llama") as caught:
        wrap(model.eval())
    assert "differ from full forwards" in str(caught.value)
    assert "proven" in caught.value.hint
    assert model.config._attn_implementation == before


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_an_unproven_family_that_is_right_passes(dtype: torch.dtype) -> None:
    from outrider.model.check import check, tolerance

    model = tiny().to(dtype)
    model.config.model_type = "unheard_of"
    wrapped = wrap(model)
    assert wrapped.family == "unheard_of"  # type: ignore[attr-defined]
    assert check(wrapped) <= tolerance(dtype)  # type: ignore[arg-type]
