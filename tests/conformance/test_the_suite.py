"""The suite itself: parts and stores with one deliberate mistake each must fail the check that is there for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from outrider import preset
from outrider.cache.slots import SlotStore
from outrider.model.hf import HFModel
from outrider.rng import Draws, inverse_cdf
from outrider.testing import conformance
from outrider.testing.decode import Case, Make, check_request, plain
from outrider.testing.world import World, tiny_llama, tiny_world
from outrider.types import DraftTree, Guarantee, Verdict
from outrider.verify.base import TargetView, Verifier
from outrider.verify.match import Match


class Trusting(Match):
    """Accepts one drafted token more than matches."""

    def verify(self, tree: DraftTree, target: TargetView, draws: Draws) -> Verdict:
        verdict = super().verify(tree, target, draws)
        count = torch.minimum(verdict.count + 1, tree.real.sum(1))
        order = torch.arange(tree.shape[1]).expand(tree.shape)
        return replace(verdict, path=torch.where(order < count[:, None], order, -1), count=count)


class DrawsByRound(Match):
    """The text is drawn with the number of the node in its round, not with the position of the token."""

    def verify(self, tree: DraftTree, target: TargetView, draws: Draws) -> Verdict:
        return super().verify(tree, target, Draws(draws.stream, torch.zeros_like(draws.position)))


class Unshaped(Verifier):
    """Promises plain text, and draws from the model's own logits, before any sampling parameter."""

    guarantee, kinds, branching = Guarantee.IDENTICAL, Match.kinds, True

    def verify(self, tree: DraftTree, target: TargetView, draws: Draws) -> Verdict:
        assert target.logits is not None
        zero = torch.zeros_like(tree.tokens[:, :1])
        bonus = inverse_cdf(target.logits[:, :1].softmax(-1), draws.text(zero)).squeeze(1)
        return Verdict(zero, torch.ones_like(bonus), bonus)


class WrongCommit(SlotStore):
    """Keeps the first nodes of a tree instead of those on the path."""

    def commit(self, path: Tensor, counts: Sequence[int]) -> None:
        order = torch.arange(path.shape[1]).expand(path.shape)
        super().commit(torch.where(path >= 0, order, -1), counts)


class WrongFree(SlotStore):
    """The last row does not really move to the place of the one that leaves."""

    def free(self, row: int) -> None:
        kept = {shape: buffer.clone() for shape, buffer in self._buffers.items()}
        super().free(row)
        for shape, buffer in kept.items():
            self._buffers[shape].copy_(buffer)


class WrongFork(SlotStore):
    """A fork shares the last token's slot with its original: it is left empty."""

    def fork(self, row: int) -> int:
        clone = super().fork(row)
        for buffer in self._buffers.values():
            buffer[:, clone, :, self.lengths[clone] - 1] = 0
        return clone


class WrongAdopt(SlotStore):
    """A prefix is taken over one token too far to the left."""

    def adopt(self, row: int, parked: dict, length: int) -> None:
        super().adopt(row, {shape: planes.roll(-1, 2) for shape, planes in parked.items()}, length)


def world_with(store: type[SlotStore]) -> World:
    """The tiny world with another store, and with the plain texts of the right one."""

    class Broken(HFModel):
        def new_store(self, max_rows: int, max_slots: int) -> SlotStore:
            return store(self.shapes, self.device, max_rows, max_slots)

    right = tiny_world()
    return World(Broken(tiny_llama()), right.draft, right.tokenizer, right.stop_tokens, memo=right.memo)


PARTS: list[tuple[Verifier, str]] = [
    (Trusting(), "guarantee"),
    (DrawsByRound(), "guarantee"),
    (Unshaped(), "guarantee"),
    (Unshaped(), "constraints"),
]
STORES: list[tuple[type[SlotStore], str]] = [
    (WrongCommit, "batch of 8"),
    (WrongCommit, "batch of 1"),
    (WrongFree, "batch of 3"),
    (WrongFree, "join and leave"),
    (WrongFork, "choices"),
    (WrongAdopt, "prefixes"),
]


def caught(make: Make, check: str, world: World) -> str:
    with pytest.raises(AssertionError) as error:
        conformance.check(make, world, only=[check])
    return str(error.value)


@pytest.mark.parametrize(("verifier", "check"), PARTS, ids=[f"{type(v).__name__}-{c}" for v, c in PARTS])
def test_a_wrong_verifier_is_caught(verifier: Verifier, check: str) -> None:
    message = caught(lambda: preset("spec-decode", depth=3, verifier=verifier), check, tiny_world())
    assert message.startswith(f"spec-decode, {check}: ")


@pytest.mark.parametrize(("store", "check"), STORES, ids=[f"{s.__name__}-{c}" for s, c in STORES])
def test_a_wrong_store_is_caught(store: type[SlotStore], check: str) -> None:
    def make():
        return preset("spec-decode", structure="static", depth=3, nodes=8)

    conformance.check(make, tiny_world(), only=[check])  # the right store passes, and leaves the plain texts
    print(caught(make, check, world_with(store)))


def test_wrong_counts_are_caught() -> None:
    (request,) = plain(tiny_world(), [Case.of([7], seed=77, temperature=1.0)])
    check_request(request)
    for name in ("accepted_tokens", "emitted_tokens", "target_calls"):
        stats = request.choices[0].stats
        right = getattr(stats, name)
        setattr(stats, name, right + 1)
        with pytest.raises(AssertionError, match="not true"):
            check_request(request)
        setattr(stats, name, right)
