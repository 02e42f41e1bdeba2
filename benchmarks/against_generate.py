"""``plain`` through our step against ``transformers.generate``: same weights, same dtype, in turn, in one process.

    python benchmarks/against_generate.py [--model smollm2-135m] [--prompts 50 1000] [--tokens 32] [--runs 3] [--json]

The stock model is a second copy in memory with transformers' own defaults (sdpa attention, dynamic cache). Times
include the prefill on both sides. Ratios above 1 mean that ours is faster.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from common import prompt_of, report

from outrider import LLM, SamplingParams


def stock_run(stock: Any, prompt: list[int], tokens: int) -> tuple[list[int], float]:
    ids = torch.tensor([prompt])
    began = time.perf_counter()
    out = stock.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False
    )
    return out[0, len(prompt) :].tolist(), time.perf_counter() - began


def our_run(llm: LLM, prompt: list[int], tokens: int) -> tuple[list[int], float]:
    params = SamplingParams(max_tokens=tokens, min_tokens=tokens)
    began = time.perf_counter()
    out = llm.generate(prompt, params)[0]
    return out.token_ids, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default=None, help="float32 or bfloat16; default: what LLM chooses here")
    parser.add_argument("--prompts", type=int, nargs="+", default=[50, 1000])
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    from transformers import AutoModelForCausalLM

    llm = LLM(args.model, preset="plain", dtype=args.dtype)
    folder = llm.model.config.name_or_path
    stock = AutoModelForCausalLM.from_pretrained(folder, dtype=llm.language_model.dtype)
    rows = []
    for length in args.prompts:
        prompt = prompt_of(llm.tokenizer, length)
        stock_run(stock, prompt, 2), our_run(llm, prompt, 2)
        ratios, rates, same = [], [], True
        for _ in range(args.runs):
            theirs, their_seconds = stock_run(stock, prompt, args.tokens)
            ours, our_seconds = our_run(llm, prompt, args.tokens)
            ratios.append(their_seconds / our_seconds)
            rates.append((args.tokens / their_seconds, args.tokens / our_seconds))
            same &= ours == theirs
        rows.append(
            {
                "prompt tokens": length,
                "dtype": str(llm.language_model.dtype).removeprefix("torch."),
                "generate tok/s": statistics.median(r[0] for r in rates),
                "plain tok/s": statistics.median(r[1] for r in rates),
                "ratio (median)": statistics.median(ratios),
                "ratio (min)": min(ratios),
                "same tokens": same,
            }
        )
    report(rows, args.json, f"plain against transformers.generate, {args.model}, {args.tokens} new tokens")


if __name__ == "__main__":
    main()
