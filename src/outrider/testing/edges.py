"""Where texts end: stop tokens and stop strings inside drafts, limits, full caches, prompts of every length.

Part of the conformance suite. Drafts that are always right (``Oracle``) make sure that every end is really met in
the middle of an accepted draft; the preset's own drafter is run beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from outrider.errors import RequestError
from outrider.parts import Parts
from outrider.run.engine import Engine
from outrider.testing.decode import Case, Make, check_same, decode, engine, plain, texts
from outrider.testing.drafters import Oracle
from outrider.testing.world import World
from outrider.verify.match import Match

PROMPT = (5, 6, 7, 8, 5, 6, 7, 8, 5)


def _both(make: Make, world: World, cases: Sequence[Case], temperature: float) -> list[Parts]:
    """The parts with ``Match``, and the same with drafts of what plain decoding says when nothing stops it."""
    parts = make()
    ways = [parts.with_(verifier=Match())]
    if parts.drafter is not None:
        free = [
            Case.of(case.prompt, seed=case.params.seed, temperature=temperature, max_tokens=30, ignore_eos=True)
            for case in cases
        ]
        other = make()
        assert other.drafter is not None
        oracle = Oracle(other.drafter, texts(plain(world, free)))
        ways.append(other.with_(drafter=oracle, verifier=Match()))
    return ways


def _free_text(world: World, temperature: float) -> list[int]:
    case = Case.of(PROMPT, temperature=temperature, max_tokens=30, ignore_eos=True)
    return plain(world, [case])[0].choices[0].token_ids


def stop_token_in_draft(make: Make, world: World) -> None:
    """A stop token ends the text where it stands, whatever was accepted behind it."""
    for temperature in (0.0, 0.7):
        text = _free_text(world, temperature)
        places = [i for i, token in enumerate(text[:12]) if token not in text[:i] and i]
        cases = [
            Case.of(PROMPT, temperature=temperature, ignore_eos=True, max_tokens=16, stop_token_ids=[text[i]])
            for i in places[:6]
        ]
        wanted = plain(world, cases)
        for parts in _both(make, world, cases, temperature):
            found = decode(world, parts, cases)
            check_same(found, wanted, "a stop token in a draft")
            for place, request in zip(places, found, strict=False):
                (choice,) = request.choices
                assert len(choice.token_ids) == place + 1, f"stopped after {len(choice.token_ids)}, not {place + 1}"
                assert choice.stop_reason == text[place], f"stopped by {choice.stop_reason}, not {text[place]}"


def end_of_text_in_draft(make: Make, world: World) -> None:
    """The model's own end token, unless ``ignore_eos``; held back by ``min_tokens``."""
    text = _free_text(world, 0.7)
    place = next(i for i in range(3, 12) if text[i] not in text[:i])
    ends = World(world.target, world.draft, world.tokenizer, (text[place],))
    cases = [
        Case.of(PROMPT, temperature=0.7),
        Case.of(PROMPT, temperature=0.7, ignore_eos=True),
        Case.of(PROMPT, temperature=0.7, min_tokens=place + 3),
    ]
    wanted = plain(ends, cases)
    lengths = [len(request.choices[0].token_ids) for request in wanted]
    assert lengths[0] == place + 1, f"plain decoding stopped after {lengths[0]} tokens, not {place + 1}"
    assert lengths[1] == 16, f"ignore_eos stopped after {lengths[1]} tokens"
    assert lengths[2] >= place + 3, f"min_tokens={place + 3} stopped after {lengths[2]} tokens"
    for parts in _both(make, world, cases, 0.7):
        check_same(decode(ends, parts, cases), wanted, "end of text in a draft")


def stop_string_across_tokens(make: Make, world: World) -> None:
    """Stop strings that begin in one token and end in another, at every place, so that one of them also begins
    in one draft and ends in the next."""
    if world.tokenizer is None:
        return
    decoded = world.tokenizer.decode(_free_text(world, 0.7))
    stops = [decoded[i : i + 3] for i in range(2, 10)]
    cases = [Case.of(PROMPT, temperature=0.7, ignore_eos=True, max_tokens=20, stop=[stop, "#"]) for stop in stops]
    cases.append(cases[0].with_(stop=(stops[0], stops[0][1:], decoded[12:15]), min_tokens=6))
    wanted = plain(world, cases)
    for stop, request in zip(stops, wanted, strict=False):
        (choice,) = request.choices
        assert choice.text == decoded[: decoded.index(stop)], f"{choice.text!r} is not cut before {stop!r}"
        assert choice.finish_reason == "stop", f"finish_reason is {choice.finish_reason!r}"
        assert choice.stop_reason == stop, f"stop_reason is {choice.stop_reason!r}, not {stop!r}"
    for parts in _both(make, world, cases, 0.7):
        check_same(decode(world, parts, cases), wanted, "a stop string across tokens")


