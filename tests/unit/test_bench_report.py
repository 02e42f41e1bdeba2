"""The HTML report of `outrider bench`: what it says, and that nothing from outside becomes markup."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser

import pytest
from bench_results import Method, edit, result, with_peer

from outrider.bench import charts, report
from outrider.bench.report.words import breakable, share
from outrider.bench.result import BenchResult, LeftOut
from outrider.errors import ConfigError

EVIL = "<script>alert('x')</script>"
LONG = "sam(min_match=2)|token-recycling(nodes=48)"
VOID, INLINE = {"meta", "br", "wbr"}, {"wbr", "strong", "span"}


class Page(HTMLParser):
    """Text by section, the elements, and what is wrong with their nesting."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag not in INLINE:
            self.words.append(" ")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]


@pytest.fixture(scope="module")
def whole() -> BenchResult:
    """Everything a page can show, with hostile names wherever a name comes from outside."""
    methods = {
        LONG: Method(1.6, length=2.2, depth=6, ties=[5]),
        EVIL: Method(2.5, length=1.3, depth=2, wrong=[3]),
        "silent": Method(0.8),
        "level": Method(1.0, length=1.2, depth=3, noise=0.2),
        "drawn": Method(1.1, length=1.4, depth=3, guarantee="exact"),
    }
    made = with_peer(result(methods, groups=("chat", EVIL + "g"), names={3: (EVIL + "id", EVIL + "category")}))
    drawn = made.preset("drawn").model_copy(update={"compared": 0, "identical": None, "identical_answers": 0})
    presets = [drawn if preset.name == "drawn" else preset for preset in made.presets]
    made = edit(made, "provenance", "models", "target", "name", value=EVIL + "model")
    more = {
        "presets": presets,
        "left_out": [LeftOut(name=EVIL + "left", reason=EVIL + "why")],
        "failures": [LeftOut(name="chat-90", reason="too long")],
        "notes": [EVIL + "note"],
        "settings": made.settings.model_copy(update={"model": EVIL + "name", "params": {EVIL: EVIL}}),
    }
    return made.model_copy(update=more)


@pytest.fixture(scope="module")
def page(whole: BenchResult) -> Page:
    return Page(report.page(whole))


def test_nothing_from_outside_becomes_markup(page: Page) -> None:
    assert not page.of("script")
    assert "<script" not in page.html.lower()
    for name in ("id", "category", "g", "model", "left", "why", "note", "name"):
        assert f"{EVIL}{name}" in page.text, name
    assert any(attrs.get("aria-label", "").startswith("Speed-up over plain decoding: ") for attrs in page.of("svg"))


def test_a_page_needs_no_network_and_is_nested_well(page: Page) -> None:
    assert not page.open
    for tag, attrs in page.elements:
        assert tag not in ("link", "img", "iframe", "script"), tag
        for name in ("src", "href", "xlink:href", "srcset"):
            assert name not in attrs, (tag, name)
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/)", page.html)
    assert len(page.html) < 400_000


def test_the_best_preset_is_the_fastest_that_is_not_wrong(whole: BenchResult, page: Page) -> None:
    best = whole.preset(LONG)
    assert best.interval is not None
    low, high = best.interval.low, best.interval.high
    told = f"{LONG} decodes {best.speedup:.2f} times as fast as plain decoding (95 % interval {low:.2f} to {high:.2f})."
    assert told in page.text
    assert "Wrong answers" in page.text
    assert f"{EVIL}: 1 of 20 answers" in page.text


def test_every_section_is_there(page: Page) -> None:
    heads = re.findall(r"<h2[^>]*>(.*?)</h2>", page.html)
    assert heads == [
        "Wrong answers",
        "Not measured",
        "Speed-up over plain decoding",
        "Where the time goes",
        "Speed-up by kind of prompt",
        "Mean accepted length",
        "Peak memory",
        "Is it the same text?",
        "Acceptance by depth",
        "Accepted length by context",
        "Other programs on the same prompts and weights",
        "All figures",
    ]
    assert len(page.of("h1")) == len(page.of("main")) == 1


def test_every_chart_has_words_and_two_widths(page: Page) -> None:
    drawings = page.of("svg")
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in drawings)
    widths = [int(attrs["width"] or 0) for attrs in drawings]
    assert widths.count(charts.WIDTHS["wide"]) == widths.count(charts.WIDTHS["narrow"]) == 6
    # depths of the presets that draft, contexts of all but plain
    assert widths.count(charts.PANEL[0]) == 4 + 5
    assert set(widths) == {*charts.WIDTHS.values(), charts.PANEL[0]}


