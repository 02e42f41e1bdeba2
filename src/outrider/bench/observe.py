"""What the harness notes while an engine runs: depths, contexts, memory. Little while it is timed, sums afterwards."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from outrider.bench.metrics import CONTEXT_EDGES, bucket
from outrider.bench.result import AtContext, AtDepth

if TYPE_CHECKING:
    from outrider.types import Outcome

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Watch:
    """A listener of engines with one row. A step is noted by reference only: the listener's own time is in it."""

    def __init__(self) -> None:
        self._steps: list[tuple[int, int, int, Any]] = []

    def __call__(self, outcome: Outcome) -> None:
        verdict = outcome.verdict
        if verdict is None:
            return  # a piece of the prompt
        emitted = len(outcome.emitted[0])
        count: Any = verdict.host[0][0] if verdict.host is not None else verdict.count
        tree = outcome.tree
        shape: Any = tree.host[0][1] if tree.host is not None else tree.parents
        self._steps.append((len(outcome.rows[0].tokens) - emitted, emitted, count, shape))

    def take(self) -> tuple[list[AtDepth], list[AtContext]]:
        """The sums since the last ``take``."""
        steps, self._steps = self._steps, []
        drafted: Counter[int] = Counter()
        accepted: Counter[int] = Counter()
        contexts: dict[int, Counter[str]] = {}
        for before, emitted, count, shape in steps:
            kept = min(int(count) - 1, emitted)
            parents = shape if isinstance(shape, list) else shape[0].tolist()
            depths = _depths(parents)
            drafted.update(range(1, max(depths) + 1))
            accepted.update(range(1, kept + 1))
            row = contexts.setdefault(bucket(before), Counter())
            row.update(target_calls=1, emitted_tokens=emitted, draft_tokens=len(depths) - 1, accepted_tokens=kept)
        return (
            [AtDepth(depth=depth, drafted=drafted[depth], accepted=accepted[depth]) for depth in sorted(drafted)],
            [_context(index, contexts[index]) for index in sorted(contexts)],
        )


def _depths(parents: list[int]) -> list[int]:
    """Depth of every node that is not padding."""
    depths = [0]
    for parent in parents[1:]:
        if parent >= 0:
            depths.append(depths[parent] + 1)
    return depths


def _context(index: int, counts: Counter[str]) -> AtContext:
    high = CONTEXT_EDGES[index + 1] if index + 1 < len(CONTEXT_EDGES) else None
    names = ("target_calls", "emitted_tokens", "draft_tokens", "accepted_tokens")
    return AtContext(low=CONTEXT_EDGES[index], high=high, **{name: counts[name] for name in names})


class Memory:
    """The highest memory since ``reset``: of torch's allocator on a GPU, of the process elsewhere. Where the system
    does not let a process reset its mark (not Linux), the mark is that of the whole run so far."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device if device.type == "cuda" else None

    def reset(self) -> None:
        if self._cuda is not None:
            torch.cuda.reset_peak_memory_stats(self._cuda)
            return
        with contextlib.suppress(OSError):
            _RESET.write_text("5")  # 5: "reset the peak resident set size" (proc_pid_clear_refs(5))

    def peak(self) -> int | None:
        """Bytes; None where the system does not tell."""
        if self._cuda is not None:
            return int(torch.cuda.max_memory_allocated(self._cuda))
        try:
            line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
            return int(line.split()[1]) * 1024
        except (OSError, StopIteration):
            return _whole_run()


def _whole_run() -> int | None:
    try:
        import resource
    except ImportError:
        return None
    mark = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return mark if sys.platform == "darwin" else mark * 1024
