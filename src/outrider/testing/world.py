"""Small worlds to decode in: a target, a draft model that resembles it, a tokenizer and a grammar."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from outrider.model.base import LanguageModel
from outrider.model.table import TableModel
from outrider.processors import RowProcessor
from outrider.registry import REGISTRY

ALPHABET = string.digits + string.ascii_letters
"""Token i of ``Letters`` is the i-th of these; every fifth one has a dot behind it."""


class Letters:
    """A tokenizer whose tokens are one or two characters, so that a stop string may end inside a token."""

    bos_token_id = None
    eos_token_id = None

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        return "".join(ALPHABET[t] + "." * (t % 5 == 0) for t in tokens)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ALPHABET.index(char) for char in text if char != "."]


class Rising(RowProcessor):
    """A small grammar: after a token t comes one of the ``span`` tokens above it (around the end). The first
    token of the answer is free."""

    def __init__(self, span: int = 9) -> None:
        self.span = span
        self.last: int | None = None

    def advance(self, token: int) -> None:
        self.last = token

    def fork(self) -> Rising:
        twin = Rising(self.span)
        twin.last = self.last
        return twin

    def mask(self, logits: Tensor) -> Tensor:
        if self.last is None:
            return logits
        above = (torch.arange(len(logits), device=logits.device) - self.last - 1) % len(logits)
        return logits.masked_fill(above >= self.span, -torch.inf)

    def allows(self, tokens: Sequence[int], vocab: int) -> bool:
        """Whether a whole answer obeys the grammar."""
        return all((b - a - 1) % vocab < self.span for a, b in pairwise(tokens))


@dataclass(eq=False)
class World:
    """What a way of decoding is run in. ``gifts`` are what presets may ask for in their ``needs``."""

    target: LanguageModel
    draft: LanguageModel
    tokenizer: Any = None
    stop_tokens: tuple[int, ...] = ()
    gifts: frozenset[str] = frozenset({"draft_model"})
    memo: dict[Any, Any] = field(default_factory=dict, repr=False)
    """Plain texts that were computed before."""

    @property
    def vocab(self) -> int:
        return self.target.vocab_size


def tiny_llama(seed: int = 0, noise: float = 0.0, **changes: Any) -> Any:
    """A random Llama of two layers in float64 with 61 tokens and strong opinions; ``noise`` is added to the
    weights, so that a draft model is the same model a little off."""
    from outrider.testing.tiny import tiny_model

    shape = {
        "vocab_size": 61,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 256,
        "initializer_range": 0.45,
        "tie_word_embeddings": False,
    }
    model = tiny_model("llama", torch.float64, seed, **shape | changes)
    if noise:
        generator = torch.Generator().manual_seed(seed + 1)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(noise * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))
    return model


@lru_cache(maxsize=1)
def tiny_world() -> World:
    """Two tiny Llamas behind ``HFModel``: attention, masks, positions and stores are the real ones."""
    from outrider.model.hf import HFModel

    return World(
        target=HFModel(tiny_llama(), "tiny"),
        draft=HFModel(tiny_llama(noise=0.02), "tiny-near"),
        tokenizer=Letters(),
        stop_tokens=(2,),
    )


@lru_cache(maxsize=8)
def table_world(vocab: int = 4, seed: int = 0, distance: float = 0.7) -> World:
    """Two ``TableModel``s: every law is known exactly and a forward costs next to nothing."""
    target = TableModel(vocab, seed=seed)
    return World(target=target, draft=target.near(distance, seed + 1000))


def missing(preset: str, world: World) -> set[str]:
    """What the preset of that name needs and ``world`` does not have."""
    return set(REGISTRY.get(preset).needs) - world.gifts
