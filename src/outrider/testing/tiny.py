"""Tiny random models with a tokenizer, made on the spot: for tests, ours and those of plug-ins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

# A vocabulary of bytes: any text can be encoded, and most characters outside ASCII take several tokens.
_SPECIAL = ("<pad>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>")
_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
}


def tiny_tokenizer() -> Any:
    """A byte-level tokenizer with a chat template: six special tokens, then the 256 bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*_SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.add_special_tokens(list(_SPECIAL))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    fast.chat_template = _TEMPLATE
    return fast


def tiny_model(family: str = "llama", dtype: torch.dtype = torch.float64, seed: int = 0, **changes: Any) -> Any:
    """A random causal model of a transformers family (its ``model_type``), fitting :func:`tiny_tokenizer`.

    ``changes`` go to the configuration. Initial weights are larger than usual, so that the model has opinions.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    size = len(_SPECIAL) + 256
    shape = {"vocab_size": size, "initializer_range": 0.3, **_SHAPE, **ends, **changes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **shape))
    return model.to(dtype).eval()


def tiny_folder(path: str | Path, family: str = "llama", dtype: torch.dtype = torch.float64, seed: int = 0) -> Path:
    """Model and tokenizer saved into ``path``, ready for ``LLM(path)``."""
    folder = Path(path)
    tiny_model(family, dtype, seed).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
