"""Recurrent and hybrid families decode chains exactly, whatever is accepted."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import transformers as tf
import zoo

from outrider.errors import CacheFull, ConfigError, IncompatibleParts, ModelError
from outrider.model.base import Block
from outrider.model.families import is_recurrent, refuse_by_name
from outrider.model.recurrent import RecurrentModel
from outrider.types import DraftTree

_MAMBA2 = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 2,
    "mamba_chunk_size": 8,
}
_SMALL = {"vocab_size": zoo.VOCAB, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 2, **zoo._EDGES}
_BASE = zoo._BASE

RECURRENT: dict[str, tuple[Any, bool]] = {  # configuration, continues with several tokens at once
    "mamba": (lambda: tf.MambaConfig(**_SMALL), False),
    "falcon_mamba": (lambda: tf.FalconMambaConfig(**_SMALL), False),
    "mamba2": (lambda: tf.Mamba2Config(**_SMALL, num_heads=8, head_dim=8, n_groups=2, chunk_size=8), True),
    "jamba": (
        lambda: tf.JambaConfig(
            **{**_BASE, "num_hidden_layers": 4},
            attn_layer_period=2,
            attn_layer_offset=1,
            num_experts=2,
            mamba_d_state=8,
            mamba_dt_rank=4,
            use_mamba_kernels=False,
        ),
        False,
    ),
    "bamba": (lambda: tf.BambaConfig(**_BASE, attn_layer_indices=[1], **_MAMBA2), True),
    "qwen3_next": (
        lambda: tf.Qwen3NextConfig(
            **{**_BASE, "num_hidden_layers": 2},
            head_dim=8,
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=16,
            shared_expert_intermediate_size=16,
            layer_types=["linear_attention", "full_attention"],
        ),
        True,
    ),
    "qwen3_5_text": (
        lambda: tf.Qwen3_5TextConfig(
            **_BASE,
            head_dim=8,
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
            layer_types=["linear_attention", "full_attention", "linear_attention"],
        ),
        True,
    ),
    "lfm2": (lambda: tf.Lfm2Config(**_BASE, layer_types=["conv", "full_attention", "conv"]), True),
    "falcon_h1": (lambda: tf.FalconH1Config(**_BASE, mamba_d_ssm=64, **_MAMBA2), True),
    "granitemoehybrid": (
        lambda: tf.GraniteMoeHybridConfig(
            **_BASE,
            layer_types=["mamba", "attention", "mamba"],
            num_local_experts=2,
            num_experts_per_tok=1,
            shared_intermediate_size=16,
            **_MAMBA2,
        ),
        True,
    ),
}
NAMES = sorted(RECURRENT)
TOLERANCE = 2e-4  # states are kept in float32 by most of them, float64 weights or not


def models(name: str) -> tuple[RecurrentModel, Any]:
    hf = zoo.build(RECURRENT[name][0]())
    reference = zoo.pristine(hf)
    return RecurrentModel(hf), reference


def test_the_families_are_here() -> None:
    assert len(NAMES) == 10
    assert all(is_recurrent(RECURRENT[name][0]()) for name in NAMES)


SLOW = {"falcon_mamba", "falcon_h1", "granitemoehybrid"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in NAMES])
def test_random_accept_lengths_over_several_rounds(name: str) -> None:
    model, reference = models(name)
    assert model.block_exact is RECURRENT[name][1]
    draw = random.Random(5)
    store = model.new_store(max_rows=4, max_slots=200)
    store.add(2)
    rows = [zoo.prompt(9, 0), zoo.prompt(14, 1)]
    model.forward(Block.of_lists([row[:6] for row in rows]), store, logits="none")  # prefill in two chunks
    store.extend(0, [6, 6])
    model.forward(Block.of_lists([row[6:] for row in rows]), store, logits="none")
    store.extend(0, [3, 8])
    for step in range(8):
        sizes = [draw.randint(1, 5) for _ in rows]
        drafts = [zoo.prompt(size, 100 * step + b) for b, size in enumerate(sizes)]
        tree = DraftTree.build([(draft, list(range(-1, len(draft) - 1))) for draft in drafts])
        if step == 3:  # a block that nobody commits leaves no trace
            model.forward(Block.of_lists([[1, 2, 3], [4, 5]]), store)
        logits = model.forward(Block.of_tree(tree), store).logits
        assert logits.shape[:2] == tree.shape
        assert zoo.worst_of(reference, tree, rows, logits) < TOLERANCE, step
        accepted = [draw.randint(1, size) if step % 4 else 1 for size in sizes]
        path = torch.arange(max(sizes)).expand(2, -1)
        store.commit(torch.where(path < torch.tensor(accepted)[:, None], path, -1), accepted)
        rows = [row + draft[:count] for row, draft, count in zip(rows, drafts, accepted, strict=True)]
        assert store.lengths == [len(row) for row in rows]


@pytest.mark.parametrize("name", ["mamba", "bamba"])
def test_fork_free_and_a_new_row(name: str) -> None:
    model, reference = models(name)
    store = model.new_store(max_rows=3, max_slots=60)
    store.add()
    rows = [zoo.prompt(7, 0)]
    model.forward(Block.of_lists(rows), store, logits="none")
    store.extend(0, [7])
    model.forward(Block.of_lists([[1, 2, 3]]), store)
    store.commit(torch.tensor([[0, 1, -1]]), [2])
    rows[0] = rows[0] + [1, 2]
    assert store.fork(0) == 1
    assert store.add() == 2
    rows += [list(rows[0]), []]
    chains = [[4, 5], [6], [7, 8, 9]]
    tree = DraftTree.build([(chain, list(range(-1, len(chain) - 1))) for chain in chains])
    assert zoo.worst_of(reference, tree, rows, model.forward(Block.of_tree(tree), store).logits) < TOLERANCE
    store.commit(torch.tensor([[0, -1], [0, -1], [0, 1]]), [1, 1, 2])
    rows = [rows[0] + [4], rows[1] + [6], rows[2] + [7, 8]]
    store.free(0)
    rows = [rows[2], rows[1]]
    assert store.lengths == [2, 10]
    tree = DraftTree.roots([3, 4])
    tree.host = [([3], [-1]), ([4], [-1])]
    assert zoo.worst_of(reference, tree, rows, model.forward(Block.of_tree(tree), store).logits) < TOLERANCE


@pytest.mark.parametrize("name", ["jamba", "qwen3_next"])
def test_captured_states(name: str) -> None:
    model, reference = models(name)
    store = model.new_store(max_rows=2, max_slots=60)
    store.add(2)
    rows = [zoo.prompt(5, 0), zoo.prompt(3, 1)]
    model.forward(Block.of_lists(rows), store, logits="none")
    store.extend(0, [5, 3])
    hidden = model.forward(Block.of_lists([[3, 4, 5], [6]]), store, capture=(1, -1)).hidden
    assert hidden is not None
    assert hidden.shape[:3] == (2, 3, 2)
    with torch.no_grad(), zoo.softmax_unrounded():
        ids = torch.tensor([rows[0] + [3, 4, 5]])
        stock = reference(ids, output_hidden_states=True, use_cache=False).hidden_states
    assert (stock[1][0, 5:] - hidden[0, :, 0]).abs().max() < TOLERANCE
    assert (stock[-1][0, 5:] - hidden[0, :, 1]).abs().max() < TOLERANCE


def test_a_tree_and_a_growing_draft_are_refused_with_the_remedy() -> None:
    model, _ = models("mamba2")
    store = model.new_store(max_rows=1, max_slots=20)
    store.add()
    assert not model.branching
    assert not store.branching
    with pytest.raises(IncompatibleParts, match="drafts chains"):
        model.forward(Block.of_tree(DraftTree.build([([1, 2, 3], [-1, 0, 0])])), store)
    with pytest.raises(IncompatibleParts, match="Draft with an attention model"):
        model.forward(Block(torch.tensor([[1]]), [1], offset=1), store)


def test_a_family_with_its_state_in_its_modules_is_refused() -> None:
    config = tf.RecurrentGemmaConfig(**_BASE, lru_width=32, attention_window_size=64)
    with pytest.raises(ModelError, match="inside its modules"):
        refuse_by_name(config)
    with pytest.raises(ModelError, match="recurrent_gemma"):  # the numbers say so as well
        RecurrentModel(zoo.build(config))


def test_a_cache_of_its_own_is_named() -> None:
    config = tf.MiniMaxConfig(**_BASE, num_local_experts=2, block_size=8)
    with pytest.raises(ModelError, match="MiniMax uses cache of its own"):
        RecurrentModel(zoo.build(config))


def test_rewinding_reaches_the_start_and_says_what_it_cannot() -> None:
    model, reference = models("mamba2")
    store = model.new_store(max_rows=1, max_slots=20)
    store.add()
    model.forward(Block.of_lists([[1, 2, 3, 4]]), store, logits="none")
    store.extend(0, [4])
    assert not store.rewindable
    with pytest.raises(ConfigError, match="Rewind to 0"):
        store.rewind([2])
    with pytest.raises(CacheFull):
        model.forward(Block.of_lists([[1] * 17]), store)
    store.rewind([0])
    logits = model.forward(Block.of_lists([[5, 6]]), store).logits[0]
    assert (logits - zoo.full(reference, [5, 6])).abs().max() < TOLERANCE
    store.commit(torch.tensor([[0, -1]]), [1])  # token 5 is pending now
    store.rewind([0])
    assert store.lengths == [0]
