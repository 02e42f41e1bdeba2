"""The memory plan, made without weights, equals what a loaded model really allocates."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as tf
import zoo
from test_recurrent import RECURRENT

from outrider.errors import ModelError
from outrider.model.base import Block
from outrider.model.hf import HFModel
from outrider.model.load import wrap
from outrider.model.plan import MemoryPlan, footprint, formula, plan

GIB = 1 << 30


@pytest.mark.parametrize("name", sorted(zoo.FAMILIES))
def test_weights_and_cache_of_every_family(name: str) -> None:
    config = zoo.FAMILIES[name].config()
    before = config.to_dict()
    made = plan(config, context=40, rows=2, nodes=8, dtype="float32", device="cpu")
    assert config.to_dict() == before
    hf = zoo.build(config, torch.float32)
    model = HFModel(hf)
    real = {id(t): t.numel() * t.element_size() for t in (*hf.parameters(), *hf.buffers())}
    assert made.weights == sum(real.values())
    store = model.new_store(max_rows=2, max_slots=48)
    store.add(2)
    model.forward(Block.of_lists([[1] * 48, [2] * 48]), store, logits="none")
    assert made.cache == sum(b.numel() * b.element_size() for b in store._buffers.values())


@pytest.mark.parametrize("name", ["mamba2", "bamba", "qwen3_next", "mamba"])
def test_recurrent_families(name: str) -> None:
    config = RECURRENT[name][0]()
    found = footprint(config, torch.float32)
    assert found.per_row > 0
    assert (found.per_token > 0) == (name in {"bamba", "qwen3_next"})
    model = wrap(zoo.build(config, torch.float32))
    store = model.new_store(max_rows=1, max_slots=48)
    store.add()
    model.forward(Block.of_lists([[1] * 10]), store, logits="none")
    size = 0
    for layer in store.states[0].cache.layers:  # type: ignore[attr-defined]
        for value in vars(layer).values():
            tensors = value.values() if isinstance(value, dict) else [value]
            size += sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))
    assert size == found.per_row + 10 * found.per_token


def test_tied_embeddings_count_once() -> None:
    untied = zoo.FAMILIES["llama"].config()
    tied = zoo.FAMILIES["llama"].config()
    tied.tie_word_embeddings = True
    more = footprint(untied, torch.bfloat16).weights - footprint(tied, torch.bfloat16).weights
    assert more == zoo.VOCAB * 32 * 2


def test_logits_tree_and_drafter() -> None:
    config = zoo.FAMILIES["llama"].config()
    made = plan(config, context=100, rows=3, nodes=16, draft_model=config, dtype="float32", device="cpu")
    assert made.logits == 3 * 16 * zoo.VOCAB * 8
    assert made.drafter == made.weights + made.cache
    assert made.tree > 3 * 16 * 116 * 4
    assert made.total == made.weights + made.cache + made.tree + made.logits + made.drafter
    assert plan(config, nodes=1, device="cpu").tree == 0


def test_a_model_of_usual_size_is_planned_without_weights() -> None:
    config = tf.LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
    )
    made = plan(config, context=8192, rows=1, nodes=1, dtype="bfloat16", device="cpu", available=8 * GIB)
    assert 14.9 * GIB < made.weights < 15.1 * GIB
    assert made.cache == 8193 * 32 * 2 * 8 * 128 * 2
    assert made.cache == 8193 * formula(config, torch.bfloat16)
    assert not made.fits
    assert dict(made.rows())["available"] == "8.0 GiB"
    assert plan(config, nodes=1, dtype="bfloat16", device="cpu", available=0).fits


def test_a_folder_and_a_model_object(tmp_path: Path) -> None:
    hf = zoo.build(zoo.FAMILIES["qwen2"].config(), torch.float32)
    hf.save_pretrained(tmp_path)
    from_folder = plan(str(tmp_path), context=32, dtype="float32", device="cpu", available=1)
    assert from_folder == plan(hf, context=32, device="cpu", available=1)
    assert isinstance(from_folder, MemoryPlan)
    assert from_folder.as_dict()["fits"] is False
    assert hf.config._attn_implementation != "outrider"  # planning does not touch the model


def test_a_refused_family_is_refused() -> None:
    with pytest.raises(ModelError, match="bloom"):
        plan(tf.BloomConfig(vocab_size=61, hidden_size=16, n_layer=1, n_head=2))
