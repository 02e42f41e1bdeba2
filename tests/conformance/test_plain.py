"""Plain decoding, to which everything else is compared, against the model itself: no store, no tree, no engine."""

from __future__ import annotations

import pytest
import torch

from outrider.rng import Draws
from outrider.testing.decode import Case, plain
from outrider.testing.world import tiny_llama, tiny_world

PROMPTS = [(7,), (3, 9, 3, 9, 3), tuple(range(10, 40))]


def by_hand(prompt: tuple[int, ...], temperature: float, seed: int, sample: int, length: int) -> list[int]:
    """One full forward per token, and the draw of that position by inversion of the running sum."""
    model, tokens = tiny_llama(), list(prompt)
    for _ in range(length):
        with torch.inference_mode():
            logits = model(torch.tensor([tokens])).logits[0, -1]
        if temperature == 0:
            tokens.append(int(logits.argmax()))
            continue
        draws = Draws.of(torch.tensor([seed]), torch.tensor([sample]), torch.tensor([len(tokens) - 1]))
        u = float(draws.text(torch.zeros(1, 1, dtype=torch.int64)))
        law = (logits / temperature).softmax(-1)
        tokens.append(int((law.cumsum(-1) <= u).sum()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.3])
def test_plain_decoding_is_what_the_model_says(temperature: float) -> None:
    cases = [
        Case.of(p, seed=5 + i, temperature=temperature, ignore_eos=True, n=2, max_tokens=12)
        for i, p in enumerate(PROMPTS)
    ]
    for i, request in enumerate(plain(tiny_world(), cases)):
        for choice in request.choices:
            right = by_hand(PROMPTS[i], temperature, 5 + i, choice.index, 12)
            assert choice.token_ids == right
            assert {origin.name for origin in choice.origins} == {"target"}


def test_the_text_of_the_tiny_model_is_not_degenerate() -> None:
    cases = [Case.of(prompt, ignore_eos=True, max_tokens=30) for prompt in PROMPTS]
    said = [request.choices[0].token_ids for request in plain(tiny_world(), cases)]
    assert min(len(set(tokens)) for tokens in said) > 8
    assert len({tuple(tokens) for tokens in said}) == len(PROMPTS)
