"""``outrider bench`` on a tiny random model: what it prints, where, how it goes on, and how it fails."""

from __future__ import annotations

import json

import pytest

from outrider.bench import BenchResult
from outrider.bench.runners import PresetRunner
from outrider.cli import main


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    from outrider.testing.tiny import tiny_folder

    return str(tiny_folder(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture
def suite(tmp_path):
    """Four prompts in two groups, the third with two turns."""
    lines = [
        {"id": "a", "category": "count", "prompt": "one two three one two three one two"},
        {"id": "b", "category": "spell", "prompt": "abcabcabcabc"},
        {"id": "c", "category": "count", "turns": ["xyz xyz xyz", "again"]},
        {"id": "d", "category": "spell", "prompt": "hello"},
    ]
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    return str(file)


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "OUTRIDER_DEBUG", "OUTRIDER_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture
def run(folder, suite, capfd):
    """Call the command on four prompts; returns exit code, standard output, standard error on one line."""

    def call(*args, model=folder, suite=suite):
        code = main(["bench", "--model", model, "--suite", suite, "--max-tokens", "8", *args])
        out, err = capfd.readouterr()
        return code, out, " ".join(err.split())

    return call


@pytest.fixture
def nothing_runs(monkeypatch):
    monkeypatch.setattr(PresetRunner, "answer", lambda *_: pytest.fail("something was measured"))


@pytest.fixture
def no_model(monkeypatch, nothing_runs):
    """What is refused is refused before a model is read."""
    import outrider.cli._bench_run as module

    monkeypatch.setattr(module, "open_model", lambda *_: pytest.fail("a model was opened"))


def tokens(result: BenchResult):
    return {each.name: [(record.key, record.token_ids) for record in each.records] for each in result.presets}


def test_json_on_standard_output_is_all_that_is_there(run):
    code, out, err = run("--presets", "pld(depth=4,min_ngram=2),sam", "--json", "-")
    assert code == 0
    shown = json.loads(out)
    assert out.count("\n") == 1
    assert shown["provenance"]["outrider"]
    assert [each["name"] for each in shown["presets"]] == ["plain", "pld(depth=4,min_ngram=2)", "sam"]
    for each in shown["presets"]:
        assert each["speedup"] > 0
        assert each["tokens_per_second"] > 0
        assert each["mean_accepted_length"] >= 1
        assert each["identical"] == 1.0
    assert shown["settings"]["max_tokens"] == 8
    assert shown["settings"]["model"] == "tiny"
    assert "speed-up [95 %]" in err, "the table is on standard error"


def test_the_table_on_standard_output(run):
    code, out, err = run("--presets", "pld,sam")
    assert code == 0
    assert "tiny · mine 0, 4 prompts, up to 8 tokens" in out
    head = next(line for line in out.splitlines() if "tokens/s" in line)
    assert head.split() == ["preset", "speed-up", "[95", "%]", "tokens/s", "accepted", "identical", "count", "spell"]
    rows = [line.split() for line in out.splitlines() if line.strip().startswith(("plain", "pld", "sam"))]
    assert [row[0] for row in rows] == ["plain", "pld", "sam"]
    assert rows[0][1] == "1"
    assert all(row[-3] == "all" for row in rows)
    assert "\x1b[" not in out
    assert "kept what they learnt" in err
    assert "One request at a time" in err


def test_groups_stand_below_where_the_terminal_is_narrow(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "76")
    code, out, _ = run("--presets", "pld,sam")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 76
    lines = [line.split() for line in out.splitlines()]
    assert ["speed-up", "pld", "sam"] in lines
    assert {line[0] for line in lines if line} >= {"count", "spell"}


def test_all_lists_what_it_leaves_out(run):
    code, out, err = run("--limit", "1")
    assert code == 0
    assert "token-recycling" in out
    assert "not run: spec-decode: needs a draft model" in err


def test_files_are_written_whole(run, tmp_path):
    file = tmp_path / "out.json"
    code, out, _ = run("--presets", "pld", "--json", str(file), "--limit", "2")
    assert code == 0
    assert "pld" in out
    found = BenchResult.read(file)
    assert found.suite.limit == 2
    assert [each.name for each in found.presets] == ["plain", "pld"]
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == ["out.json"], "nothing is left behind"


def test_a_page_with_charts(run, tmp_path):
    page = tmp_path / "out.html"
    code, _, _ = run("--presets", "pld,sam", "--html", str(page), "--limit", "3")
    assert code == 0
    text = page.read_text(encoding="utf-8")
    assert text.lstrip().lower().startswith("<!doctype html>")
    assert "pld" in text
    assert 'src="http' not in text


def test_the_suite_decides_the_length_unless_asked(folder, suite, capfd):
    base = ["bench", "--model", folder, "--suite", suite, "--presets", "plain", "--limit", "1", "--json", "-"]

    def length(*args):
        assert main([*base, *args]) == 0
        return json.loads(capfd.readouterr().out)["settings"]["max_tokens"]

    assert length() == 256
    assert length("--param", "max_new_tokens=5") == 5
    assert length("--max-tokens", "6", "--param", "min_tokens=2") == 6


def test_sampling_with_a_temperature(run):
    code, out, _ = run("--presets", "pld", "--temperature", "1", "--seed", "3", "--json", "-")
    shown = json.loads(out)
    assert code == 0
    assert shown["settings"]["seed"] == 3
    assert shown["presets"][1]["identical"] == 1.0
    again = json.loads(run("--presets", "pld", "--temperature", "1", "--seed", "3", "--json", "-")[1])
    other = json.loads(run("--presets", "pld", "--temperature", "1", "--seed", "4", "--json", "-")[1])
    ids = [[record["token_ids"] for record in each["presets"][0]["records"]] for each in (shown, again, other)]
    assert ids[0] == ids[1]
    assert ids[0] != ids[2]


def test_with_a_draft_model_and_threads(run, folder):
    import torch

    before = torch.get_num_threads()
    try:
        code, out, _ = run("--presets", "spec-decode", "--draft-model", folder, "--threads", "1", "--json", "-")
    finally:
        torch.set_num_threads(before)
    shown = json.loads(out)
    assert code == 0
    assert shown["settings"]["threads"] == 1
    assert shown["settings"]["draft_model"] == "tiny"
    assert set(shown["provenance"]["models"]) == {"target", "draft"}
    assert shown["presets"][1]["mean_accepted_length"] > 2, "the model drafts for itself"


def test_a_plug_in_stands_beside_the_others(run, tmp_path):
    plugin = tmp_path / "plugged.py"
    plugin.write_text(
        "from outrider import Parts, preset, register\n"
        "@register('plugged-in')\n"
        "def plugged_in() -> Parts:\n"
        "    '''As pld.'''\n"
        "    return preset('pld', depth=2)\n",
        encoding="utf-8",
    )
    from outrider.registry import REGISTRY

    try:
        code, out, _ = run("--plugin", str(plugin), "--presets", "plugged-in", "--json", "-")
    finally:
        REGISTRY._presets.pop("plugged-in", None)
    assert code == 0
    assert json.loads(out)["presets"][1]["name"] == "plugged-in"


# -- interruption


def interrupt_at(monkeypatch, number):
    real, count = PresetRunner.answer, iter(range(1, 10_000))

    def answer(self, prompt, params):
        if next(count) == number:
            raise KeyboardInterrupt
        return real(self, prompt, params)

    monkeypatch.setattr(PresetRunner, "answer", answer)


def test_ctrl_c_keeps_what_is_there_and_the_same_command_goes_on(run, tmp_path, monkeypatch):
    file, partial = tmp_path / "out.json", tmp_path / "out.json.partial"
    command = ("--presets", "pld,sam", "--json", str(file))
    assert run(*command)[0] == 0
    whole = BenchResult.read(file)
    file.unlink()
    with monkeypatch.context() as patch:
        interrupt_at(patch, 11)  # 3 warm up, 6 answer two prompts
        code, out, err = run(*command)
    assert code == 130
    assert "interrupted after 2 of 4 prompts" in err
    assert "out.json.partial" in err
    assert "Incomplete: 2 of 4" in err
    assert out == "", "half a table is no answer"
    assert partial.exists()
    assert not file.exists()
    code, out, err = run(*command, "--max-tokens", "9")
    assert code == 2
    assert "max_tokens was 8 and is 9" in err
    assert "--restart" in err
    code, out, err = run(*command)
    assert code == 0
    assert "holds 2 prompts: going on from there" in err
    assert "resumed" in err
    assert tokens(BenchResult.read(file)) == tokens(whole)
    assert not partial.exists()


def test_restart_throws_away_what_is_there(run, tmp_path, monkeypatch):
    command = ("--presets", "pld", "--json", str(tmp_path / "out.json"))
    with monkeypatch.context() as patch:
        interrupt_at(patch, 8)
        assert run(*command)[0] == 130
    code, _, err = run(*command, "--restart", "--max-tokens", "9")
    assert code == 0
    assert "going on" not in err
    assert BenchResult.read(tmp_path / "out.json").settings.max_tokens == 9


def test_ctrl_c_without_a_file(run, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 6)
        code, out, err = run("--presets", "pld")
    assert code == 130
    assert out == ""
    assert "give --json FILE to be able to go on" in err
    with monkeypatch.context() as patch:
        interrupt_at(patch, 1)
        code, _, err = run("--presets", "pld")
    assert code == 130
    assert "before the first prompt was complete" in err


# -- bad input


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (("--presets", "samm"), "unknown preset 'samm'. Did you mean 'sam'?"),
        (("--presets", "pld,spec-decode"), "'spec-decode' needs a draft model. Give --draft-model"),
        (("--presets", "pld(depth=2"), "a parenthesis is missing"),
        (("--presets", "pld(dept=2)"), "has no setting 'dept'"),
        (("--presets", "pld,pld"), "given twice"),
        (("--limit", "0"), "--limit=0"),
        (("--limit", "-3"), "--limit=-3"),
        (("--max-tokens", "0"), "--max-tokens=0"),
        (("--max-tokens", "-1"), "--max-tokens=-1"),
        (("--repeats", "0"), "--repeats=0"),
        (("--temperature", "-1"), "temperature"),
        (("--param", "n=2"), "n is 2"),
        (("--json", "/no/such/folder/x.json"), "the folder '/no/such/folder' does not exist"),
        (("--html", "/no/such/folder/x.html"), "the folder '/no/such/folder' does not exist"),
        (("--json", "/"), "is a folder"),
        (("--json", "-", "--html", "-"), "--json and --html are both '-'"),
        (("--data", "/no/such/data"), "is a file of prompts, and data='/no/such/data' another"),
        (("--plugin", "/no/such/plugin.py"), "does not exist"),
        (("--gguf", "/no/such.gguf"), "--gguf without --peers"),
        (("--peers", "--gguf", "/no/such.gguf"), "--gguf '/no/such.gguf' does not exist"),
        (("--peers", "--temperature", "0.7"), "peers with temperature=0.7"),
        (("--peers", "--param", "min_tokens=2"), "peers with min_tokens"),
    ],
)
def test_bad_options_are_refused_before_a_model_is_read(run, no_model, args, match):
    code, out, err = run(*args)
    assert code == 2
    assert match in err
    assert out == ""


