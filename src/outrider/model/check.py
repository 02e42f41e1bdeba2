"""Numerical self-check of a family that the tests do not cover, on the very model that was loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from outrider.errors import ModelError, SpecError
from outrider.model.attention import stock
from outrider.model.base import Block
from outrider.types import DraftTree

if TYPE_CHECKING:
    from outrider.model.hf import HFModel

_PASTS = (5, 2)
_TREE = [
    ([3, 7, 11, 13, 17, 19], [-1, 0, 0, 1, 2, 3]),  # two branches, interleaved
    ([5, 2, 23], [-1, 0, 0]),
]


def tolerance(dtype: torch.dtype) -> float:
    """Largest difference that rounding in ``dtype`` explains, in units of the logits' spread.

    A wrong mask or position is off by 0.1 and more; deep bfloat16 models round to some hundredths. float64 is
    held to float32's limit, because many families compute norms, routers or states in float32.
    """
    return 0.1 if dtype in {torch.bfloat16, torch.float16} else 2e-3


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """Largest mean absolute difference of a position, in units of the standard deviation of its logits.

    ``found`` and ``expected`` are f[N,V]. NaN counts as infinitely wrong.
    """
    found, expected = found.double(), expected.double()
    off = ((found - expected).abs().mean(-1) / expected.std(-1).clamp(min=1e-12)).max().item()
    return off if off == off else float("inf")


def check(model: HFModel) -> float:
    """Score a ragged batch of trees and compare every node with a plain full forward of its path.

    Returns the worst relative difference. Raises ``ModelError`` naming the family, the difference and the
    remedy when it is beyond rounding. Costs about a dozen forwards of a few tokens.
    """
    draw = torch.Generator().manual_seed(0)
    vocab = model.vocab_size
    pasts = [torch.randint(vocab, (length,), generator=draw).tolist() for length in _PASTS]
    rows = [([token % vocab for token in tokens], parents) for tokens, parents in _TREE]
    tree = DraftTree.build(rows)
    try:
        store = model.new_store(max_rows=2, max_slots=32)
        store.add(2)
        model.forward(Block.of_lists(pasts, model.device), store, logits="none")
        store.extend(0, list(_PASTS))
        found = model.forward(Block.of_tree(tree, model.device), store).logits
    except SpecError:
        raise
    except Exception as error:
        raise _refusal(model, f"it failed with {type(error).__name__}: {error}") from error
    worst = max(_worst_of_row(model, pasts[row], rows[row], found[row]) for row in range(2))
    limit = tolerance(model.dtype)
    if not worst <= limit:
        raise _refusal(
            model, f"tree logits differ from full forwards by {worst:.2g} of their spread (limit {limit:.2g})"
        )
    return worst


def _worst_of_row(model: HFModel, past: list[int], row: tuple[list[int], list[int]], found: Tensor) -> float:
    tokens, parents = row
    worst = 0.0
    for node in range(len(tokens)):
        path, at = [], node
        while at >= 0:
            path.append(tokens[at])
            at = parents[at]
        ids = torch.tensor([past + path[::-1]], device=model.device)
        with stock(model.hf), torch.inference_mode():
            expected = model.hf(input_ids=ids, use_cache=False, return_dict=True).logits[0, -1]
        worst = max(worst, relative_difference(found[node][None], expected[None]))
    return worst


def _refusal(model: HFModel, why: str) -> ModelError:
    return ModelError(
        f"{model.name} ({model.family}) cannot be driven exactly",
        why=f"On a small trial, {why}",
        hint="Use one of the proven families (outrider.model.families.PROVEN), or report this one.",
    )
