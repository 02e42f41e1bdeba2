"""A real model in float32: the text is that of ``transformers.generate``, or the first difference is a tie.

The model must be on this machine (``outrider pull smollm2-135m``); otherwise these tests are skipped, or fail where
``OUTRIDER_REQUIRE_MODELS`` is set.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from outrider import LLM, ModelError, SamplingParams, list_presets
from outrider.model.load import Loaded, load
from outrider.pull import locate
from outrider.registry import REGISTRY

MODEL = "smollm2-135m"
TIE = 1e-4
"""Two logits nearer than this are equal as far as float32 can tell."""
REPRESENTATIVE = ["auto", "spec-decode(depth=3)", "pld+token-recycling(nodes=20)"]
OWN = [
    "The three primary colours are",
    [{"role": "user", "content": "Write two sentences about the sea."}],
    "def area(width, height):\n    return width * height\n\n\ndef volume(width, height, depth):\n    return",
    [
        {
            "role": "user",
            "content": "Repeat this list, one item per line, and add a last one: red apples, green apples, red pears, "
            "green pears, red plums",
        }
    ],
]


@pytest.fixture(scope="module")
def folder() -> str:
    """Where the model lies."""
    try:
        return locate(MODEL, progress=False)
    except ModelError as error:
        if os.environ.get("OUTRIDER_REQUIRE_MODELS"):
            raise
        pytest.skip(f"{MODEL} is not on this machine (outrider pull {MODEL}): {error}")


def without_layers(hf: Any) -> Any:
    """A draft model: the same model without three of its middle layers."""
    kept = [layer for i, layer in enumerate(hf.model.layers) if i not in (14, 16, 18)]
    for i, layer in enumerate(kept):
        layer.self_attn.layer_idx = i
    hf.model.layers = torch.nn.ModuleList(kept)
    hf.config.num_hidden_layers = len(kept)
    return hf


class Reference:
    """The stock model, loaded apart, so that nothing of ours can have touched it."""

    def __init__(self, folder: str) -> None:
        from transformers import AutoModelForCausalLM

        self.hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.known: dict[tuple[tuple[int, ...], int], list[int]] = {}
        self.draft = without_layers(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())

    def generate(self, prompt: Sequence[int], length: int) -> list[int]:
        key = (tuple(prompt), length)
        if key not in self.known:
            ids = torch.tensor([list(prompt)])
            with torch.inference_mode():
                out = self.hf.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, do_sample=False)
            self.known[key] = out[0, len(prompt) :].tolist()
        return self.known[key]

    def top_two(self, tokens: Sequence[int]) -> tuple[list[int], float]:
        """The two most likely next tokens and the gap between their logits, by a plain forward."""
        with torch.inference_mode():
            logits = self.hf(torch.tensor([list(tokens)])).logits[0, -1]
        best = logits.topk(2)
        return best.indices.tolist(), float(best.values[0] - best.values[1])


@pytest.fixture(scope="module")
def reference(folder: str) -> Reference:
    return Reference(folder)


def compare(llm: LLM, reference: Reference, prompts: Sequence[Any], length: int) -> str:
    """Decode all prompts together. Raises ``AssertionError`` at a difference that is no tie."""
    ids = [llm.encode(prompt) for prompt in prompts]
    outs = llm.generate(ids, SamplingParams(max_tokens=length))
    ties = 0
    for prompt, out in zip(ids, outs, strict=True):
        right, mine = reference.generate(prompt, length), out.token_ids
        if mine == right:
            continue
        at = next((i for i, (a, b) in enumerate(zip(mine, right, strict=False)) if a != b), None)
        assert at is not None, f"{len(mine)} tokens instead of {len(right)}, the first of them equal"
        pair, gap = reference.top_two([*prompt, *right[:at]])
        assert gap < TIE, f"token {at} is {mine[at]} instead of {right[at]}, and the gap is {gap:.2e}: not a tie"
        assert {mine[at], right[at]} == set(pair), f"token {at} is {mine[at]}, which is not one of the tie {pair}"
        ties += 1
    calls = sum(out.stats.target_calls for out in outs)
    tokens = sum(out.stats.emitted_tokens for out in outs)
    return f"{len(outs)} prompts, {ties} ties, {tokens / calls:.2f} tokens per call"


@pytest.fixture(scope="module")
def target(folder: str) -> Loaded:
    """The model that all presets drive."""
    return load(folder, dtype="float32", device="cpu")


def llm_with(name: str, target: Loaded, reference: Reference) -> LLM:
    wanted = {need for part in _names(name) for need in REGISTRY.get(part).needs}
    draft = reference.draft if "draft_model" in wanted else None
    return LLM(target.model, tokenizer=target.tokenizer, preset=name, draft_model=draft)


def _names(spec: str) -> list[str]:
    return [part.split("(")[0].strip() for part in spec.replace("|", "+").split("+")]


@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_greedy_text_is_that_of_generate(name: str, target: Loaded, reference: Reference) -> None:
    print(f"{name}: {compare(llm_with(name, target, reference), reference, OWN, 48)}")


@cache
def spec_bench(file: Path) -> list[Any]:
    """20 first turns, spread over the whole file, as chat messages."""
    lines = file.read_text(encoding="utf-8").splitlines()
    picked = [json.loads(line)["turns"][0] for line in lines[:: max(1, len(lines) // 20)][:20]]
    return [[{"role": "user", "content": text[:2000]}] for text in picked]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", [*list_presets(), *REPRESENTATIVE[2:]])
def test_twenty_prompts(name: str, target: Loaded, reference: Reference, shared_data: Path) -> None:
    file = shared_data / "spec_bench_half.jsonl"
    if not file.is_file():
        pytest.skip(f"{file} is not on this machine")
    prompts = spec_bench(file)
    assert len(prompts) == 20
    print(f"{name}: {compare(llm_with(name, target, reference), reference, prompts, 128)}")
