"""What the benchmark scripts share: the machine in words, prompts of a given length, output."""

from __future__ import annotations

import json
import sys
from typing import Any

from outrider.provenance import provenance

TEXT = (
    "The harbour town had two bridges, an old one of stone and a new one of steel. Every spring the council "
    "argued about which of them to paint first, and every autumn neither had been painted. A retired engineer "
    "kept a notebook with measurements of both: the width of each crack, the number of loose bolts, the height "
    "of the water at noon. "
)


def prompt_of(tokenizer: Any, length: int) -> list[int]:
    """``length`` tokens of ordinary text."""
    ids: list[int] = list(tokenizer.encode(TEXT * (length // 60 + 2), add_special_tokens=False))
    return ids[:length]


def report(rows: list[dict[str, Any]], as_json: bool, title: str) -> None:
    """Print rows of equal keys as a Markdown table, or everything as JSON."""
    if as_json:
        json.dump({"provenance": provenance().as_dict(), "rows": rows}, sys.stdout, indent=1)
        print()
        return
    print(f"{title}\n{provenance().line()}\n")
    names = list(rows[0])
    print("| " + " | ".join(names) + " |")
    print("|" + "---|" * len(names))
    for row in rows:
        print("| " + " | ".join(f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()) + " |")
