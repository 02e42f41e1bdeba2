"""Result files, journals and the choice of presets: what is read, what is refused, and how it is said."""

from __future__ import annotations

import json
import os

import pytest

from outrider.bench.choose import choose, needs, split
from outrider.bench.journal import Entry, Journal
from outrider.bench.result import BenchResult, LeftOut, Record
from outrider.errors import ConfigError, IncompatibleParts


def result(**changes):
    values = {
        "schema_version": 1,
        "provenance": {"outrider": "0"},
        "suite": {
            "name": "s",
            "version": "1",
            "sha256": "0",
            "about": "",
            "limit": None,
            "prompts": 0,
            "groups": {},
        },
        "settings": {
            "model": "m",
            "draft_model": None,
            "presets": ["plain"],
            "peers": [],
            "max_tokens": 8,
            "params": {},
            "temperature": 0.0,
            "seed": None,
            "threads": 1,
            "max_context": None,
            "batch_size": 1,
            "repeats": 1,
            "fresh": False,
            "order": "",
            "warm_up": "",
            "level": 0.95,
            "resamples": 10,
        },
        "presets": [],
    }
    return values | changes


# -- results ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("not json", "is not JSON"),
        ("[1, 2]", "not a result of `outrider bench`"),
        ('{"text": "an answer of outrider run"}', "not a result of `outrider bench`"),
        (json.dumps(result(schema_version=99)), "schema version 99"),
        (json.dumps(result(suite=3)), "damaged at suite"),
        (json.dumps(result(presets=[{"name": "plain"}])), r"damaged at presets\.0\."),
        (json.dumps(result(surprise=1)), "damaged at surprise"),
    ],
)
def test_a_file_that_is_no_result_is_refused_by_name(tmp_path, content, match):
    file = tmp_path / "a.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"(?s)a\.json.*{match}"):
        BenchResult.read(file)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"gone\.json.*cannot be read: No such file"):
        BenchResult.read(tmp_path / "gone.json")
    with pytest.raises(ConfigError, match="cannot be read"):
        BenchResult.read(tmp_path)
    (tmp_path / "b.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        BenchResult.read(tmp_path / "b.json")


def test_a_good_file_is_read(tmp_path):
    file = tmp_path / "a.json"
    file.write_text(json.dumps(result()), encoding="utf-8")
    found = BenchResult.read(file)
    assert found.suite.name == "s"
    assert json.loads(found.to_json())["presets"] == []
    with pytest.raises(KeyError):
        found.preset("pld")


# -- the journal ----------------------------------------------------------------------------------------------------


def entry(prompt):
    record = Record(
        prompt=prompt,
        category="c",
        group="g",
        turn=0,
        run=0,
        place=0,
        prompt_tokens=3,
        token_ids=[1, 2],
        finish_reason="stop",
        seconds={"target": 0.25},
    )
    failures = [LeftOut(name=prompt, reason="ünwilling")]
    return Entry(run=0, prompt=prompt, records={"plain": [record]}, failures=failures, peaks={"plain": 7})


def test_a_journal_keeps_what_was_appended(tmp_path):
    path, settings = tmp_path / "x.partial", {"presets": ["plain"], "pair": (1, 2)}
    journal = Journal.open(path, settings, {"commit": "a"})
    assert journal.entries == []
    assert journal.resumed_from is None
    journal.append(entry("1"))
    journal.append(entry("2"))
    again = Journal.open(path, settings, {"commit": "b"})
    assert again.entries == [entry("1"), entry("2")]
    assert again.resumed_from == {"commit": "a"}
    again.append(entry("3"))
    assert len(Journal.open(path, settings, {}).entries) == 3
    again.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_line_cut_short_does_not_count_and_does_not_stay(tmp_path):
    path = tmp_path / "x.partial"
    journal = Journal.open(path, {}, {})
    for name in "12":
        journal.append(entry(name))
    path.write_bytes(path.read_bytes()[:-20])
    again = Journal.open(path, {}, {})
    assert [each.prompt for each in again.entries] == ["1"]
    again.append(entry("2"))
    assert [each.prompt for each in Journal.open(path, {}, {}).entries] == ["1", "2"]


@pytest.mark.parametrize("content", ["", "hello\n", "[]\n", '{"kind": "else"}\n', "head\n{}\n"])
def test_a_file_that_is_no_journal_is_left_alone(tmp_path, content):
    path = tmp_path / "x.partial"
    if content.startswith("head"):
        Journal.open(path, {}, {})
        content = path.read_text(encoding="ascii") + "{}\n"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"not an unfinished result.*--restart"):
        Journal.open(path, {}, {})
    assert path.read_text(encoding="utf-8") == content
    assert Journal.open(path, {}, {}, restart=True).entries == []


