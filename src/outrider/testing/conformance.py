"""What every way of decoding must pass. ``check(make)`` runs all of it; each check can be run alone.

``make`` builds fresh ``Parts``. Checks run in ``tiny_world()`` unless another world is given, in float64, so that
"equal" means equal. Most swap ``Match`` in: with it the text is a function of prompt, seed and parameters alone,
which turns the losslessness of the loop into an equality of token ids.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from outrider.testing import edges
from outrider.testing.decode import (
    Case,
    Make,
    check_request,
    check_same,
    decode,
    drain,
    engine,
    plain,
    texts,
)
from outrider.testing.drafters import Hostile, Oracle
from outrider.testing.world import Rising, World, tiny_world
from outrider.types import Guarantee
from outrider.verify.match import Match

PROMPTS = (
    (7,),
    (3, 9, 3, 9, 3, 9),
    tuple(range(10, 40)),
    (5, 6, 7, 8, 5, 6, 7, 8, 5),
    (1, 50),
    (11, 30, 35, 59, 25, 42, 30, 18, 42, 11, 30),
)
"""One token, repeats, many tokens: so that rows differ in length and look-up has something to find."""


def menu(temperature: float, length: int = 14) -> list[Case]:
    """Requests at one temperature that between them use most of what ``SamplingParams`` offers; rows end at
    different lengths."""
    kinds: list[dict[str, Any]] = [
        {"ignore_eos": True},
        {"repetition_penalty": 1.2, "frequency_penalty": 0.2, "min_tokens": 6, "top_p": 0.9},
        {"presence_penalty": 0.4, "top_k": 12, "min_p": 0.02, "logit_bias": {9: 1.5, 3: -float("inf")}},
        {"bad_words": [[42, 42], [20], [8, 44]], "typical_p": 0.9, "logprobs": 2},
        {"logits_processors": [Rising], "top_p": 0.95, "repetition_penalty": 0.9},
        {"stop_token_ids": [42, 20], "min_tokens": 3},
    ]
    return [
        Case.of(prompt, seed=100 + i, temperature=temperature, max_tokens=length - 2 * (i % 3), **kind)
        for i, (prompt, kind) in enumerate(zip(PROMPTS, kinds, strict=True))
    ]


def mixed_menu() -> list[Case]:
    """Greedy and sampled requests side by side, more of them than rows."""
    return [case for trio in zip(menu(0.0), menu(0.7), menu(1.3), strict=True) for case in trio]


def equals_plain(make: Make, world: World, batch: int = 8) -> None:
    """With ``Match``: the text of plain decoding at T = 0, 0.7 and 1.3, with penalties, truncation, bias, bad words,
    ``min_tokens``, a grammar; rows of different lengths join as others leave."""
    cases = mixed_menu() if batch > 1 else mixed_menu()[::2]
    found = decode(world, make().with_(verifier=Match()), cases, max_rows=batch)
    check_same(found, plain(world, cases), f"batch of {batch}, verifier Match")


def keeps_its_guarantee(make: Make, world: World) -> None:
    """Its own verifier: the guarantee is the verifier's; plain text at T = 0; and at 0.7 if that is promised."""
    parts = make()
    assert parts.guarantee == parts.verifier.guarantee, f"guarantee {parts.guarantee} is not the verifier's"
    if parts.guarantee is Guarantee.RELAXED:
        return
    cases = menu(0.0)
    check_same(decode(world, parts, cases), plain(world, cases), "its own verifier at T = 0")
    if parts.guarantee is Guarantee.IDENTICAL:
        cases = menu(0.7)
        check_same(decode(world, make(), cases), plain(world, cases), "its own verifier at T = 0.7")


def honours_constraints(make: Make, world: World) -> None:
    """Its own verifier, sampled: what is forbidden never comes, drafted or not."""
    _, _, bias, words, grammar, stops = decode(world, make(), menu(1.3, length=20))
    for request in (bias, words, grammar):
        assert request.choices[0].token_ids, f"no tokens for {request.params}"
    assert 3 not in bias.choices[0].token_ids, "a token biased by -inf was emitted"
    said = words.choices[0].token_ids
    assert 20 not in said, "a bad word of one token was emitted"
    for pair in ([42, 42], [8, 44]):
        found = [said[i : i + 2] for i in range(len(said))]
        assert pair not in found, f"the bad word {pair} was emitted: {said}"
    assert Rising().allows(grammar.choices[0].token_ids, world.vocab), "the grammar was broken"
    (choice,) = stops.choices
    assert not {42, 20} & set(choice.token_ids[3:-1]), f"text goes on behind a stop token: {choice.token_ids}"


