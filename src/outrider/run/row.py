"""One request while it is being decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from outrider.params import SamplingParams
    from outrider.sampling import RowSampling


@dataclass(eq=False)  # a row is itself, whatever it holds
class Row:
    """``tokens`` is prompt plus output; its last element is the root of the next tree. ``id`` is unique for the
    life of the engine; parts key their state by it."""

    id: int
    tokens: list[int]
    prompt_length: int
    params: SamplingParams
    sampling: RowSampling
    seed: int
    sample: int = 0
    """Number of this choice among the ``n`` of its request."""

    @property
    def output_length(self) -> int:
        return len(self.tokens) - self.prompt_length

    @property
    def root_position(self) -> int:
        """Index of the last emitted token in prompt plus output."""
        return len(self.tokens) - 1
