"""What is known about transformers families: which are proven, which are refused and why."""

from __future__ import annotations

from typing import Any

from outrider.errors import ModelError

PROVEN = frozenset(
    {
        "cohere", "deepseek_v3", "falcon", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "gpt_oss", "gptj",
        "granite", "llama", "mistral", "mixtral", "olmo2", "opt", "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3",
        "stablelm",
    }
)  # fmt: skip
"""Families whose tree logits are compared with a full forward of each path in the tests. Any other family is
compared with itself when it is loaded (``model/check.py``)."""

_WINDOWED = {"sliding_attention", "hybrid_sliding"}
_RECURRENT = {"linear_attention", "conv", "hybrid", "hybrid_sliding", "mamba"}
_PLAIN = {"full_attention", *_WINDOWED, *_RECURRENT, "attention", "moe", "mlp"}


def text_config(config: Any) -> Any:
    """The part of a configuration that describes the decoder."""
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def refuse_by_name(config: Any) -> None:
    """Raise ``ModelError`` for what is known not to work, with the reason and the remedy."""
    text = text_config(config)
    family = text.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{family} is an encoder-decoder model",
            why="outrider drives decoder-only language models",
            hint="Choose a ...ForCausalLM model.",
        )
    if family in {"bloom", "mpt"} or getattr(text, "alibi", False):
        raise ModelError(
            f"{family} uses ALiBi position biases",
            why="transformers derives them from a 2-D padding mask, which cannot describe a tree of drafts",
            hint="Use a model with rotary or learned positions.",
        )
    if family == "recurrent_gemma":
        raise ModelError(
            f"{family} keeps its running state inside its modules",
            why="Rows that decode together, and drafts that are taken back, would share it",
            hint="Use a recurrent model whose state lives in its cache, such as Mamba-2, Bamba or Qwen3-Next.",
        )
    unknown = set(getattr(text, "layer_types", None) or ()) - _PLAIN
    if unknown:
        raise ModelError(
            f"{family} has layers of type {', '.join(sorted(unknown))}",
            why="Their masks or caches are not described by tokens, positions and a window",
            hint="Use a model with full, sliding-window or recurrent layers.",
        )


def is_recurrent(config: Any) -> bool:
    """Whether some layers keep a running state in place of one key and value per token."""
    text = text_config(config)
    types = set(getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None) or ())
    return bool(types & _RECURRENT) or text.model_type in {"mamba", "mamba2", "falcon_mamba"}


def expected_windows(config: Any) -> list[int | None]:
    """Sliding window per layer (None: full attention), as the configuration states it."""
    text = text_config(config)
    count, window = text.num_hidden_layers, getattr(text, "sliding_window", None)
    types = getattr(text, "layer_types", None)
    if types is not None:
        return [window if kind in _WINDOWED else None for kind in types]
    if window is None or getattr(text, "use_sliding_window", True) is False:
        return [None] * count
    return [window] * count


def context_limit(config: Any) -> int | None:
    """Longest context in tokens that the model can be driven at exactly.

    Rotary scalings that look at the longest position *in the batch* ("dynamic", "longrope") would let batch mates
    and rejected drafts change a row's result; they are used up to the length at which they start to scale.
    """
    text = text_config(config)
    limit = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    parameters = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    for entry in parameters:
        if entry.get("rope_type", entry.get("type")) in {"dynamic", "longrope"}:
            original = entry.get("original_max_position_embeddings")
            original = original or getattr(text, "original_max_position_embeddings", None) or limit
            limit = original if limit is None or original is None else min(int(original), int(limit))
    return None if limit is None else int(limit)