def rows_join_and_leave(make: Make, world: World) -> None:
    """Requests that come while others run, and one that is cancelled midway, change nobody's text."""
    for temperature in (0.0, 0.7):
        cases = [case.with_(max_tokens=12) for case in menu(temperature)]
        wanted = plain(world, cases)
        running = engine(world, make().with_(verifier=Match()), max_rows=4)
        requests = [running.submit(case.prompt, case.params) for case in cases[:2]]
        running.step()
        requests += [running.submit(case.prompt, case.params) for case in cases[2:5]]
        doomed = running.submit(PROMPTS[2], cases[0].params)  # waits: four rows are all there are
        running.step()
        victim = requests[2]
        running.cancel(victim)
        running.cancel(doomed)
        requests.append(running.submit(cases[5].prompt, cases[5].params))
        drain(running)
        for request in (*requests, doomed):
            check_request(request)
        kept = victim.choices[0]
        assert kept.finish_reason in ("cancelled", wanted[2].choices[0].finish_reason)
        right = wanted[2].choices[0].token_ids[: len(kept.token_ids)]
        assert kept.token_ids == right, f"the cancelled request kept {kept.token_ids}, not {right}"
        others = [0, 1, 3, 4, 5]
        check_same([requests[i] for i in others], [wanted[i] for i in others], "joining and leaving")


def nothing_accepted(make: Make, world: World) -> None:
    """Drafts that are always wrong: one token per call, the same text. A policy that adapts may give up before every
    request has had a draft; the one within whose bounds it keeps may not."""
    adapting = make().policy
    core = adapting.core()
    for policy in [adapting] if core is adapting else [adapting, core]:
        parts = make().with_(policy=policy)
        if parts.drafter is None:
            return
        cases = menu(0.7)
        wanted = plain(world, cases)
        hostile = parts.with_(drafter=Hostile(parts.drafter, texts(wanted)), verifier=Match())
        found = decode(world, hostile, cases)
        check_same(found, wanted, "nothing accepted")
        stats = [request.choices[0].stats for request in found]
        for one in stats:
            assert one.mean_accepted_length == 1, f"mean accepted length {one.mean_accepted_length}, not 1"
        drafted = [one.draft_tokens > 0 for one in stats if one.emitted_tokens > 1]
        assert all(drafted) or (any(drafted) and policy is not core), "nothing was drafted"


def everything_accepted(make: Make, world: World) -> None:
    """Drafts that are always right, as deep as the policy allows: all of them are accepted, and every call emits its
    draft and one token more."""
    for temperature in (0.0, 1.3):
        parts = make()
        if parts.drafter is None:
            return
        cases = [Case.of(PROMPTS[i], seed=i, temperature=temperature, ignore_eos=True) for i in range(3)]
        wanted = plain(world, cases)
        oracle = parts.with_(drafter=Oracle(parts.drafter, texts(wanted)), verifier=Match())
        found = decode(world, oracle, cases)
        check_same(found, wanted, "everything accepted")
        for request in found:
            stats = request.choices[0].stats
            drafted, accepted, calls = stats.draft_tokens, stats.accepted_tokens, stats.target_calls
            assert drafted > 0, "nothing was drafted"
            assert accepted == drafted, f"{accepted} of {drafted} right tokens were accepted"
            assert stats.emitted_tokens == calls + accepted, (
                f"{stats.emitted_tokens} tokens from {calls} calls and {accepted} accepted tokens"
            )


