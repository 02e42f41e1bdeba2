"""``auto`` is sam and token-recycling, as much of them as pays."""

from __future__ import annotations

from outrider import SamplingParams, preset
from outrider.draft.mix import leaves
from outrider.policy.goodput import Goodput
from outrider.testing.decode import drain, engine
from outrider.testing.world import tiny_world
from outrider.types import Outcome


def test_auto_is_sam_and_token_recycling_as_far_as_they_pay() -> None:
    parts = preset("auto")
    assert parts.drafter is not None
    assert [leaf.name for leaf in leaves(parts.drafter)] == ["sam", "token-recycling"]
    assert isinstance(parts.policy, Goodput)


def test_both_draft_in_one_text() -> None:
    parts = preset("auto")
    running = engine(tiny_world(), parts.with_(policy=parts.policy.core()))
    drafted: set[str] = set()

    def look(outcome: Outcome) -> None:
        tree = outcome.tree
        drafted.update(tree.origins[i] for i in tree.origin_of()[tree.real].tolist())

    running.listen(look)
    requests = [running.submit((5, 6, i), SamplingParams(max_tokens=60, ignore_eos=True)) for i in range(4)]
    drain(running)
    assert all(request.finished for request in requests)
    assert drafted == {"target", "sam", "token-recycling"}
