"""How well `outrider tune` predicts: presets predicted on some prompts, then measured on others.

    python benchmarks/prediction_error.py [--model smollm2-135m] [--suite own] [--limit 40] [--tokens 64] [--threads 1]
                                          [--draft-model NAME] [--presets pld "sam(depth=16)" ...] [--json]

Step costs are measured once. Three of five prompts are recorded, which gives every preset's predicted tokens per second
for the mix of the other two. The predictions are printed, and written to the log beside the profiles, before the others
are decoded for real, prompt by prompt and in rotating order. Nothing is kept as a profile. Other work on the machine
shows up as error: the unrest (median over fastest time of equal steps) should be close to 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from common import report

from outrider import LLM
from outrider.bench.suite import load_suite
from outrider.tune.tuner import Listener, Task, Tuner

if TYPE_CHECKING:
    from outrider.tune.predict import Prediction
    from outrider.tune.profile import Profile

PRESETS = [
    "pld(depth=2)",
    "pld(depth=4)",
    "pld(depth=10)",
    "pld(depth=10,min_ngram=2)",
    "sam(depth=4)",
    "sam(depth=16,alpha=2)",
    "sam(min_match=2)",
    "sam(min_match=3,depth=8)",
    "token-recycling(nodes=8)",
    "token-recycling(nodes=24)",
    "sam(min_match=2)|token-recycling(nodes=16)",
]
DRAFTING = ["spec-decode(depth=2)", "spec-decode(depth=4)", "sam(min_match=3)|spec-decode(depth=3)"]
CLOSE = 0.15


def tell(predictions: Sequence[Prediction]) -> None:
    """The predictions, before anything is measured."""
    print("predicted on the recorded prompts, before the others are decoded:", file=sys.stderr)
    for one in predictions:
        print(f"  {one.name:45} {one.tokens_per_second:8.2f} tokens/s {one.speedup:6.2f}x", file=sys.stderr)


def rows(profile: Profile) -> list[dict[str, Any]]:
    """One per preset that was measured."""
    return [
        {
            "preset": one.preset,
            "predicted tok/s": one.measured.predicted.tokens_per_second,
            "measured tok/s": one.measured.tokens_per_second,
            "error %": 100 * one.measured.error,
            "predicted speed-up": one.measured.predicted.speedup,
            "measured speed-up": one.measured.speedup,
            "error of the speed-up %": 100 * one.measured.speedup_error,
        }
        for one in profile.ranking
        if one.measured is not None
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--draft-model", default=None)
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--suite", default="own")
    parser.add_argument("--limit", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--presets", nargs="*", default=None)
    parser.add_argument("--budget", type=float, default=3600.0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    names = args.presets or PRESETS + (DRAFTING if args.draft_model else [])
    task = Task(
        load_suite(args.suite, limit=args.limit),
        tuple(names),
        budget=args.budget,
        max_tokens=args.tokens,
        checks=len(names),
        hopeless=True,
    )
    llm = LLM(args.model, preset="plain", draft_model=args.draft_model, dtype=args.dtype)
    profile = Tuner(llm, task, args.model, args.draft_model, Listener(predicted=tell)).run()
    found = rows(profile)
    drafted = [row for row in found if row["preset"] != "plain"]
    close = {
        name: sum(abs(row[key]) <= 100 * CLOSE for row in drafted)
        for name, key in (("tokens per second", "error %"), ("speed-up", "error of the speed-up %"))
    }
    work = profile.workload
    report(found, args.json, f"{args.model}, {work.source}: {work.recorded} prompts recorded, {work.checked} measured")
    summary = {"presets": len(drafted), "within 15 %": close, "unrest": profile.unrest, "seconds": profile.seconds}
    print(json.dumps(summary), file=sys.stderr if args.json else sys.stdout)


if __name__ == "__main__":
    main()
