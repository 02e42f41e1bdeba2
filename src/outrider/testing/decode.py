"""Running requests through an engine, with plain decoding as the reference and the counts checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from outrider.params import SamplingParams
from outrider.parts import Parts
from outrider.registry import preset
from outrider.run.engine import Engine
from outrider.run.request import Choice, Request
from outrider.run.scheduler import Limits
from outrider.testing.world import World

Make = Callable[[], Parts]
"""Builds fresh parts: they have state, and serve one engine."""

Texts = dict[tuple[tuple[int, ...], int, int], list[int]]
"""(prompt, seed, sample) -> the tokens that plain decoding gives."""


@dataclass(frozen=True)
class Case:
    """One request."""

    prompt: tuple[int, ...]
    params: SamplingParams

    @classmethod
    def of(cls, prompt: Sequence[int], **params: Any) -> Case:
        return cls(tuple(prompt), SamplingParams(**{"seed": 0, "max_tokens": 16} | params))

    def with_(self, **params: Any) -> Case:
        return Case(self.prompt, replace(self.params, **params))


def engine(world: World, parts: Parts, **limits: Any) -> Engine:
    """An engine in ``world``; ``limits`` are fields of ``Limits``."""
    return Engine(
        world.target,
        parts,
        tokenizer=world.tokenizer,
        stop_tokens=world.stop_tokens,
        limits=Limits(**{"max_rows": 8} | limits),
        draft_model=world.draft,
    )


def drain(running: Engine) -> None:
    """Step until nothing is left to do."""
    for _ in range(100_000):
        if running.idle:
            return
        running.step()
    raise AssertionError("the engine does not come to an end")


def decode(world: World, parts: Parts, cases: Sequence[Case], **limits: Any) -> list[Request]:
    """Decode ``cases`` together, as far as ``max_rows`` allows, and check what was counted."""
    running = engine(world, parts, **limits)
    requests = [running.submit(case.prompt, case.params) for case in cases]
    drain(running)
    for request in requests:
        check_request(request)
    return requests


def plain(world: World, cases: Sequence[Case], **limits: Any) -> list[Request]:
    """The same by plain decoding; computed once per world."""
    key = repr((cases, sorted(limits.items())))
    if key not in world.memo:
        world.memo[key] = decode(world, preset("plain"), cases, **limits)
    return world.memo[key]


def texts(requests: Sequence[Request]) -> Texts:
    """What ``Oracle`` and ``Hostile`` want to know."""
    return {
        (tuple(request.prompt), request.seed, choice.index): choice.token_ids
        for request in requests
        for choice in request.choices
    }


def check_same(found: Sequence[Request], wanted: Sequence[Request], what: str) -> None:
    """The choices of two runs are equal: tokens, text, why they ended, and what ended them."""
    assert len(found) == len(wanted), f"{what}: {len(found)} requests, expected {len(wanted)}"
    for case, (request, reference) in enumerate(zip(found, wanted, strict=True)):
        for mine, right in zip(request.choices, reference.choices, strict=True):
            where = f"{what}: request {case}, choice {mine.index}, {_given(request.params)}"
            if mine.token_ids != right.token_ids:
                both = zip(mine.token_ids, right.token_ids, strict=False)
                length = min(len(mine.token_ids), len(right.token_ids))
                at = next((i for i, (a, b) in enumerate(both) if a != b), length)
                raise AssertionError(
                    f"{where}: token {at} differs: {mine.token_ids[at : at + 5]} instead of "
                    f"{right.token_ids[at : at + 5]}, after {mine.token_ids[max(0, at - 5) : at]}"
                )
            for name in ("text", "finish_reason", "stop_reason"):
                got, want = getattr(mine, name), getattr(right, name)
                assert got == want, f"{where}: {name} is {got!r}, expected {want!r}"


def _given(params: SamplingParams) -> str:
    """The fields that differ from their defaults."""
    default, mine = vars(SamplingParams()), vars(params)
    return ", ".join(f"{name}={mine[name]}" for name in mine if mine[name] != default[name]) or "defaults"


def check_request(request: Request) -> None:
    """Invariants of what the engine counted."""
    assert request.finished, f"request {request.id} has not finished"
    assert [choice.index for choice in request.choices] == list(range(request.params.n))
    for choice in request.choices:
        _check_choice(choice, request.params)


def _check_choice(choice: Choice, params: SamplingParams) -> None:
    stats, count = choice.stats, len(choice.token_ids)
    histogram = stats.acceptance_histogram
    drafted = [origin for origin in choice.origins if origin.depth > 0]
    facts = {
        "there are no more tokens than asked for": count <= params.max_tokens,
        "every token was counted": stats.emitted_tokens == count,
        "every token has an origin": len(choice.origins) == count,
        "the histogram sums to the calls": sum(histogram) == stats.target_calls,
        "the histogram sums to the accepted tokens": sum(i * n for i, n in enumerate(histogram))
        == stats.accepted_tokens,
        "accepted tokens have drafted origins": len(drafted) == stats.accepted_tokens,
        "no more was accepted than drafted": stats.accepted_tokens <= stats.draft_tokens,
        "the target's own tokens have depth 0": all((o.name == "target") == (o.depth == 0) for o in choice.origins),
        "the mean is tokens per call": abs(stats.mean_accepted_length * stats.target_calls - count) < 1e-9,
        "time does not run backwards": min(stats.seconds.values()) >= 0,
    }
    if choice.error is None and choice.finish_reason != "cancelled":
        # Every call adds one token of the target's own; the last may have ended inside its draft.
        own = count - stats.accepted_tokens
        facts["each call adds one token of its own"] = stats.target_calls - 1 <= own <= stats.target_calls
    if params.logprobs is not None:
        facts["every token has log-probabilities"] = len(choice.logprobs or []) == count
    wrong = [fact for fact, holds in facts.items() if not holds]
    assert not wrong, f"not true: {'; '.join(wrong)}. {count} tokens, {stats}"
