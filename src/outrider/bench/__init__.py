"""Measuring: suites of prompts, the harness, one result schema, reports and comparisons.

Names below are imported when they are first used: reading a result loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# public name -> the module that defines it
_EXPORTS: dict[str, str] = {
    "BenchResult": "outrider.bench.result",
    "Harness": "outrider.bench.harness",
    "Options": "outrider.bench.harness",
    "Suite": "outrider.bench.suite",
    "bench": "outrider.bench.harness",
    "list_suites": "outrider.bench.suite",
    "load_suite": "outrider.bench.suite",
}

if TYPE_CHECKING:
    from outrider.bench.harness import Harness as Harness
    from outrider.bench.harness import Options as Options
    from outrider.bench.harness import bench as bench
    from outrider.bench.result import BenchResult as BenchResult
    from outrider.bench.suite import Suite as Suite
    from outrider.bench.suite import list_suites as list_suites
    from outrider.bench.suite import load_suite as load_suite

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    """Import a public name on first use and keep it."""
    module = _EXPORTS.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value
