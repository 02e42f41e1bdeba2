"""Host time of a decoding step outside the target's own forward.

Three parts are told apart: the engine (draft, verify, commit, text), what our wrapper adds around the stock model's
forward (masks, positions, cache views), and the stock forward itself.

    python benchmarks/step_cost.py [--model smollm2-135m] [--tokens 96] [--threads 2] [--json]
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from common import prompt_of, report

from outrider import LLM, SamplingParams


class Timed:
    """Times the calls of the transformers model inside the wrapper."""

    def __init__(self, language_model: Any) -> None:
        self.seconds = 0.0
        inner = language_model._call

        def call(*args: Any) -> Any:
            began = time.perf_counter()
            out = inner(*args)
            self.seconds += time.perf_counter() - began
            return out

        language_model._call = call


def measure(model: Any, preset: str, tokens: int, prompt_length: int) -> dict[str, Any]:
    """Medians over steps, in milliseconds."""
    llm = LLM(model.language_model, tokenizer=model.tokenizer, preset=preset)
    timed = Timed(llm.language_model)
    prompt = prompt_of(llm.tokenizer, prompt_length)
    params = SamplingParams(max_tokens=tokens, ignore_eos=True)
    llm.generate(prompt, params)  # fills tables and allocates; only the second run counts
    engine, wrapper, stock, nodes = [], [], [], []
    request = llm.engine.submit(prompt, params)
    seen: list[Any] = []
    llm.listen(seen.append)
    llm.engine.step()  # holds the prefill
    while not request.finished:
        timed.seconds = 0.0
        seen.clear()
        llm.engine.step()
        seconds = seen[-1].seconds
        engine.append(seconds["draft"] + seconds["verify"] + seconds["other"])
        wrapper.append(seconds["target"] - timed.seconds)
        stock.append(timed.seconds)
        nodes.append(seen[-1].tree.shape[1])
    del llm.language_model._call

    def middle(values: list[float]) -> float:
        return statistics.median(values) * 1000

    return {
        "preset": preset,
        "nodes (median)": int(statistics.median(nodes)),
        "engine ms": middle(engine),
        "wrapper ms": middle(wrapper),
        "together ms": middle([a + b for a, b in zip(engine, wrapper, strict=True)]),
        "stock forward ms": middle(stock),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--prompt", type=int, default=200)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = LLM(args.model, preset="plain")
    presets = ["plain", "pld", "sam", "token-recycling(nodes=31)"]
    rows = [measure(model, preset, args.tokens, args.prompt) for preset in presets]
    report(rows, args.json, f"Host time per step, {args.model}, one row, greedy")


if __name__ == "__main__":
    main()
