"""Prompt lookup against a brute-force search."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from outrider.draft.base import DraftContext
from outrider.draft.lookup import NgramIndex, PromptLookup
from outrider.rng import Draws
from outrider.run.row import Row
from outrider.types import Budget, DraftTree, Outcome

TEXT = st.lists(st.integers(0, 3), min_size=1, max_size=40)


def row(tokens: list[int], number: int = 0) -> Row:
    return Row(number, list(tokens), len(tokens), params=None, sampling=None, seed=0)  # type: ignore[arg-type]


def no_draws(rows: list[Row]) -> Draws:
    zeros = torch.zeros(len(rows), dtype=torch.int64)
    return Draws.of(zeros, zeros, torch.tensor([r.root_position for r in rows]))


def drafted(drafter: PromptLookup, rows: list[Row], budget: Budget) -> list[list[int]]:
    tree = drafter.propose(rows, budget, no_draws(rows))
    assert tree.is_chain
    assert tree.host is not None
    assert tree.tokens[:, 0].tolist() == [r.tokens[-1] for r in rows]
    assert [tokens for tokens, _ in tree.host] == [tree.tokens[b][tree.real[b]].tolist() for b in range(len(rows))]
    return [tokens[1:] for tokens, _ in tree.host]


def reference(tokens: list[int], wanted: int, occurrence: str, require_full: bool, longest: int = 3) -> list[int]:
    """Every window of length n, left to right, that something follows."""
    for n in range(longest, 0, -1):
        ends = [e for e in range(n, len(tokens)) if tokens[e - n : e] == tokens[-n:]]
        if not ends:
            continue
        full = [e for e in ends if e + wanted <= len(tokens)]
        if occurrence == "latest":
            end = full[-1] if full else ends[0]
        else:
            end = ends[0]
        if not require_full or end in full:
            return tokens[end : end + wanted]
    return []


def test_pld_equals_brute_force_on_hand_made_lists() -> None:
    def draft(tokens: list[int], occurrence: str = "first") -> list[int]:
        drafter = PromptLookup(occurrence=occurrence)  # type: ignore[arg-type]
        request = row(tokens)
        drafter.admit(request)
        return drafted(drafter, [request], Budget(3, 3))[0]

    assert draft([1, 2, 3, 7, 8, 9, 1, 2, 3]) == [7, 8, 9]  # n = 3
    assert draft([5, 2, 3, 7, 8, 9, 1, 2, 3]) == [7, 8, 9]  # n = 2
    assert draft([5, 4, 3, 7, 8, 9, 1, 2, 3]) == [7, 8, 9]  # n = 1
    assert draft([1, 2, 3, 4, 5]) == []  # only the suffix itself
    assert draft([1]) == []
    assert draft([4, 4]) == [4]  # the continuation may be the suffix
    repeated = [1, 2, 3, 7, 8, 9, 1, 2, 3, 5, 5, 5, 1, 2, 3]
    assert draft(repeated, "first") == [7, 8, 9]
    assert draft(repeated, "latest") == [5, 5, 5]


@given(TEXT, TEXT, st.integers(1, 6), st.sampled_from(["first", "latest"]), st.booleans())
def test_pld_equals_brute_force(
    prompt: list[int], output: list[int], wanted: int, occurrence: str, require_full: bool
) -> None:
    drafter = PromptLookup(require_full=require_full, occurrence=occurrence)  # type: ignore[arg-type]
    request = row(prompt)
    drafter.admit(request)
    for token in output:
        request.tokens.append(token)
        expected = reference(request.tokens, wanted, occurrence, require_full)
        assert drafted(drafter, [request], Budget(wanted, wanted)) == [expected]


def test_pld_is_bounded_by_depth_nodes_and_its_own_cap() -> None:
    request = row([1, 2, 3, 4, 5, 6, 7, 1, 2])
    for drafter, budget, size in [
        (PromptLookup(), Budget(4, 9), 4),
        (PromptLookup(), Budget(9, 3), 3),
        (PromptLookup(max_draft=2), Budget(9, 9), 2),
        (PromptLookup(), Budget(0, 0), 0),
    ]:
        drafter.admit(request)
        assert drafted(drafter, [request], budget) == [[3, 4, 5, 6, 7][:size]]


def test_pld_cuts_the_draft_before_the_first_end_of_text() -> None:
    drafter = PromptLookup()
    drafter.bind(DraftContext(None, 10, torch.device("cpu"), 1, stop_tokens=frozenset({9, 8})))  # type: ignore[arg-type]
    rows = [row([1, 2, 3, 9, 4, 8, 1, 2]), row([1, 9, 2, 1], 1)]
    for request in rows:
        drafter.admit(request)
    assert drafted(drafter, rows, Budget(5, 5)) == [[3], []]


def test_pld_serves_rows_of_unequal_drafts_and_forgets_them() -> None:
    drafter = PromptLookup()
    rows = [row([1, 2, 3, 1, 2], 7), row([5], 3), row([6, 6, 6], 4)]
    for request in rows:
        drafter.admit(request)
    assert drafted(drafter, rows, Budget(2, 2)) == [[3, 1], [], [6]]
    clone = row(rows[0].tokens, 8)
    drafter.fork(rows[0], clone)
    rows[0].tokens += [3, 9]
    clone.tokens += [3, 1, 2]
    drafter.observe(Outcome(rows=[rows[0], clone], tree=DraftTree.roots([9, 2]), verdict=None, emitted=[[], []]))
    assert drafted(drafter, [clone, rows[0]], Budget(1, 1)) == [[3], []]
    for request in [*rows, clone]:
        drafter.drop(request)
    assert not drafter._index


@given(TEXT)
def test_the_index_lists_every_earlier_occurrence(tokens: list[int]) -> None:
    index = NgramIndex(1, 3)
    index.extend(tokens[: len(tokens) // 2])
    index.extend(tokens)
    for n in index.orders:
        for gram, end in index.latest[n].items():
            ends = [end]
            while end != index.first[n][gram]:
                end = index.earlier[n][end]
                ends.append(end)
            assert ends[::-1] == [e for e in range(n, len(tokens)) if tuple(tokens[e - n : e]) == gram]


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match="min_ngram=4 and max_ngram=3"):
        PromptLookup(min_ngram=4)
    with pytest.raises(ValueError, match="occurrence='last'"):
        PromptLookup(occurrence="last")  # type: ignore[arg-type]
