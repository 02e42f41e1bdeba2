"""Tokens made readable."""

from __future__ import annotations

import pytest

from outrider.explain.words import Pieces, Texts, chance, visible
from outrider.testing.tiny import tiny_tokenizer
from outrider.testing.world import Letters


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" the", "·the"),
        ("\n\t x", "⏎⇥·x"),
        ("", '""'),
        ("\x1b[31m", "␛[31m"),
        ("\x7f", "␡"),
        ("a\u202eb", "a<202E>b"),
        ("\u200b", "<200B>"),
        ("\u00a0", "<A0>"),
        ("日本", "日本"),
        ("<b>", "<b>"),
    ],
)
def test_what_cannot_be_seen_gets_a_sign(text, shown):
    assert visible(text) == shown


def test_without_unicode_everything_is_escaped():
    assert visible(" caf\xe9\n", ascii_only=True) == "_caf\\xe9\\n"
    assert visible("", ascii_only=True).isascii()


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "?"), (0.0, "0.00"), (1.0, "1.00"), (0.5, "0.50"), (0.0004, "4e-4"), (0.999, ">.99"), (1e-12, "1e-12")],
)
def test_probabilities_in_few_characters(value, shown):
    assert chance(value) == shown


def test_texts_of_tokens():
    tokenizer = tiny_tokenizer()
    texts = Texts(tokenizer)
    blank, letter = tokenizer.encode(" a", add_special_tokens=False)
    assert (texts(blank), texts(letter)) == (" ", "a")
    assert texts(2) == "</s>"
    first = tokenizer.encode("é", add_special_tokens=False)[0]
    assert texts(first) == "<C3>"
    assert Texts()(17) == "#17"
    assert Texts(known={17: "x"})(17) == "x"
    assert Texts(Letters())(5) == "5."


def test_pieces_join_to_the_text_and_come_with_the_last_byte():
    tokenizer = tiny_tokenizer()
    tokens = tokenizer.encode("aé日!", add_special_tokens=False)
    pieces = Pieces(tokenizer).take(tokens[:2]) + Pieces(tokenizer).take([])
    assert pieces == ["a", ""]
    whole = Pieces(tokenizer)
    found = whole.take(tokens[:3]) + whole.take(tokens[3:])
    assert found == ["a", "", "é", "", "", "日", "!"]
    again = Pieces(known=found)
    assert again.take(tokens[:3]) + again.take(tokens[3:]) == found
    assert Pieces().take([1, 2]) == ["", ""]