def test_marks_say_what_they_are(whole: BenchResult, page: Page) -> None:
    titles = re.findall(r"<title>(.*?)</title>", page.html)
    sam = whole.preset(LONG)
    assert f"{LONG}: {sam.speedup:.3f} times plain ({sam.interval.low:.2f} to {sam.interval.high:.2f})" in titles
    at = sam.by_depth[2]
    assert f"{LONG}, depth 3: {at.rate:.1%} ({at.accepted} of {at.drafted} calls)" in titles
    assert any(re.fullmatch(r"silent, target: [\d.]+ ms per token, \d+%", title) for title in titles)


def test_colours_follow_the_page(page: Page) -> None:
    drawings = "".join(re.findall(r"<svg.*?</svg>", page.html, re.S))
    assert not re.search(r'(?:fill|stroke)="(?:#|rgb|black|white)', drawings)
    used = set(re.findall(r"var\(--(\w+)\)", page.html)) - {"k", "tone"}
    assert used <= set(re.findall(r"--(\w+):", page.html))


def test_tables_can_be_reached_and_read(page: Page) -> None:
    for attrs in page.of("div"):
        if attrs.get("class") == "scroll":
            assert attrs["tabindex"] == "0"
            assert attrs["role"] == "region"
            assert attrs["aria-label"]
    assert all(attrs.get("scope") in ("row", "col") for attrs in page.of("th"))
    assert dict(page.of("html")[0])["lang"] == "en"


def test_what_is_not_promised_is_not_counted(page: Page) -> None:
    assert "drawn exact not promised – –" in page.text
    assert f"{EVIL} identical 19 of 20 95.0 % 0 1" in page.text
    assert f"{LONG} identical 19 of 20 95.0 % 1 0" in page.text
    assert "answers identical to plain 97.5 % 78 of 80; 1 near-tie, 1 wrong" in page.text


def test_differences_say_where_and_how_close(page: Page) -> None:
    rows = re.findall(r"<tr><th scope=\"row\">.*?</tr>", page.html)
    told = [re.sub(r"<[^>]+>", " ", row).split() for row in rows if "near-tie" in row]
    assert told[0][-4:] == ["was", "is", "2e-05", "0.0001"]
    assert "<details open><summary>First differences (2)" in page.html


def test_peers_name_their_baselines(whole: BenchResult, page: Page) -> None:
    peer = whole.peers[1]
    assert f"{peer.speedup:.2f}×" in page.text
    assert "over transformers: generate" in page.text
    assert "over outrider's plain" in page.text
    assert "a baseline itself" in page.text
    assert "Prefill is not measured apart." in page.text


def test_times_are_divided(whole: BenchResult, page: Page) -> None:
    plain = whole.plain
    each = 1000 * plain.seconds["target"] / plain.emitted_tokens
    share = plain.seconds["target"] / sum(plain.seconds.values())
    assert f">{each:.2f}<small>{100 * share:.1f} %</small>" in page.html


def test_prompts_show_their_own_speedups(whole: BenchResult, page: Page) -> None:
    record, base = whole.preset("silent").records[4], whole.plain.records[4]
    own = base.decode_seconds / record.decode_seconds
    row = next(row for row in re.findall(r"<tr>.*?</tr>", page.html) if ">chat-4</th>" in row)
    assert f"<td>{own:.2f}</td>" in row


@pytest.mark.parametrize(
    ("methods", "prompts", "told"),
    [
        ({}, 8, "No preset could be compared with plain decoding."),
        ({"sam": Method(0.5)}, 8, "No preset is faster than plain decoding here: the best, sam, reaches 0.5"),
        ({"sam": Method(1.0)}, 20, "No preset is measurably faster than plain decoding: sam comes to "),
        ({"sam": Method(1.5)}, 1, "of plain decoding; too few prompts for an interval."),
        ({"sam": Method(1.5, wrong=[0])}, 8, "Every preset was wrong somewhere."),
    ],
)
def test_headlines(methods: dict[str, Method], prompts: int, told: str) -> None:
    made = Page(report.page(result(methods, prompts=prompts, groups=("one",))))
    assert told in made.text
    assert "Speed-up by kind of prompt" not in made.text


def test_nothing_measured_makes_a_page() -> None:
    """An interrupted run may have no answers at all."""
    made = Page(report.page(result({"sam": Method(1.5)}, prompts=0)))
    assert "No preset could be compared with plain decoding." in made.text
    assert "Speed-up over plain decoding" not in made.text


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(ConfigError, match=re.escape('pip install "outrider[report]"')):
        report.page(result({}))


def test_small_words() -> None:
    assert share(20, 20) == "100 %"
    assert share(99_999, 100_000) == "99.9 %"
    assert breakable("a|b(c=1,<d>)") == "a|<wbr>b<wbr>(c=1,<wbr>&lt;d&gt;)"
    assert charts.shorten("x" * 30, 40) == "x" * 30
    assert charts.shorten("abcdefghij" * 3, 11) == "abcdef…ghij"
