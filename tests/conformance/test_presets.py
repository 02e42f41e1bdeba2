"""Every preset passes every check of the conformance suite, the moment it is registered."""

from __future__ import annotations

import pytest

from outrider import list_presets, preset
from outrider.testing import conformance
from outrider.testing.world import missing, tiny_world

PRESETS = list_presets()
BUILT_IN = {"plain", "auto", "pld", "sam", "token-recycling", "spec-decode"}


def test_the_presets_are_found() -> None:
    print(f"{len(PRESETS)} presets: {', '.join(PRESETS)}; {len(conformance.CHECKS)} checks each")
    assert set(PRESETS) >= BUILT_IN
    assert len(conformance.CHECKS) >= 19


@pytest.mark.parametrize("name", PRESETS)
def test_the_kit_has_what_a_preset_needs(name: str) -> None:
    assert not missing(name, tiny_world())


@pytest.mark.parametrize("check", conformance.CHECKS)
@pytest.mark.parametrize("name", PRESETS)
def test_preset(name: str, check: str) -> None:
    conformance.check(lambda: preset(name), only=[check])


SHAPES = ["top-k", "static", "sampled"]


@pytest.mark.parametrize(
    "check", ["batch of 8", "batch of 1", "guarantee", "constraints", "join and leave", "prefixes"]
)
@pytest.mark.parametrize("shape", SHAPES)
def test_tree_shapes_of_a_draft_model(shape: str, check: str) -> None:
    conformance.check(lambda: preset("spec-decode", structure=shape, depth=3, nodes=10), only=[check])