def test_every_setting_that_differs_is_named(tmp_path):
    path = tmp_path / "x.partial"
    Journal.open(path, {"a": 1, "b": "x", "c": 2}, {})
    with pytest.raises(ConfigError, match=r"a was 1 and is 3; b was \"x\" and is null; d was null and is 4"):
        Journal.open(path, {"a": 3, "c": 2, "d": 4}, {})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_journal_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="cannot be written"):
        Journal.open(tmp_path / "x.partial", {}, {})


def test_a_journal_in_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="cannot be written: No such file"):
        Journal.open(tmp_path / "gone" / "x.partial", {}, {})


# -- which presets --------------------------------------------------------------------------------------------------


def test_commas_inside_parentheses_belong_to_settings():
    assert split("pld(depth=8,min_ngram=2),sam") == ["pld(depth=8,min_ngram=2)", "sam"]
    assert split(" pld , sam|token-recycling(nodes=8, k=2) ") == ["pld", "sam|token-recycling(nodes=8, k=2)"]
    assert split("all") == ["all"]
    for text in ("pld,,sam", "", "pld,", "pld(depth=8", "pld)", "pld)("):
        with pytest.raises(ConfigError, match="presets"):
            split(text)


def test_plain_comes_first_and_once():
    assert choose(["pld"], draft_model=False).presets == ("plain", "pld")
    assert choose(["pld", "plain"], draft_model=False).presets == ("plain", "pld")
    assert choose(["plain"], draft_model=False).presets == ("plain",)
    with pytest.raises(ConfigError, match="'pld' is given twice"):
        choose(["pld", "sam", "pld"], draft_model=False)
    with pytest.raises(ConfigError, match="no presets"):
        choose([], draft_model=False)


def test_all_takes_what_can_be_run_and_lists_the_rest():
    tried = []

    def try_out(spec):
        tried.append(spec)
        if spec == "token-recycling":
            raise IncompatibleParts("trees on a chain")

    found = choose(["sam(depth=4)", "all", "pld"], draft_model=False, try_out=try_out)
    assert found.presets[:2] == ("plain", "sam(depth=4)")
    assert found.presets[-1] == "pld"
    assert {"auto", "sam"} <= set(found.presets)
    assert len(set(found.presets)) == len(found.presets)
    out = {one.name: one.reason for one in found.left_out}
    assert out["token-recycling"] == "trees on a chain."
    assert out["spec-decode"] == "needs a draft model"
    assert "spec-decode" not in tried
    assert "spec-decode" in choose(["all"], draft_model=True).presets
    with pytest.raises(IncompatibleParts):
        choose(["token-recycling"], draft_model=False, try_out=try_out)


def test_what_presets_need():
    assert needs("sam|spec-decode(depth=3)+pld") == {"draft_model"}
    assert needs("pld(depth=3)") == set()
    with pytest.raises(ConfigError, match="unknown preset"):
        needs("sam|nonsense")
    with pytest.raises(ConfigError, match="needs a draft model"):
        choose(["sam|draft-model"], draft_model=False)
