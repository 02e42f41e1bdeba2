"""Characters and their colours: unfinished characters, stop strings, wide text, line breaks."""

from __future__ import annotations

import io
import re
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
from rich.console import Console

from outrider.certify.identity import Difference
from outrider.cli._paint import Palette, Runs, Writer
from outrider.cli._report import histogram, verdict
from outrider.testing.tiny import tiny_tokenizer


def emissions(tokens, texts, names):
    """One emission per token, with the text that the engine released after it."""
    for token, text, name in zip(tokens, texts, names, strict=True):
        yield SimpleNamespace(token_ids=[token], origins=[SimpleNamespace(name=name)], text=text)


def test_an_unfinished_character_belongs_to_the_token_that_finishes_it():
    tokenizer = tiny_tokenizer()
    tokens = tokenizer.encode("a世b")
    assert len(tokens) == 5
    runs = Runs(tokenizer)
    pieces = [
        runs.take(e) for e in emissions(tokens, ["a", "", "", "世", "b"], ["target", "sam", "sam", "pld", "target"])
    ]
    assert pieces == [[("a", "target")], [], [], [("世", "pld")], [("b", "target")]]
    assert runs.counts == {"target": 2, "sam": 2, "pld": 1}


def test_text_held_back_for_a_stop_string_keeps_its_owners():
    tokenizer = tiny_tokenizer()
    tokens = tokenizer.encode("abcd")
    runs = Runs(tokenizer)
    pieces = [
        run for e in emissions(tokens, ["", "", "abc", ""], ["target", "sam", "target", "sam"]) for run in runs.take(e)
    ]
    assert pieces == [("a", "target"), ("b", "sam"), ("c", "target")]


def shown(text, width=20, colour=False, step=3):
    """What a terminal of ``width`` gets when ``text`` arrives in small pieces."""
    screen = io.StringIO()
    system = "standard" if colour else None
    console = Console(file=screen, force_terminal=True, width=width, color_system=system, _environ={})
    writer = Writer(console, Palette("sam"))
    for at in range(0, len(text), step):
        writer.write([(text[at : at + step], "sam" if at % 2 else "target")])
    writer.end()
    return screen.getvalue()


@pytest.mark.parametrize("step", [1, 2, 3, 7, 50])
def test_lines_break_between_words(step):
    text = "the quick brown fox jumps over the lazy dog and sleeps"
    lines = shown(text, step=step).splitlines()
    assert all(len(line) <= 20 for line in lines)
    assert " ".join(lines) == text


@pytest.mark.parametrize("text", ["世界" * 20, "ab " + "漢字かな交じり文" * 5])
def test_wide_characters_break_anywhere(text):
    from rich.cells import cell_len

    lines = shown(text).splitlines()
    assert all(cell_len(line) <= 20 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize(
    "text",
    [
        "```python\ndef a_rather_long_name(and_, many, arguments):\n    return and_, many, arguments\n```",
        "    indented by four and longer than a line may be",
        "| a table | with cells | that would | break |",
        "a-word-that-is-longer-than-the-whole-line",
        "trailing blanks   \n\n\nand empty lines\n",
    ],
)
def test_code_and_long_words_are_left_alone(text):
    assert [line.rstrip() for line in shown(text).splitlines()] == [line.rstrip() for line in (text).splitlines()]


def test_control_characters_cannot_reach_the_terminal():
    assert "\x1b" not in shown("a\x1b[2Jb\x07\x9b")
    assert "␛[2Jb␇" in shown("a\x1b[2Jb\x07")


def test_colour_of_a_drafter_and_none_of_the_target():
    out = shown("ab cd", colour=True, step=3)
    assert re.search(r"\x1b\[32mcd\x1b\[0m", out)
    assert out.startswith("ab")


def test_not_a_terminal_gets_the_text_as_it_is():
    screen = io.StringIO()
    writer = Writer(Console(file=screen, width=10, _environ={}), Palette())
    text = "a line much longer than ten \x1b[0m 世"
    writer.write([(text, "sam")])
    writer.end()
    assert screen.getvalue() == text + "\n"


def test_an_encoding_that_cannot_print_it_gets_question_marks():
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    writer = Writer(Console(file=file, _environ={}), Palette())
    writer.write([("a世b", "sam")])
    writer.end()
    assert raw.getvalue() == b"a?b\n"


def test_names_keep_their_colours():
    palette = Palette("sam|token-recycling")
    styles = [palette.style(name) for name in ("token-recycling", "sam", "other", "target")]
    assert len(set(styles)) == 4
    assert styles[3] == ""
    assert [palette.style(name) for name in ("sam", "other")] == styles[1:3]


def test_histogram_groups_what_is_long():
    screen = io.StringIO()
    histogram(Console(file=screen, width=80, _environ={}), [10, 0, 3, 0, 0, 1, 1] + [0] * 30 + [2])
    lines = screen.getvalue().splitlines()
    assert lines[0].split()[1:-4] == ["0", "1", "2", "3", "4", "5-8", "9-16", "17-32", "33+"]
    assert lines[-1].split() == ["10", "·", "3", "·", "·", "2", "·", "·", "2", "calls"]
    assert all(len(line) < 80 for line in lines)


def test_a_tie_is_called_one():
    tie = Difference(3, 7, 9, gap=1e-6, tolerance=1e-4, kind="tie")
    assert "a tie: the two logits are 1e-06 apart" in verdict(_block(tie))
    wrong = verdict(_block(replace(tie, gap=0.5, kind="wrong")))
    assert "no tie: the two logits are 0.5 apart" in wrong
    assert "outrider verify" in wrong
    assert "distribution" in verdict(_block(replace(tie, gap=None, tolerance=None, kind="drawn")))
    draw = replace(tie, unit="probability")
    assert "the draw lies 1e-06 from the boundary" in verdict(_block(draw))


def _block(found):
    at = asdict(found) | {"preset_text": "a", "plain_text": "b", "why": found.words()}
    return {"identical": False, "first_difference": at, "dtype": "float32"}
