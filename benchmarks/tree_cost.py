"""What a forward of many nodes costs, and what presets would gain at that price.

    python benchmarks/tree_cost.py [--model smollm2-135m] [--threads 1] [--presets pld sam ...] [--tokens 80] [--json]

First the curve: one forward of N new tokens behind 200 tokens of context, the smallest of six. Then each preset decodes
eight prompts of different kinds, and its steps are priced by the curve: sums of milliseconds against one-token steps.
That is a prediction from acceptance and cost, untouched by what else the machine does while it runs.
"""

from __future__ import annotations

import argparse
import time
from bisect import bisect_left
from pathlib import Path
from typing import Any

import torch
from common import TEXT, prompt_of, report

from outrider import LLM, SamplingParams
from outrider.model.base import Block

NODES = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 81)
DEMO = Path(__file__).parent.parent / "examples" / "demo_prompt.txt"
PROMPTS = [
    "Why is the sky blue? Explain it to a child.",
    "Write a short story about a lighthouse keeper who finds a message in a bottle.",
    "List the planets of the solar system with one sentence about each.",
    DEMO.read_text(encoding="utf-8"),
    f"Summarise in two sentences: {TEXT}",
    "Write a Python class for a bank account with deposit, withdraw and transfer methods, then an example of its use.",
    "Translate to French: Good morning, how are you? I am very well, thank you. The weather is nice today and we will "
    "go to the beach.",
    "What is 17 times 23? Show the steps one by one.",
]
PRESETS = ["pld", "sam", "sam(min_match=2)", "token-recycling(nodes=8)", "sam(min_match=2)|token-recycling(nodes=12)"]


def curve(llm: LLM, context: int = 200) -> dict[int, float]:
    """Nodes -> milliseconds."""
    model, prompt = llm.language_model, prompt_of(llm.tokenizer, context + max(NODES))
    store = model.new_store(1, context + 2 * max(NODES))
    store.add()
    model.forward(Block.of_lists([prompt[:context]]), store, logits="none")
    store.extend(0, [context])
    found = {}
    for nodes in NODES:
        block = Block.of_lists([prompt[context : context + nodes]])
        seconds = []
        for _ in range(6):
            began = time.perf_counter()
            model.forward(block, store)
            seconds.append(time.perf_counter() - began)
        found[nodes] = min(seconds) * 1000
    return found


def price(table: dict[int, float], nodes: int) -> float:
    """Milliseconds of a forward of ``nodes``, between the measured points in a straight line."""
    known = sorted(table)
    at = bisect_left(known, nodes)
    if at == len(known):
        return table[known[-1]] * nodes / known[-1]
    if known[at] == nodes:
        return table[nodes]
    low, high = known[at - 1], known[at]
    return table[low] + (table[high] - table[low]) * (nodes - low) / (high - low)


def gains(base: LLM, preset: str, table: dict[int, float], tokens: int) -> dict[str, Any]:
    """Mean over the prompts of tokens per call and of the predicted speed-up."""
    llm = LLM(base.language_model, tokenizer=base.tokenizer, preset=preset)
    steps: list[tuple[int, int]] = []
    llm.listen(lambda outcome: steps.append((outcome.tree.shape[1], len(outcome.emitted[0]))))
    lengths, ratios = [], []
    for prompt in PROMPTS:
        steps.clear()
        llm.chat(prompt, SamplingParams(max_tokens=tokens))
        emitted = sum(count for _, count in steps)
        lengths.append(emitted / len(steps))
        ratios.append(emitted * table[1] / sum(price(table, nodes) for nodes, _ in steps))
    return {
        "preset": preset,
        "tokens per call": sum(lengths) / len(lengths),
        "predicted speed-up": sum(ratios) / len(ratios),
        "smallest": min(ratios),
        "largest": max(ratios),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--tokens", type=int, default=80)
    parser.add_argument("--presets", nargs="*", default=PRESETS)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    llm = LLM(args.model, preset="plain", dtype=args.dtype)
    table = curve(llm)
    rows = [{"nodes": nodes, "ms": ms, "times one": ms / table[1]} for nodes, ms in table.items()]
    report(rows, args.json, f"One forward of {args.model}, 200 tokens of context")
    if args.presets:
        print()
        rows = [gains(llm, preset, table, args.tokens) for preset in args.presets]
        report(rows, args.json, f"Eight prompts, {args.tokens} tokens, steps priced by the curve above")


if __name__ == "__main__":
    main()
