"""Running means of what is accepted of the first k nodes, and drafts held against the text."""

from __future__ import annotations

import numpy as np
import pytest

from outrider.policy.acceptance import EDGES, Book, Branched, Chained, Followed, Kind, chain_tokens, ladder

KIND = Kind(0, "draft")
TREES = Kind(0, "draft", 3, branching=True)


def test_ladders_end_at_the_draft_itself() -> None:
    assert ladder(0) == (0,)
    assert ladder(3) == (0, 1, 2, 3)
    assert ladder(11) == (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11)
    assert ladder(10_000)[-1] == EDGES[-1]


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9, 1.0])
def test_tokens_of_a_chain_are_the_sum_of_its_acceptances(alpha: float) -> None:
    for length in range(6):
        assert chain_tokens(alpha, length) == pytest.approx(sum(alpha**j for j in range(length + 1)))


def chance(alpha: float, length: int, rng: np.random.Generator) -> list[int]:
    """Accepted nodes of a chain each of whose tokens stands with probability ``alpha``."""
    stand = np.cumprod(rng.random(length) < alpha)
    return [j for j in range(1, length + 1) if stand[j - 1]]


@pytest.mark.parametrize("alpha", [0.2, 0.7, 0.95])
def test_the_means_find_the_closed_form(alpha: float) -> None:
    rng, book = np.random.default_rng(0), Book()
    found = []
    for _ in range(600):
        book.add(KIND, 0, chance(alpha, 12, rng), 12)
        found.append(book.gains(KIND, None, 12))
    mean = np.mean(found[100:], axis=0)
    closed = [chain_tokens(alpha, k) - 1 for k in ladder(12)]
    assert mean == pytest.approx(closed, rel=0.08, abs=0.03)
    wrong = [chain_tokens(alpha * 0.8, k) - 1 for k in ladder(12)]
    assert mean != pytest.approx(wrong, rel=0.08, abs=0.03)


def test_nodes_of_trees_count_by_their_index() -> None:
    seen = Branched(100)
    for _ in range(4):
        seen.add([2, 5], 6)  # the second child of the root, and a child of it
    assert [round(rate) for rate in seen.rate[:7]] == [0, 0, 1, 0, 0, 1, 0]
    assert seen.weight[7] == 0
    assert seen.gains(seen.rate, ladder(6)) == [0, 0, 1, 1, 1, 2, 2]


def test_tokens_of_chains_are_judged_where_their_predecessor_stands() -> None:
    seen = Chained(100)
    for _ in range(3):
        seen.add([1, 2], 4)
    assert seen.rate[1:4] == [1, 1, 0]
    assert seen.weight[1:5] == [3, 3, 3, 0], "the fourth was never reached"
    assert seen.gains(seen.rate, ladder(4)) == [0, 1, 2, 2, 2]


def test_what_lies_behind_what_was_seen_is_left_alone() -> None:
    seen = Chained(100)
    seen.add([1, 2, 3], 3)
    seen.add(list(range(1, 10)), 9)
    assert seen.rate[1:9] == [1.0] * 8
    assert seen.weight[1:4] == [2, 2, 2]
    assert seen.weight[4:9] == [1] * 5
    assert seen.weight[9] == pytest.approx(0.5), "one of the two nodes of that bucket"


def test_a_time_in_which_first_tokens_fail_says_nothing_of_later_ones() -> None:
    book = Book()
    for hits in [[1, 2, 3, 4]] * 20 + [[]] * 200 + [[1]] * 60:
        book.add(KIND, 0, hits, 4 if len(hits) != 1 else 1)
    assert book.gains(KIND, 0, 4)[-1] > 3.5


def test_evidence_of_nodes_of_trees_that_are_no_longer_drafted_fades() -> None:
    book = Book()
    for _ in range(100):
        book.add(TREES, 0, [], 8)
    for _ in range(200):
        book.add(TREES, 0, [1], 2)
    gains = book.gains(TREES, 0, 8)
    assert gains[1] == pytest.approx(1, abs=0.05)
    assert gains[8] > gains[2] + 0.1


