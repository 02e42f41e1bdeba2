"""``auto`` fits its tree to the machine, and says what it chose."""

from __future__ import annotations

import pytest
import torch

from outrider import preset
from outrider.draft.automaton import SuffixDrafter
from outrider.draft.mix import leaves
from outrider.presets import basic


@pytest.mark.parametrize(
    ("device", "dtype", "names"),
    [
        ("cuda", torch.bfloat16, ["sam", "token-recycling"]),
        ("cpu", torch.bfloat16, ["sam", "token-recycling"]),
        ("cpu", torch.float32, ["sam"]),
    ],
)
def test_auto_drafts_trees_only_where_they_are_cheap(
    monkeypatch: pytest.MonkeyPatch, device: str, dtype: torch.dtype, names: list[str]
) -> None:
    monkeypatch.setattr(basic, "default_device", lambda: torch.device(device))
    monkeypatch.setattr(basic, "default_dtype", lambda _: (dtype, ""))
    drafter = preset("auto").drafter
    assert drafter is not None
    assert [leaf.name for leaf in leaves(drafter)] == names


def test_auto_takes_the_nodes_it_is_given() -> None:
    assert isinstance(preset("auto(nodes=0)").drafter, SuffixDrafter)
    assert preset("auto(nodes=16)").policy.plan([]).nodes == 40  # sam's 40 in a row beside a tree of 16
