"""Whether adaptive drafting is ever slower than plain decoding, where drafting cannot pay.

    python benchmarks/never_slower.py [--model smollm2-135m] [--tokens 32 128] [--prompts 20] [--threads 1] [--json]

Each prompt is decoded plainly and under the policy, in alternating order, and the seconds of the two are divided:
ratios below 1 mean that the policy is slower. Everything counts: prefill, exploration, the policy's own time. With
*kept* state one policy serves all prompts of a case, as in a server; with *fresh* state every prompt meets one that
knows nothing, as in a command that is run once, and starts from the curve that this kind of machine usually has.

Cases: random tokens as prompts; temperature 2; a drafter that is always wrong; the same drafter at the price of a plain
step; and, as a control in which drafting does pay, a text to be copied. ``--cpu`` counts processor seconds, for a look
on a machine that is busy with other things.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from common import TEXT, report

from outrider import LLM, Parts, SamplingParams, preset
from outrider.draft.base import DraftContext, Drafter
from outrider.policy.fixed import Fixed
from outrider.policy.goodput import Goodput
from outrider.rng import Draws
from outrider.run.row import Row
from outrider.types import Budget, DraftTree, Outcome
from outrider.verify.match import Match

SUBJECTS = ("the sea", "an old clock", "rain in the city", "a long journey", "the first day at school", "bread", "ice")
Clock = Callable[[], float]
SECONDS = [1.0]
"""Of a plain step, as last measured: the price of the slow drafter."""


class Wrong(Drafter):
    """Random tokens in full length, at ``price`` plain steps per proposal."""

    name = "wrong"

    def __init__(self, price: float = 0.0) -> None:
        self.price, self.rng = price, np.random.default_rng(0)

    def bind(self, context: DraftContext) -> None:
        self.vocab = context.vocab_size

    def propose(self, rows: Sequence[Row], budget: Budget, draws: Draws) -> DraftTree:
        began, until = time.perf_counter(), self.price * SECONDS[0]
        depth = min(budget.depth, budget.nodes)
        drafts = self.rng.integers(0, self.vocab, (len(rows), depth)).tolist()
        pairs = zip(rows, drafts, strict=True)
        tree = DraftTree.build([([row.tokens[-1], *draft], list(range(-1, depth))) for row, draft in pairs], self.name)
        while time.perf_counter() - began < until:  # busy, as a model would be
            pass
        return tree


class Timed(Goodput):
    """Notes what the policy itself takes per step."""

    spent: list[float]

    def plan(self, rows: Sequence[Row]) -> Budget:
        began = time.perf_counter()
        budget = super().plan(rows)
        self.spent.append(time.perf_counter() - began)
        return budget

    def review(self, rows: Sequence[Row], tree: DraftTree) -> list[int] | None:
        began = time.perf_counter()
        kept = super().review(rows, tree)
        self.spent[-1] += time.perf_counter() - began
        return kept

    def observe(self, outcome: Outcome) -> None:
        began = time.perf_counter()
        super().observe(outcome)
        if self.spent:
            self.spent[-1] += time.perf_counter() - began


@dataclass(frozen=True)
class Case:
    """What is decoded (``prompt`` of a number, given the LLM), how, and by which parts."""

    name: str
    prompt: Callable[[LLM, int], list[int]]
    parts: Callable[[], Parts]
    params: dict[str, Any] = field(default_factory=dict)


def random_tokens(llm: LLM, number: int) -> list[int]:
    return np.random.default_rng([1, number]).integers(0, llm.language_model.vocab_size, 48).tolist()


def question(llm: LLM, number: int) -> list[int]:
    subject = SUBJECTS[number % len(SUBJECTS)]
    return llm.encode(f"Write {number + 2} sentences about {subject}.", chat_template=True)


def copy(llm: LLM, number: int) -> list[int]:
    return llm.encode(f"Repeat this text {number + 2} times, word for word: {TEXT}", chat_template=True)


def wrong(price: float = 0.0) -> Parts:
    return Parts(drafter=Wrong(price), policy=Fixed(10), verifier=Match())


CASES = [
    Case("random text, auto", random_tokens, lambda: preset("auto")),
    Case("temperature 2, auto", question, lambda: preset("auto"), {"temperature": 2.0}),
    Case("always wrong", question, wrong),
    Case("always wrong and slow", question, lambda: wrong(1.0)),
    Case("control: a copy, auto", copy, lambda: preset("auto")),
]


def adaptive(base: LLM, case: Case) -> LLM:
    """The case's parts under a fresh, timed policy, over the weights that are loaded."""
    parts = case.parts()
    policy = Timed(parts.policy.core())
    policy.spent = []
    return LLM(base.language_model, tokenizer=base.tokenizer, preset=parts.with_(policy=policy))