def test_bad_suites_are_refused_before_a_model_is_read(run, no_model, tmp_path):
    code, _, err = run(suite=str(tmp_path / "gone.jsonl"))
    assert code == 2
    assert "neither a known suite nor a file" in err
    code, _, err = run(suite="spec-bensh")
    assert code == 2
    assert "Did you mean 'spec-bench'?" in err
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "fine"}\n{"prompt": \n', encoding="utf-8")
    code, _, err = run(suite=str(broken))
    assert code == 2
    assert "line 2 is not JSON" in err
    code, _, err = run("--data", str(tmp_path / "gone"), suite="spec-bench")
    assert code == 2
    assert "does not exist" in err


def test_a_model_that_is_not_there(run, nothing_runs, tmp_path):
    code, _, err = run("--presets", "pld", model=str(tmp_path / "gone"))
    assert code == 2
    assert "gone" in err


def test_a_preset_that_this_model_cannot_run(run, nothing_runs, monkeypatch):
    from outrider.model.hf import HFModel

    monkeypatch.setattr(HFModel, "branching", False)
    code, _, err = run("--presets", "pld,token-recycling")
    assert code == 2
    assert "token-recycling drafts trees that branch" in err


# -- comparing


def test_diff_of_two_results(run, tmp_path):
    a, b = str(tmp_path / "a.json"), str(tmp_path / "b.json")
    assert run("--presets", "pld", "--json", a)[0] == 0
    assert run("--presets", "pld", "--json", b)[0] == 0
    code, out, _ = run("--diff", a, b)
    assert code in (0, 1)
    assert "pld" in out
    code, out, err = run("--diff", a, b, "--json", "-")
    assert json.loads(out)["comparable"] is True
    assert json.loads(out)["exit_code"] == code
    assert "pld" in err
    assert run("--presets", "pld", "--json", b, "--max-tokens", "4")[0] == 0
    code, out, _ = run("--diff", a, b)
    assert code == 2
    assert "ot comparable" in out


def test_diff_of_files_that_are_no_results(run, tmp_path):
    file = tmp_path / "a.json"
    code, _, err = run("--diff", str(file), str(file))
    assert code == 2
    assert "cannot be read" in err
    file.write_text("{]", encoding="utf-8")
    code, _, err = run("--diff", str(file), str(file))
    assert code == 2
    assert "is not JSON" in err
    code, _, err = run("--diff", str(file), str(file), "--html", str(tmp_path / "x.html"))
    assert code == 2
    assert "--html with --diff" in err
