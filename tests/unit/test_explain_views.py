"""The views: the terminal and the page."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from rich.console import Console

from outrider.cli._paint import Palette
from outrider.explain import Explainer, Fate, summarise
from outrider.explain.page import page
from outrider.explain.record import Bonus, Explanation, Node, Step
from outrider.explain.screen import View, show, show_summary, show_trials
from outrider.explain.sweep import Trial
from outrider.explain.watch import Labels
from outrider.params import SamplingParams
from outrider.registry import preset
from outrider.run.request import Stats
from outrider.testing.decode import engine
from outrider.testing.world import tiny_world

EVIL = '</script><img src=x onerror="alert(1)">'


def explained(spec, **params) -> Explanation:
    running = engine(tiny_world(), preset(spec), max_rows=1)
    explainer = Explainer(running, Labels("tiny", spec))
    return explainer.explain((3, 9) * 9, SamplingParams(**{"seed": 1, "max_tokens": 24, "ignore_eos": True} | params))


@pytest.fixture(scope="module")
def wide() -> Explanation:
    return explained("pld+token-recycling(nodes=20)", temperature=0.7)


def printed(explanation, encoding="utf-8", full=False, width=100, steps=None) -> str:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, errors="strict")
    console = Console(file=stream, width=width, highlight=False, markup=False, emoji=False)
    view = View(console, Palette(explanation.drafters), explanation.greedy, full)
    show(view, explanation, explanation.steps if steps is None else steps)
    show_summary(view, explanation, summarise(explanation))
    stream.flush()
    return raw.getvalue().decode(encoding)


def test_the_screen_shows_every_accepted_and_added_token(wide):
    for full in (False, True):
        text = printed(wide, full=full)
        for step in wide.steps:
            for index in step.path:
                assert step.nodes[index].text in text
        assert text.count("✗") >= 1
        assert "tokens per call" in text
        assert "by depth" in text


def test_full_shows_every_node_on_its_own_line(wide):
    lines = printed(wide, full=True, width=300).splitlines()
    marks = [line for line in lines if re.search(r"[├└]", line)]
    nodes = sum(step.drafted for step in wide.steps) + sum(step.bonus is not None for step in wide.steps)
    assert len(marks) == nodes
    short = printed(wide, width=300).splitlines()
    assert len(short) < len(lines) / 2
    assert any("below)" in line for line in short)
    for step in wide.steps:
        for node in step.nodes:
            if node.fate is Fate.REJECTED:
                assert any(node.reason in line for line in marks)


def test_steps_without_a_draft_share_a_line(wide):
    text = printed(wide)
    quiet = re.findall(r"steps (\d+)-(\d+)  no draft", text)
    assert quiet
    first, last = map(int, quiet[0])
    assert all(not step.drafted for step in wide.steps[first : last + 1])


def test_a_terminal_without_unicode_gets_ascii(wide):
    text = printed(wide, encoding="ascii")
    assert text.isascii()
    assert "x " in text
    assert printed(wide, encoding="ascii", full=True).isascii()


def test_no_steps(wide):
    empty = replace(wide, steps=(), finish_reason="cancelled")
    text = printed(empty)
    assert "no step" in text
    assert "interrupted" in text
    assert "interrupted" in page(empty)


def test_a_table_of_trials():
    raw = io.StringIO()
    console = Console(file=raw, width=80, highlight=False, markup=False, emoji=False)
    good = Trial("pld(depth=8,min_ngram=1)", calls=10, tokens=25, drafted=30, accepted=15)
    show_trials(console, [good, Trial("plain", calls=25, tokens=25), Trial("auto", refused="it needs [logits]")])
    lines = raw.getvalue().splitlines()
    row = next(line.split() for line in lines if "pld(" in line)
    assert row == ["pld(depth=8,min_ngram=1)", "2.50", "10", "30", "2.00"]
    assert next(line.split() for line in lines if "plain" in line) == ["plain", "1.00", "25", "0", "-"]
    assert any("it needs [logits]" in line for line in lines)
    assert not any("speed-up" in line for line in lines)


VOID = {"meta", "input", "br", "rect", "img", "link"}


class Reader(HTMLParser):
    """Collects what a page refers to, and checks that its elements close."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open, self.ids, self.links, self.outside, self.tags = [], [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        if "id" in values:
            self.ids.append(values["id"])
        if tag == "a":
            self.links.append(values["href"])
        self.outside += [values[name] for name in ("src", "action") if name in values]

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_alone(wide):
    html = page(wide)
    found = Reader(html)
    assert not found.open
    assert len(set(found.ids)) == len(found.ids)
    steps = {f"s{step.index}" for step in wide.steps}
    assert steps <= set(found.ids)
    assert {link.removeprefix("#") for link in found.links} == steps
    assert not found.outside
    assert "http" not in html
    assert "@import" not in html
    nodes = sum(step.drafted for step in wide.steps) + sum(step.bonus is not None for step in wide.steps)
    repeated = 0  # a rejected node heads its own subtree once more
    for step in wide.steps:
        heads = {node.parent for node in step.nodes if node.fate is Fate.BELOW}
        repeated += sum(step.nodes[head].fate is Fate.REJECTED for head in heads)
    assert repeated > 0
    assert html.count('class="n ') == nodes + repeated


def test_reasons_and_probabilities_are_on_the_page_without_scripts(wide):
    html = page(wide).split("<script>")[0]
    node = next(node for step in wide.steps for node in step.nodes if node.fate is Fate.REJECTED)
    assert f"this one has {node.reason.rsplit(' ', 1)[1]}" in html
    assert "temperature 0.7, seed 1" in html
    for name in ("pld", "token-recycling"):
        assert f"{name} <span" in html


def hostile(text: str) -> Explanation:
    root = Node(1, text, -1, 0, "target", Fate.ROOT, "")
    wrong = Node(2, text, 0, 1, text, Fate.REJECTED, f"the target's first choice is “{text}”", wanted_text=text)
    step = Step(0, 0, (root, wrong), (), Bonus(3, text, 0.5, 0.5), (text,))
    return Explanation(
        model=text,
        preset=text,
        drafters=text,
        guarantee="identical",
        prompt=(1,),
        prompt_text=text,
        params={},
        seed=0,
        steps=(step,),
        text=text,
        finish_reason="stop",
        stop_reason=text,
        stats=Stats(),
    )


def test_nothing_in_a_text_becomes_markup():
    plain, evil = Reader(page(hostile("x"))), Reader(page(hostile(EVIL)))
    assert evil.tags == plain.tags
    assert EVIL not in page(hostile(EVIL))
    assert "[red]" in printed(hostile("[red]"))


def test_blanks_and_line_ends_are_visible():
    html = page(hostile("\n"))
    assert "<s>⏎\n</s>" in html
    assert "<s>··</s>" in page(hostile("  "))
    assert "<b>·a</b>" in page(hostile(" a"))
