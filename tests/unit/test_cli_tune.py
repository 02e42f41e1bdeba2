"""``outrider tune`` on a tiny random model: what it prints and keeps, and how it fails."""

from __future__ import annotations

import json
import os
import signal

import pytest
from tune_world import a_profile

from outrider.cli import main
from outrider.tune import profile

ANSI = "\x1b["
FAST = ("--budget", "4", "--max-tokens", "16", "--candidates", "pld(depth=3),sam", "--dtype", "float32")


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    from outrider.testing.tiny import tiny_folder

    return str(tiny_folder(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path):
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "OUTRIDER_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("OUTRIDER_HOME", str(tmp_path / "home"))


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "mine.jsonl"
    texts = ["one two three one two three", "a b a b a b", "what next", "again and again and again"]
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return str(path)


@pytest.fixture
def tune(folder, capfd):
    """Call the command; returns exit code, standard output, standard error."""

    def call(*args, model=folder):
        capfd.readouterr()
        code = main(["tune", *args, "--model", model])
        return code, *capfd.readouterr()

    return call


def test_it_measures_shows_and_keeps(tune, prompts, folder, capfd):
    code, out, err = tune("--prompts", prompts, *FAST)
    assert code == 0
    (path,) = profile.files()
    kept = profile.read(path)
    assert kept.model == folder
    assert {one.preset for one in kept.ranking} == {"plain", "pld(depth=3)", "sam"}
    assert kept.workload.source == "mine"
    assert kept.workload.recorded == 3
    assert f"auto is now {kept.preset}" in out
    assert "expected" in out
    assert "gain" in out
    assert str(path) in err.replace("\n", "")
    assert max(map(len, out.splitlines())) <= max(80, len(kept.why), len(folder) + 60)
    assert ANSI not in out + err
    logged = [json.loads(line) for line in (path.parent / "predictions.jsonl").read_text().splitlines()]
    assert {one["name"] for one in logged[-1]["predictions"]} == {"plain", "pld(depth=3)", "sam"}

    code = main(["run", "one two one two", "--model", folder, "--dtype", "float32", "--max-tokens", "6"])
    shown = capfd.readouterr()
    assert code == 0
    assert f"auto: {kept.preset} (tuned {kept.day})" in shown.err.replace("\n", " ")
    code = main(["run", "one two one two", "--model", folder, "--dtype", "float64", "--max-tokens", "6"])
    shown = capfd.readouterr()
    assert code == 0
    assert "is not used: it was made in float32, and this is float64" in shown.err.replace("\n", " ")
    assert "(tuned" not in shown.err


def test_json_is_the_profile_and_all_of_it(tune, prompts, tmp_path):
    code, out, _ = tune("--prompts", prompts, *FAST, "--json", "-")
    assert code == 0
    shown = json.loads(out)
    (path,) = profile.files()
    assert shown.pop("file") == str(path)
    assert profile.Profile.model_validate(shown) == profile.read(path)
    assert shown["cost"]["curve"]["nodes"][0] == 1
    file = tmp_path / "out.json"
    code, out, _ = tune("--show", "--json", str(file))
    assert code == 0
    assert "auto is" in out
    assert json.loads(file.read_text())["preset"] == shown["preset"]


def test_interrupted_it_keeps_nothing(tune, prompts, monkeypatch):
    from outrider.tune.tuner import Tuner

    def interrupt(self):
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the interrupt did not arrive")

    monkeypatch.setattr(Tuner, "_record", interrupt)
    code, out, err = tune("--prompts", prompts, *FAST)
    assert code == 130
    assert out == ""
    assert "interrupted: nothing was kept" in err
    assert profile.files() == []


# -- what is kept -------------------------------------------------------------------------------------------------


def test_list_show_and_forget(tune):
    code, out, err = tune("--list")
    assert (code, out) == (0, "")
    assert "nothing is kept" in err
    profile.save(a_profile())
    profile.save(a_profile(model="/folder/other", preset="pld(depth=2)"))
    (profile.folder() / "bad.json").write_text("{")
    code, out, err = tune("--list")
    assert code == 0
    assert "some-model" in out
    assert "pld(depth=2)" in out
    assert "1.45x" in out
    assert "bad.json" in err.replace("\n", "")
    assert (profile.folder() / "bad.json").exists()  # a list changes nothing
    assert len(json.loads(tune("--list", "--json", "-")[1])) == 2
    code, out, _ = tune("--show", model="some-model")
    assert code == 0
    assert "because" in out
    assert "+7 %" in out
    assert "pld(depth=2)" in tune("--show", model="other")[1]  # by the last part of a path as well
    code, _, err = tune("--forget", model="other")
    assert code == 0
    assert "forgotten: pld(depth=2)" in err
    assert [one.model for _, one in profile.profiles() if isinstance(one, profile.Profile)] == ["some-model"]


def test_what_makes_a_result_doubtful_is_said(tune, prompts, monkeypatch):
    from outrider.tune.tuner import Tuner

    def of(unrest, checked, measured=True):
        one = a_profile(unrest=unrest)
        ranking = one.ranking if measured else [p.model_copy(update={"measured": None}) for p in one.ranking]
        work = one.workload.model_copy(update={"checked": checked})
        return one.model_copy(update={"workload": work, "ranking": ranking})

    for found, word in [
        (of(1.6, 9), "busy with other things: the usual plain step took 1.6 times"),
        (of(1.0, 1), "only 1 prompt checked"),
        (of(1.0, 0, measured=False), "nothing was checked"),
    ]:
        monkeypatch.setattr(Tuner, "run", lambda self, found=found: found)
        code, _, err = tune("--prompts", prompts, *FAST)
        assert code == 0
        assert word in err.replace("\n", " ")
    monkeypatch.setattr(Tuner, "run", lambda self: of(1.0, 9))
    _, _, err = tune("--prompts", prompts, *FAST)
    assert "busy" not in err
    assert "checked" not in err


def test_export_of_what_is_kept_prints_flags_alone(tune):
    profile.save(a_profile(preset="pld(depth=6)"))
    code, out, err = tune("--show", "--export", "vllm", model="some-model")
    assert code == 0
    assert out.startswith("--speculative-config ")
    assert '"num_speculative_tokens": 6' in out
    assert len(out.splitlines()) == 1
    assert "expected" in err
    profile.save(a_profile())
    code, _, err = tune("--show", "--export", "llama.cpp", model="some-model")
    assert code == 2
    assert "no equivalent of 'sam(min_match=2)'" in err


# -- wrong input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--budget", "0"), "--budget is 0"),
        (("--budget", "-3"), "--budget is -3"),
        (("--budget", "nan"), "--budget is nan"),
        (("--max-tokens", "1"), "max_tokens"),
        (("--check", "-1"), "checks"),
        (("--temperature", "-1"), "temperature"),
        (("--prompts", "nowhere.jsonl"), "the prompts file 'nowhere.jsonl' does not exist"),
        (("--suite", "owm"), "Did you mean 'own'"),
        (("--candidates", "pdl"), "Did you mean 'pld'"),
        (("--candidates", "pld,"), "a name is empty"),
        (("--candidates", "spec-decode"), "--draft-model"),
        (("--candidates", "auto"), "stands for the result"),
        (("--export", "vlm"), "Did you mean 'vllm'"),
        (("--show", "--list"), "Give one of them"),
        (("--list", "--export", "vllm"), "--show"),
        (("--show",), "nothing is kept for the model"),
        (("--forget",), "nothing is kept for the model"),
        (("--json", "/nowhere/x.json"), "does not exist"),
        (("--threads", "0"), "--threads is 0"),
    ],
)
def test_wrong_input_is_explained_with_exit_code_2(tune, args, message):
    code, out, err = tune(*args)
    assert code == 2
    assert out == ""
    assert message in err
    assert "Traceback" not in err
    assert profile.files() == []


def test_prompts_files_that_are_no_good(tune, tmp_path, prompts):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    code, _, err = tune("--prompts", str(empty))
    assert code == 2
    assert "has no prompts" in err
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "fine"}\n{"prompt": \n')
    code, _, err = tune("--prompts", str(bad))
    assert code == 2
    assert "line 2" in err
    assert "Give one of them" in tune("--prompts", prompts, "--suite", "own")[2]
    assert "Leave --data out" in tune("--prompts", prompts, "--data", str(tmp_path))[2]
    long = tmp_path / "long.jsonl"
    long.write_text(json.dumps({"prompt": "word " * 400}) + "\n")
    code, _, err = tune("--prompts", str(long), *FAST)
    assert code == 2
    assert "no prompt of 'long' fits" in err


def test_a_cache_folder_that_cannot_be_written_is_said_before_loading(tune, prompts, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OUTRIDER_HOME", str(tmp_path / "file"))
    code, _, err = tune("--prompts", prompts, *FAST)
    assert code == 2
    assert "OUTRIDER_HOME" in err
    assert "loaded" not in err
