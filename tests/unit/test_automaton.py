"""Suffix automata and `sam` against brute force."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from outrider.draft.automaton import START, Cursor, Match, SuffixAutomaton, SuffixDrafter
from outrider.draft.base import DraftContext, Drafter
from outrider.draft.mix import Priority
from outrider.rng import Draws
from outrider.run.row import Row
from outrider.types import Budget, DraftTree, Outcome

TEXT = st.lists(st.integers(0, 3), max_size=32)  # `latest` is exact for runs up to this long


def row(tokens: list[int], number: int = 0) -> Row:
    return Row(number, list(tokens), len(tokens), params=None, sampling=None, seed=0)  # type: ignore[arg-type]


def draft(drafter: Drafter, request: Row, budget: Budget) -> list[int]:
    zeros = torch.zeros(1, dtype=torch.int64)
    tree = drafter.propose([request], budget, Draws.of(zeros, zeros, zeros + request.root_position))
    assert tree.tokens[0, 0] == request.tokens[-1]
    assert tree.is_chain
    return tree.tokens[0, 1:].tolist()


def ends_of(text: list[int], part: list[int]) -> list[int]:
    return [e for e in range(len(part), len(text) + 1) if text[e - len(part) : e] == part]


def longest_repeat(text: list[int]) -> tuple[int, list[int]]:
    """Length and earlier end positions of the longest suffix that also ends earlier."""
    for length in range(len(text) - 1, 0, -1):
        ends = ends_of(text, text[-length:])[:-1]
        if ends:
            return length, ends
    return 0, []


@given(TEXT)
def test_the_automaton_knows_exactly_the_substrings(text: list[int]) -> None:
    automaton = SuffixAutomaton(text)
    assert len(automaton) <= max(2, 2 * len(text))
    for start in range(len(text)):
        for end in range(start + 1, len(text) + 1):
            part = text[start:end]
            state = automaton.find(part)
            assert automaton.min_endpos[state] == ends_of(text, part)[0]
            assert automaton.length[automaton.link[state]] < len(part) <= automaton.length[state]
    parts = {tuple(text[a:b]) for a in range(len(text)) for b in range(a, len(text) + 1)} | {()}
    for part in parts:
        follow = automaton.transitions(automaton.find(part))
        assert set(follow) == {token for token in range(4) if (*part, token) in parts}
        assert all(automaton.next(automaton.find(part), token) == state for token, state in follow.items())


@given(TEXT)
def test_sam_cursor_equals_brute_force(text: list[int]) -> None:
    """The cursor that consumes before the text is extended, and the suffix link of the whole text, both give
    the longest suffix that occurs earlier, at every position."""
    automaton = SuffixAutomaton()
    cursor = Cursor(automaton)
    for n, token in enumerate(text, start=1):
        cursor.consume(token)
        automaton.extend(token)
        length, ends = longest_repeat(text[:n])
        state, repeated = automaton.repeat()
        assert (cursor.length, repeated) == (length, length)
        cursor.settle()
        assert cursor.state == state
        if length:
            assert automaton.min_endpos[state] == ends[0]
            assert automaton.latest[state] == ends[-1]


@given(st.lists(st.integers(0, 3), max_size=300))
def test_sam_link_steps_are_amortised(text: list[int]) -> None:
    automaton = SuffixAutomaton()
    cursor = Cursor(automaton)
    for token in text:
        cursor.consume(token)
        automaton.extend(token)
    assert cursor.steps <= 2 * len(text)


@given(TEXT, TEXT)
def test_a_cursor_reads_a_stream_against_another_text(corpus: list[int], stream: list[int]) -> None:
    cursor = Cursor(SuffixAutomaton(corpus))
    for n, token in enumerate(stream, start=1):
        cursor.consume(token)
        longest = max(k for k in range(n + 1) if k == 0 or ends_of(corpus, stream[n - k : n]))
        assert cursor.length == longest
        assert cursor.state == (cursor.automaton.find(stream[n - longest : n]) if longest else START)


@given(TEXT, TEXT, TEXT)
def test_copies_are_independent(text: list[int], one: list[int], two: list[int]) -> None:
    automaton = SuffixAutomaton(text)
    other = automaton.copy()
    for token in one:
        automaton.extend(token)
    for token in two:
        other.extend(token)
    for grown, whole in [(automaton, text + one), (other, text + two)]:
        fresh = SuffixAutomaton(whole)
        assert all(getattr(grown, name) == getattr(fresh, name) for name in SuffixAutomaton.__slots__)


def test_a_long_run_of_one_token_stays_cheap_and_right() -> None:
    automaton = SuffixAutomaton([7] * 500)
    state, length = automaton.repeat()
    assert (length, automaton.min_endpos[state], automaton.latest[state]) == (499, 499, 499)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=32), st.integers(1, 12), st.sampled_from([None, 1.0]))
def test_sam_drafts_equal_brute_force(text: list[int], cap: int, alpha: float | None) -> None:
    length, ends = longest_repeat(text)
    wanted = cap if alpha is None else min(cap, int(1 + alpha * length))
    for occurrence in ("first", "latest"):
        drafter = SuffixDrafter(max_draft=cap, alpha=alpha, occurrence=occurrence)  # type: ignore[arg-type]
        request = row(text[:1])
        drafter.admit(request)
        request.tokens += text[1:]
        if not length:
            expected = []
        elif occurrence == "latest":
            copied = list(text)  # a copy may run into what it has just written
            for i in range(wanted):
                copied.append(copied[ends[-1] + i])
            expected = copied[len(text) :]
        else:
            # climb: the longest suffix whose first occurrence leaves room, or else the shortest one
            firsts = {k: ends_of(text, text[-k:])[0] for k in range(length, 0, -1)}
            start = next((e for e in firsts.values() if e + wanted <= len(text)), firsts[1])
            expected = text[start : start + wanted]
        assert draft(drafter, request, Budget(99, 99)) == expected


def test_sam_bounds_cuts_and_refuses() -> None:
    text = [1, 2, 3, 4, 5, 9, 6, 1, 2, 3]
    request = row(text)
    target: Any = None
    context = DraftContext(target, 10, torch.device("cpu"), 1, stop_tokens=frozenset({9}))
    for drafter, budget, expected in [
        (SuffixDrafter(alpha=None), Budget(60, 60), [4, 5]),  # 9 ends the text
        (SuffixDrafter(alpha=None), Budget(1, 60), [4]),
        (SuffixDrafter(alpha=None), Budget(60, 1), [4]),
        (SuffixDrafter(alpha=None), Budget(0, 0), []),
        (SuffixDrafter(alpha=0.0), Budget(60, 60), [4]),  # 1 + 0 x 3
        (SuffixDrafter(min_match=3), Budget(60, 60), [4, 5]),
        (SuffixDrafter(min_match=4), Budget(60, 60), []),
    ]:
        drafter.bind(context)
        drafter.admit(request)
        assert drafter.match(request) == Match(3, 3)
        assert draft(drafter, request, budget) == expected
    with pytest.raises(ValueError, match="max_draft=0"):
        SuffixDrafter(max_draft=0)
    with pytest.raises(ValueError, match="occurrence='newest'"):
        SuffixDrafter(occurrence="newest")  # type: ignore[arg-type]


def test_sam_forks_and_forgets() -> None:
    drafter = SuffixDrafter()
    request, clone = row([1, 2, 3, 1], 1), row([1, 2, 3, 1], 2)
    drafter.admit(request)
    drafter.fork(request, clone)
    request.tokens += [2]
    clone.tokens += [7, 3]
    drafter.observe(Outcome(rows=[request, clone], tree=DraftTree.roots([2, 3]), verdict=None, emitted=[[2], [3]]))
    assert draft(drafter, request, Budget(2, 2)) == [3, 1]
    assert draft(drafter, clone, Budget(2, 2)) == [1, 7]
    drafter.drop(request)
    drafter.drop(clone)
    drafter.observe(Outcome(rows=[request], tree=DraftTree.roots([2]), verdict=None, emitted=[[]]))
    assert not drafter._texts


class Recorder(Drafter):
    """An auxiliary drafter that says when it was asked."""

    name = "auxiliary"

    def __init__(self) -> None:
        self.asked: list[int] = []

    def propose(self, rows: Sequence[Row], budget: Budget, draws: Draws) -> DraftTree:
        self.asked += [r.id for r in rows]
        return DraftTree.build([([r.tokens[-1], 0], [-1, 0]) for r in rows], origin=self.name)


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=40), min_size=1, max_size=4))
def test_sam_selector_calls_the_auxiliary_drafter_exactly_below_the_threshold(texts: list[list[int]]) -> None:
    auxiliary = Recorder()
    both = Priority([SuffixDrafter(max_draft=40, alpha=None, min_match=5), auxiliary])
    rows = [row(text, number) for number, text in enumerate(texts)]
    for request in rows:
        both.admit(request)
    zeros = torch.zeros(len(rows), dtype=torch.int64)
    both.propose(rows, Budget(40, 80, 8), Draws.of(zeros, zeros, zeros))
    assert auxiliary.asked == [r.id for r in rows if longest_repeat(r.tokens)[0] < 5]
