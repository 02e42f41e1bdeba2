"""Silent traps of stock transformers: each is shown to be there, and shown not to catch us.

The third, ``layer_types`` left behind when layers are dropped, is in ``test_views.py``.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf
import zoo
from torch import Tensor

from outrider.errors import ModelError
from outrider.model import attention
from outrider.model.base import Block
from outrider.model.hf import HFModel

PAST = zoo.prompt(11, seed=1)


def visible(tree: Any, past: int) -> Tensor:
    """b[1,1,N,S]: what each node of a one-row tree sees."""
    n = tree.shape[1]
    return torch.cat([torch.ones(n, past, dtype=torch.bool), tree.ancestors[0]], dim=1)[None, None]


def stock_tree_logits(model: Any, tree: Any, mask: Tensor) -> Tensor:
    """f[1,N,V] of stock code with its own cache and ``mask`` over one tree behind ``PAST``."""
    cache = tf.DynamicCache(config=model.config)
    with torch.no_grad(), zoo.softmax_unrounded():
        model(torch.tensor([PAST]), past_key_values=cache)
        positions = len(PAST) + tree.depth
        return model(tree.tokens, position_ids=positions, past_key_values=cache, attention_mask=mask).logits


def test_trap_a_boolean_mask_with_eager_attention_is_added() -> None:
    hf, reference = zoo.pair("llama")
    tree = zoo.random_tree([8], seed=2)
    seen = visible(tree, len(PAST))
    added = stock_tree_logits(reference, tree, seen)  # no error ...
    assert zoo.worst_of(reference, tree, [PAST], added) > 1.0  # ... and wrong
    additive = torch.zeros_like(seen, dtype=torch.float64).masked_fill(~seen, float("-inf"))
    assert zoo.worst_of(reference, tree, [PAST], stock_tree_logits(reference, tree, additive)) < 1e-9
    # Ours, from a model that came with eager attention, on both ways through the code.
    for native in (True, False):
        model = HFModel(zoo.pristine(hf))
        if not native:
            model._native = False
            attention.implementation(model.hf, "eager")
        store = model.new_store(max_rows=1, max_slots=40)
        store.add()
        with zoo.softmax_unrounded():
            model.forward(Block.of_lists([PAST]), store, logits="none")
            store.extend(0, [len(PAST)])
            logits = model.forward(Block.of_tree(tree), store).logits
        assert zoo.worst_of(reference, tree, [PAST], logits) < 1e-9


def test_trap_an_attention_function_without_a_mask_function_is_bidirectional() -> None:
    def careless(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
        return out.transpose(1, 2).contiguous(), None

    hf, reference = zoo.pair("llama")
    expected = zoo.full(reference, PAST)
    tf.AttentionInterface.register("careless", careless)
    naive = zoo.pristine(hf)
    attention.implementation(naive, "careless")
    assert (zoo.full(naive, PAST) - expected).abs().max() > 1e-2  # every token saw all the others
    HFModel(hf)  # now has our attention; called without us, it is causal all the same
    assert hf.config._attn_implementation == attention.NAME
    assert (zoo.full(hf, PAST) - expected).abs().max() < 1e-9


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gemma3_text", "gpt_oss", "gpt2", "falcon", "gptj"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_generate_gives_the_same_tokens_after_wrapping(name: str, dtype: torch.dtype) -> None:
    hf, _ = zoo.pair(name, dtype)
    ids = torch.tensor([PAST, [*([0] * 4), *PAST[4:]]])
    mask = torch.ones_like(ids)
    mask[1, :4] = 0  # one row padded on the left

    def generate() -> list[list[int]]:
        # Rounded to float32, stock eager attention makes NaN of float64's lowest number in padded rows.
        with zoo.softmax_unrounded():
            return hf.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False).tolist()

    before = generate()
    HFModel(hf)
    assert generate() == before


@pytest.mark.parametrize("past", [0, 9])
def test_a_stock_call_of_a_wrapped_model_continues_a_stock_cache(past: int) -> None:
    """Several tokens behind a stored past, without a mask: the triangle is aligned at its end."""
    hf, reference = zoo.pair("llama")
    HFModel(hf)
    cache = tf.DynamicCache(config=hf.config)
    with torch.no_grad():
        if past:
            hf(torch.tensor([PAST[:past]]), past_key_values=cache)
        logits = hf(torch.tensor([PAST[past:]]), past_key_values=cache).logits[0]
    assert (logits - zoo.full(reference, PAST)[past:]).abs().max() < 1e-9


def test_a_window_that_a_layer_does_not_hand_over_is_refused() -> None:
    hf, _ = zoo.pair("mistral")
    for layer in hf.model.layers[:1]:
        layer.self_attn.config = type("Config", (), {"sliding_window": None, "_attn_implementation": "outrider"})()
    with pytest.raises(ModelError, match="3 sliding-window layers, but 2 of its layers"):
        HFModel(hf)
