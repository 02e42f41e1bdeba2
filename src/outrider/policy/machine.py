"""A budget that fits the machine, as long as nothing has measured it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from outrider.policy.base import Policy
from outrider.types import Budget

if TYPE_CHECKING:
    from outrider.draft.base import DraftContext
    from outrider.run.row import Row

GPU_NODES, MATRIX_CPU_NODES = 80, 48


class Affordable(Policy):
    """The plan of ``inner`` with only as many nodes as one forward scores at little more than the price of one.

    80 on a GPU, 48 on a CPU that multiplies the target's half-precision weights in hardware, none on any other: there a
    forward of 8 rows takes 1.7 times as long as one row, and of 80 rows 5.7 times (SmolLM2 in float32 on AVX2), which a
    tree that yields two tokens cannot repay.
    """

    def __init__(self, inner: Policy) -> None:
        self.inner = inner
        self.nodes = GPU_NODES

    def bind(self, context: DraftContext) -> None:
        from outrider.model.load import default_dtype

        self.inner.bind(context)
        half = context.target.dtype in (torch.bfloat16, torch.float16)
        if context.device.type == "cpu":
            fast = half and default_dtype(context.device)[0] is context.target.dtype
            self.nodes = MATRIX_CPU_NODES if fast else 0

    def plan(self, rows: Sequence[Row]) -> Budget:
        plan = self.inner.plan(rows)
        return replace(plan, nodes=min(plan.nodes, self.nodes))