def pieces_make_the_text(make: Make, world: World) -> None:
    """The streamed pieces, put together, are the text: nothing is sent that a stop string takes back."""
    decoded = "" if world.tokenizer is None else world.tokenizer.decode(_free_text(world, 0.7))
    stop = (decoded[7:10],) if decoded else ()
    cases = [Case.of(PROMPT, temperature=0.7, ignore_eos=True, stop=stop), Case.of(PROMPT, seed=3, temperature=1.3)]
    for parts in _both(make, world, cases, 0.7)[:1]:
        running = engine(world, parts)
        requests = [running.submit(case.prompt, case.params) for case in cases]
        sent = {request.id: "" for request in requests}
        tokens: dict[int, list[int]] = {request.id: [] for request in requests}
        while not running.idle:
            for emission in running.step():
                sent[emission.request.id] += emission.text
                tokens[emission.request.id] += emission.token_ids
        for request in requests:
            (choice,) = request.choices
            assert sent[request.id] == choice.text, f"sent {sent[request.id]!r}, the text is {choice.text!r}"
            assert tokens[request.id] == choice.token_ids, "the streamed tokens are not the choice's"


def max_tokens_in_draft(make: Make, world: World) -> None:
    """Every ``max_tokens`` from 1 up is met exactly, side by side."""
    text = _free_text(world, 0.7)
    cases = [Case.of(PROMPT, temperature=0.7, ignore_eos=True, max_tokens=m) for m in range(1, 9)]
    for parts in _both(make, world, cases, 0.7):
        for size, request in enumerate(decode(world, parts, cases), start=1):
            (choice,) = request.choices
            assert choice.token_ids == text[:size], f"max_tokens={size}: {choice.token_ids}, not {text[:size]}"
            assert choice.finish_reason == "length", f"finish_reason is {choice.finish_reason!r}"


def context_nearly_full(make: Make, world: World) -> None:
    """A context with room for a few tokens: they come, with finish_reason "length", and nothing breaks."""
    for room in (1, 3, 6):
        cases = [Case.of(PROMPT, temperature=t, seed=s, ignore_eos=True, max_tokens=25) for t, s in ((0, 0), (0.7, 0))]
        cases.append(Case.of(PROMPT[:4], temperature=0.7, ignore_eos=True, max_tokens=4))
        limits = {"max_context": len(PROMPT) + room}
        wanted = plain(world, cases, **limits)
        for parts in _both(make, world, cases, 0.7):
            found = decode(world, parts, cases, **limits)
            check_same(found, wanted, f"room for {room} tokens")
            for request in found[:2]:
                (choice,) = request.choices
                assert (len(choice.token_ids), choice.finish_reason) == (room, "length"), (
                    f"{len(choice.token_ids)} tokens, {choice.finish_reason!r}; there is room for {room}"
                )


def few_nodes(make: Make, world: World) -> None:
    """``max_nodes`` so small that drafts are cut, or that there is no room for any."""
    cases = [Case.of(PROMPT, seed=s, temperature=0.7, max_tokens=10) for s in range(4)]
    wanted = plain(world, cases)
    for nodes in (3, 16):
        parts = make().with_(verifier=Match())
        check_same(decode(world, parts, cases, max_nodes=nodes), wanted, f"max_nodes={nodes}")


def prompts_of_every_length(make: Make, world: World) -> None:
    """None, one token, several prefill chunks, more than the window."""
    long = tuple((7 * i) % world.vocab for i in range(90))
    cases = [
        Case.of((9,), seed=4, temperature=0.7, max_tokens=8),
        Case.of(long, seed=5, temperature=0.7, max_tokens=8),
        Case.of(PROMPT, seed=6, max_tokens=8),
    ]
    wanted = plain(world, cases)
    for chunk in (2048, 48):
        parts = make().with_(verifier=Match())
        check_same(decode(world, parts, cases, prefill_tokens=chunk), wanted, f"prefill in chunks of {chunk}")
    running = engine(world, make(), max_context=40)
    for prompt, word in (((), "empty"), (long, "90 tokens"), ((world.vocab,), "outside the vocabulary")):
        said = _refusal(running, Case(prompt, cases[0].params))
        assert word in said, f"the error for a prompt of {len(prompt)} tokens does not say {word!r}: {said!r}"
    assert running.idle, "a refused prompt is waiting"


def _refusal(running: Engine, case: Case) -> str:
    """The message of the ``RequestError``, empty when the request was taken."""
    try:
        running.submit(case.prompt, case.params)
    except RequestError as error:
        return str(error)
    return ""


CHECKS: dict[str, Callable[[Make, World], None]] = {
    "stop token": stop_token_in_draft,
    "end of text": end_of_text_in_draft,
    "stop string": stop_string_across_tokens,
    "pieces": pieces_make_the_text,
    "max tokens": max_tokens_in_draft,
    "full context": context_nearly_full,
    "few nodes": few_nodes,
    "prompts": prompts_of_every_length,
}
