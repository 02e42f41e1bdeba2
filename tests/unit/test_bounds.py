"""Negative sizes and impossible thresholds are errors that name the setting and its value."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from outrider import ConfigError, Limits, preset


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: preset("pld", depth=-1), "depth=-1"),
        (lambda: preset("token-recycling(nodes=-5)"), "nodes=-5"),
        (lambda: preset("spec-decode(width=0, structure='top-k')"), "width=0"),
        (lambda: preset("spec-decode(threshold=1.5)"), "threshold=1.5"),
        (lambda: preset("spec-decode(structure=tree)"), "structure='tree'"),
        (lambda: preset("spec-decode(num_speculative_tokens=-2)"), "depth=-2"),
        (lambda: Limits(max_rows=0), "max_rows=0"),
        (lambda: Limits(max_context=-1), "max_context=-1"),
        (lambda: Limits(prefill_tokens=0), "prefill_tokens=0"),
    ],
)
def test_impossible_sizes_are_named(build: Callable[[], object], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        build()
    assert said in str(error.value)


def test_settings_may_be_bare_words() -> None:
    assert (
        preset("spec-decode(structure=top-k, depth=3)").policy
        == preset("spec-decode", structure="top-k", depth=3).policy
    )
