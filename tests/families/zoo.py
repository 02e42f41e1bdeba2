"""Tiny random models of every family, and the independent reference they are compared with.

The reference is a copy made *before* wrapping, with stock eager attention, no cache, and one plain causal
forward per path of the tree. Stock eager attention rounds its softmax to float32; the reference undoes that,
so that the comparison can be made to float64 precision.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import transformers as tf
from torch import Tensor
from torch.nn import functional

from outrider.types import DraftTree

VOCAB = 97
WINDOW = 6
_BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GPT = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 3, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}
_MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
_HEADS = {"num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 32, "vocab_size": VOCAB}
_EDGES = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


@dataclass(frozen=True)
class Family:
    """One architecture: how to configure it, and how exact it can be.

    ``tolerance`` is absolute, in float64, on logits of about unit size; above 1e-9 only where the stock
    family itself rounds to float32 on the way (``why``).
    """

    config: Callable[[], Any]
    native: bool = True
    tolerance: float = 1e-9
    why: str = ""


def _with(cls: str, **changes: Any) -> Callable[[], Any]:
    return lambda: getattr(tf, cls)(**{**_BASE, **changes})


_ROUTER = "computes its router in float32"

FAMILIES: dict[str, Family] = {
    "llama": Family(_with("LlamaConfig")),
    "mistral": Family(_with("MistralConfig", sliding_window=WINDOW)),
    "mixtral": Family(_with("MixtralConfig", num_local_experts=4, sliding_window=None), tolerance=1e-6, why=_ROUTER),
    "qwen2": Family(_with("Qwen2Config")),
    "qwen3": Family(_with("Qwen3Config", head_dim=8)),
    "qwen3_moe": Family(
        _with("Qwen3MoeConfig", head_dim=8, num_experts=4, moe_intermediate_size=16, num_experts_per_tok=2),
        tolerance=1e-6,
        why=_ROUTER,
    ),
    "gemma": Family(_with("GemmaConfig", head_dim=8)),
    "gemma2": Family(_with("Gemma2Config", head_dim=8, sliding_window=WINDOW)),
    "gemma3_text": Family(_with("Gemma3TextConfig", head_dim=8, sliding_window=WINDOW, layer_types=_MIXED)),
    "phi3": Family(_with("Phi3Config")),
    "olmo2": Family(_with("Olmo2Config")),
    "granite": Family(_with("GraniteConfig")),
    "smollm3": Family(_with("SmolLM3Config")),
    "stablelm": Family(_with("StableLmConfig"), native=False, tolerance=1e-5, why="rounds its softmax to float32"),
    "cohere": Family(_with("CohereConfig", logit_scale=1.0)),
    "falcon": Family(
        lambda: tf.FalconConfig(**_HEADS, **_EDGES, new_decoder_architecture=True, num_kv_heads=2),
        native=False,
    ),
    "gpt2": Family(lambda: tf.GPT2Config(**_GPT, n_positions=128)),
    "gptj": Family(
        lambda: tf.GPTJConfig(**_GPT, n_positions=128, rotary_dim=4, tie_word_embeddings=False),
        native=False,
        tolerance=1e-5,
        why="casts queries and keys to float32",
    ),
    "gpt_neox": Family(lambda: tf.GPTNeoXConfig(**_HEADS, **_EDGES, intermediate_size=48, max_position_embeddings=128)),
    "opt": Family(
        lambda: tf.OPTConfig(**_HEADS, **_EDGES, ffn_dim=48, max_position_embeddings=128, word_embed_proj_dim=32)
    ),
    "gpt_oss": Family(
        _with(
            "GptOssConfig",
            head_dim=8,
            num_local_experts=4,
            num_experts_per_tok=2,
            sliding_window=WINDOW,
            layer_types=_MIXED,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        )
    ),
    "deepseek_v3": Family(
        _with(
            "DeepseekV3Config",
            num_key_value_heads=4,
            n_routed_experts=4,
            moe_intermediate_size=16,
            q_lora_rank=16,
            kv_lora_rank=8,
            qk_rope_head_dim=4,
            qk_nope_head_dim=8,
            v_head_dim=8,
            n_group=1,
            topk_group=1,
            num_experts_per_tok=2,
            first_k_dense_replace=1,
        ),
        tolerance=1e-6,
        why=_ROUTER,
    ),
}


def build(config: Any, dtype: torch.dtype = torch.float64, std: float = 0.3, seed: int = 0) -> Any:
    """A random model of ``config`` whose weights are large enough that a wrong mask shows."""
    if hasattr(config, "_experts_implementation"):
        config._experts_implementation = "eager"  # grouped expert kernels refuse float64
    model = tf.AutoModelForCausalLM.from_config(config).to(dtype).eval()
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 or "sinks" in name or name.endswith("bias"):
                weight.copy_(torch.randn(weight.shape, generator=source, dtype=torch.float64) * std)
    return model


def pair(name: str, dtype: torch.dtype = torch.float64) -> tuple[Any, Any]:
    """(a model to wrap, a pristine eager copy made before) of one family."""
    model = build(FAMILIES[name].config(), dtype)
    return model, pristine(model)


def pristine(model: Any) -> Any:
    """A copy of ``model`` with stock eager attention."""
    copied = copy.deepcopy(model)
    for module in copied.modules():
        config = getattr(module, "config", None)
        if hasattr(config, "_attn_implementation_internal"):
            config._attn_implementation_internal = "eager"
    return copied


@contextmanager
def softmax_unrounded() -> Iterator[None]:
    """Stock eager attention asks for a float32 softmax; leave float64 scores f[B,H,N,S] in float64."""
    stock = functional.softmax

    def softmax(x: Tensor, *args: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> Tensor:
        keep = x.dim() == 4 and x.dtype == torch.float64
        return stock(x, *args, dtype=None if keep else dtype, **kwargs)

    with mock.patch.object(functional, "softmax", softmax):
        yield


def full(reference: Any, tokens: list[int]) -> Tensor:
    """f[T,V]: logits of a plain causal forward of ``tokens`` without a cache."""
    with torch.no_grad(), softmax_unrounded():
        return reference(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]


def prompt(length: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(VOCAB) for _ in range(length)]


def random_tree(sizes: list[int], seed: int) -> DraftTree:
    """One random tree per row with ``sizes[b]`` nodes, padded to the largest."""
    draw = random.Random(seed)
    rows = []
    for size in sizes:
        parents = [-1, *(draw.randrange(max(0, node - 4), node) for node in range(1, size))]
        rows.append(([draw.randrange(VOCAB) for _ in range(size)], parents))
    return DraftTree.build(rows)


def paths(tree: DraftTree, row: int) -> Iterator[tuple[int, list[int]]]:
    """(node, tokens from the root down to it) of one row."""
    assert tree.host is not None
    tokens, parents = tree.host[row]
    for node in range(len(tokens)):
        path, at = [], node
        while at >= 0:
            path.append(tokens[at])
            at = parents[at]
        yield node, path[::-1]


def worst_of(reference: Any, tree: DraftTree, pasts: list[list[int]], logits: Tensor) -> float:
    """Largest difference of the tree's ``logits`` f[B,N,V] from a full forward of each path."""
    worst = 0.0
    for row, past in enumerate(pasts):
        for node, path in paths(tree, row):
            expected = full(reference, past + path)[-1]
            worst = max(worst, (expected - logits[row, node]).abs().max().item())
    return worst
