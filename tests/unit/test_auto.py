"""``auto`` fits its tree to the machine and the target it is bound to."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from outrider import SamplingParams, preset
from outrider.draft.mix import leaves
from outrider.model import load
from outrider.policy.fixed import Fixed
from outrider.policy.machine import Affordable
from outrider.testing.decode import drain, engine
from outrider.testing.world import tiny_world
from outrider.types import Outcome


@pytest.mark.parametrize(
    ("device", "dtype", "best", "nodes"),
    [
        ("cuda", torch.bfloat16, torch.bfloat16, 80),
        ("cpu", torch.bfloat16, torch.bfloat16, 48),
        ("cpu", torch.float32, torch.bfloat16, 0),
        ("cpu", torch.bfloat16, torch.float32, 0),
    ],
)
def test_the_tree_is_as_large_as_the_machine_affords(
    monkeypatch: pytest.MonkeyPatch, device: str, dtype: torch.dtype, best: torch.dtype, nodes: int
) -> None:
    monkeypatch.setattr(load, "default_dtype", lambda _: (best, ""))
    policy = Affordable(Fixed(6, nodes=80, width=8))
    context: Any = SimpleNamespace(device=torch.device(device), target=SimpleNamespace(dtype=dtype))
    policy.bind(context)
    assert policy.plan([]).nodes == nodes


def test_auto_is_sam_and_token_recycling() -> None:
    drafter = preset("auto").drafter
    assert drafter is not None
    assert [leaf.name for leaf in leaves(drafter)] == ["sam", "token-recycling"]


def test_without_room_for_a_tree_sam_drafts_alone() -> None:
    running = engine(tiny_world(), preset("auto"))
    drafted: set[str] = set()

    def look(outcome: Outcome) -> None:
        tree = outcome.tree
        drafted.update(tree.origins[i] for i in tree.origin_of()[tree.real].tolist())

    running.listen(look)
    request = running.submit((5, 6, 7), SamplingParams(max_tokens=60, ignore_eos=True))
    drain(running)
    assert request.finished
    assert drafted == {"target", "sam"}