def seconds(llm: LLM, prompt: list[int], params: SamplingParams, clock: Clock) -> tuple[float, list[int]]:
    began = clock()
    out = llm.generate(prompt, params)[0]
    return clock() - began, out.token_ids


def run(base: LLM, case: Case, tokens: int, prompts: int, kept: bool, clock: Clock) -> dict[str, Any]:
    """One line of the table."""
    llm = adaptive(base, case)
    ratios, own, same, steps = [], [], True, 0
    for number in range(prompts):
        prompt = case.prompt(base, number)
        params = SamplingParams(max_tokens=tokens, ignore_eos=True, seed=number, **case.params)
        if not kept:  # both, so that both allocate what an engine needs
            base, llm = LLM(base.language_model, tokenizer=base.tokenizer, preset="plain"), adaptive(base, case)
        policy = llm.parts.policy
        assert isinstance(policy, Timed)
        before = len(policy.spent)
        found = {}
        for which in ("plain", "policy") if number % 2 else ("policy", "plain"):
            found[which] = seconds(base if which == "plain" else llm, prompt, params, clock)
        SECONDS[0] = found["plain"][0] / tokens
        ratios.append(found["plain"][0] / found["policy"][0])
        same &= found["plain"][1] == found["policy"][1]
        own += policy.spent[before:]
        steps += len(policy.spent) - before
    return {
        "case": case.name,
        "tokens": tokens,
        "state": "kept" if kept else "fresh",
        "mean ratio": statistics.fmean(ratios),
        "95 % from": lower_bound(ratios),
        "smallest": min(ratios),
        "tokens per call": tokens * prompts / steps,
        "policy ms per step": statistics.median(own) * 1000,
        "same text": same,
    }


def lower_bound(ratios: Sequence[float]) -> float:
    """Lower end of the 95 % interval of the mean, by bootstrap over prompts."""
    drawn = np.random.default_rng(0).choice(np.array(ratios), (10_000, len(ratios)))
    return float(np.quantile(drawn.mean(axis=1), 0.025))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--cases", nargs="*", default=[case.name for case in CASES], help="names, or their beginnings")
    parser.add_argument("--cpu", action="store_true", help="processor seconds instead of wall-clock seconds")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    import torch

    torch.set_num_threads(args.threads)
    base = LLM(args.model, preset="plain", dtype=args.dtype)
    clock = time.process_time if args.cpu else time.perf_counter
    seconds(base, question(base, 0), SamplingParams(max_tokens=8, ignore_eos=True), clock)  # the first call allocates
    chosen = [case for case in CASES if any(case.name.startswith(name) for name in args.cases)]
    if not chosen:
        parser.error(f"no case begins with any of {args.cases}; known: {[case.name for case in CASES]}")
    lines = []
    for case in chosen:
        for tokens in args.tokens:
            for kept in (True, False):
                lines.append(run(base, case, tokens, args.prompts, kept, clock))
                print(
                    ", ".join(f"{k} {v:.2f}" if isinstance(v, float) else f"{v}" for k, v in lines[-1].items()),
                    file=sys.stderr,
                )
    report(lines, args.json, f"Plain seconds over the policy's, {args.model}, {args.prompts} prompts per line")


if __name__ == "__main__":
    main()