def test_small_trees_tell_what_large_ones_are_worth_on_the_whole() -> None:
    large = TREES._replace(size=6)
    first = Book().gains(large, 0, 40)[-1]
    for share in (1.0, 0.25):
        book = Book()
        for i in range(400):
            book.add(TREES, 0, [2, 4] if (i * share) % 1 < share else [], 4)
        ratio = book.gains(large, 0, 40)[-1] / first
        assert ratio == pytest.approx(share * 2 / 1.46, rel=0.1)


@pytest.mark.parametrize("kind", [KIND, TREES])
def test_the_start_is_optimistic_and_evidence_ends_it(kind: Kind) -> None:
    book = Book()
    assert book.gains(kind, 0, 4)[1] > 0.5
    for _ in range(20):
        book.add(kind, 0, [], 4)
    assert book.gains(kind, 0, 4)[-1] < 0.1


def test_a_request_leans_on_the_others_until_it_has_shown_itself() -> None:
    book = Book()
    for _ in range(50):
        book.add(KIND, 0, [], 4)
    others = book.gains(KIND, 1, 4)
    assert others == book.gains(KIND, None, 4), "nothing is known of request 1"
    for _ in range(12):
        book.add(KIND, 1, [1, 2, 3, 4], 4)
    assert book.gains(KIND, 1, 4)[-1] > 2.5
    assert book.gains(KIND, 0, 4)[-1] < 1
    assert book.gains(KIND, 0, 4)[-1] < book.gains(KIND, None, 4)[-1] < book.gains(KIND, 1, 4)[-1]


def test_long_proposals_are_judged_apart_from_short_ones() -> None:
    book = Book()
    for _ in range(30):
        book.add(Kind(0, "sam", 2), 0, [], 3)
        book.add(Kind(0, "sam", 6), 0, list(range(1, 41)), 40)
    assert book.gains(Kind(0, "sam", 2), 0, 3)[-1] < 0.5
    assert book.gains(Kind(0, "sam", 6), 0, 40)[-1] > 30


def test_a_pause_makes_old_evidence_thin() -> None:
    book = Book()
    for _ in range(50):
        book.add(KIND, 0, [], 4)
    kept = Book()
    for _ in range(50):
        kept.add(KIND, 0, [], 4)
    book.age(0, [0])
    for b in (book, kept):
        b.add(KIND, 0, [1, 2, 3, 4], 4)
    assert book.gains(KIND, 0, 4)[-1] > 1.3 * kept.gains(KIND, 0, 4)[-1]


def test_requests_that_are_gone_are_forgotten() -> None:
    book = Book()
    book.add(KIND, 0, [], 4)
    book.add(KIND, 1, [1, 2, 3, 4], 4)
    book.keep([0])
    assert book.gains(KIND, 1, 4) == book.gains(KIND, None, 4)
    assert book.gains(KIND, 0, 4) != book.gains(KIND, None, 4)


TREE = ([9, 1, 2, 3, 4, 5], [-1, 0, 0, 1, 2, 4])
"""Under the root 9: 1 with child 3, and 2 with child 4 with child 5."""


@pytest.mark.parametrize(
    ("emitted", "hits", "known"),
    [
        ([[2, 4]], [2, 4], False),
        ([[2], [4], [5]], [2, 4, 5], True),
        ([[2], [7]], [2], True),
        ([[7]], [], True),
        ([[1, 3, 8]], [1, 3], True),
        ([[1], [3]], [1, 3], True),
        ([[4]], [], True),
    ],
)
def test_a_draft_is_followed_along_the_text(emitted: list[list[int]], hits: list[int], known: bool) -> None:
    followed = Followed(KIND, *TREE)
    done = [followed.follow(tokens) for tokens in emitted]
    assert followed.hits == hits
    assert done == [False] * (len(emitted) - 1) + [known]