def choices_are_independent(make: Make, world: World) -> None:
    """Choice i of n is the same whatever n is, and that of plain decoding."""
    three = [Case.of(PROMPTS[i], seed=i, temperature=0.7, n=3, ignore_eos=True, max_tokens=10) for i in (1, 2)]
    match = make().with_(verifier=Match())
    found = decode(world, match, three)
    check_same(found, plain(world, three), "n = 3")
    two = decode(world, make().with_(verifier=Match()), [case.with_(n=2) for case in three])
    for more, fewer in zip(found, two, strict=True):
        mine, theirs = ([c.token_ids for c in r.choices] for r in (more, fewer))
        assert mine[:2] == theirs, f"the first two of three choices are not the two of n = 2: {mine}, {theirs}"
        assert len({tuple(tokens) for tokens in mine}) == 3, f"choices repeat each other: {mine}"
    greedy = [case.with_(temperature=0.0) for case in three[:1]]
    check_same(decode(world, make(), greedy), plain(world, greedy), "n = 3 at T = 0, its own verifier")


def logprobs_are_plain(make: Make, world: World) -> None:
    """Log-probabilities asked for along with drafting are those of plain decoding."""
    cases = [case.with_(logprobs=3) for case in menu(0.7)]
    found = decode(world, make().with_(verifier=Match()), cases)
    for request, reference in zip(found, plain(world, cases), strict=True):
        mine, right = request.choices[0].logprobs or [], reference.choices[0].logprobs or []
        assert len(mine) == len(right), f"{len(mine)} log-probabilities for {len(right)} tokens"
        for place, (a, b) in enumerate(zip(mine, right, strict=True)):
            assert a.keys() == b.keys(), f"token {place}: log-probabilities of {sorted(a)}, not {sorted(b)}"
            close = all(math.isclose(a[token], b[token], abs_tol=1e-6) for token in b)
            assert close, f"token {place}: log-probabilities {a}, not {b}"


def reuses_prefixes(make: Make, world: World) -> None:
    """A request that begins like a finished one skips that part of the prefill, and its text does not change."""
    first = Case.of(PROMPTS[2], seed=1, temperature=0.7, ignore_eos=True, max_tokens=8)
    wanted = plain(world, [first])
    longer = (*first.prompt, *wanted[0].choices[0].token_ids, 4, 5)
    cases = [
        first,
        Case.of(longer, seed=2, temperature=0.7, max_tokens=8),
        Case.of((*longer[:25], 9, 9), seed=3, max_tokens=8),
        Case.of(longer[:25], seed=3, n=2, max_tokens=8),
    ]
    running = engine(world, make().with_(verifier=Match()), prefix_entries=1)
    requests = []
    for case in cases:  # one after the other
        requests.append(running.submit(case.prompt, case.params))
        drain(running)
        check_request(requests[-1])
    check_same(requests, plain(world, cases), "with reused prefixes")
    reused = [request.choices[0].stats.reused_tokens for request in requests]
    if not running.store.rewindable:
        assert not any(reused), f"{reused} tokens were reused of a store that cannot go back"
        return
    assert reused[0] == 0, f"{reused[0]} tokens reused from nothing"
    assert reused[1] >= len(first.prompt), f"only {reused[1]} of {len(longer)} prompt tokens reused"
    assert min(reused[2:]) > 20, f"{reused[2:]} of 25 common tokens reused"


CHECKS: dict[str, Callable[[Make, World], None]] = {
    "batch of 8": lambda make, world: equals_plain(make, world, 8),
    "batch of 3": lambda make, world: equals_plain(make, world, 3),
    "batch of 1": lambda make, world: equals_plain(make, world, 1),
    "guarantee": keeps_its_guarantee,
    "constraints": honours_constraints,
    "join and leave": rows_join_and_leave,
    "nothing accepted": nothing_accepted,
    "everything accepted": everything_accepted,
    "choices": choices_are_independent,
    "logprobs": logprobs_are_plain,
    "prefixes": reuses_prefixes,
    **edges.CHECKS,
}
"""Every check by name."""


def check(make: Make, world: World | None = None, only: Sequence[str] | None = None) -> dict[str, float]:
    """Run all checks, or those named in ``only``, on the parts that ``make`` builds.

    Returns the seconds each took. Raises ``AssertionError`` naming the check and what differs.
    """
    where = tiny_world() if world is None else world
    seconds = {}
    for name in CHECKS if only is None else only:
        began = time.perf_counter()
        try:
            CHECKS[name](make, where)
        except AssertionError as error:
            raise AssertionError(f"{make().name}, {name}: {error}") from error
        seconds[name] = time.perf_counter() - began
    return seconds
