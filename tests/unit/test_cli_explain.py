"""``outrider explain`` on a tiny random model: what it prints and writes, and how it fails."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path

import pytest

from outrider.cli import main
from outrider.explain.trace import Trace

PROMPT = "one two three one two three one two"
SHORT = ("--max-tokens", "20", "--preset", "pld")


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    from outrider.testing.tiny import tiny_folder

    return str(tiny_folder(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "OUTRIDER_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture
def explain(folder, capfd):
    """Call the command; returns exit code, standard output, standard error."""

    def call(*args, model=folder):
        source = [] if "--replay" in args else ["--model", model]
        code = main(["explain", *args, *source])
        return code, *capfd.readouterr()

    return call


@pytest.fixture(scope="session")
def recorded(folder, tmp_path_factory):
    """A trace, and the record of the run it is of."""
    path = tmp_path_factory.mktemp("traces")
    files = ["--trace", str(path / "one.trace"), "--json", str(path / "one.json")]
    assert main(["explain", PROMPT, "--max-tokens", "60", "--preset", "sam|pld", "--model", folder, *files]) == 0
    return str(path / "one.trace"), json.loads((path / "one.json").read_text())


def error_line(err: str) -> str:
    lines = [line for line in err.splitlines() if "error:" in line]
    assert len(lines) == 1
    assert "Traceback" not in err
    return lines[0]


def test_the_record_is_that_of_run(explain, folder, capfd):
    code, out, _ = explain(PROMPT, *SHORT, "--json", "-")
    assert code == 0
    record = json.loads(out)
    assert main(["run", PROMPT, *SHORT, "--json", "--model", folder]) == 0
    run = json.loads(capfd.readouterr().out)
    tokens = record["answer"]["tokens"]
    assert [token["token"] for token in tokens] == run["token_ids"]
    assert [[token["origin"], token["depth"]] for token in tokens] == run["origins"]
    assert record["answer"]["text"] == run["text"]
    assert record["summary"]["drafted"] == run["stats"]["draft_tokens"]
    assert record["model"] == folder
    assert record["provenance"]["models"]["target"]["sha256"]


def test_the_screen(explain):
    code, out, err = explain(PROMPT, *SHORT)
    assert code == 0
    assert "step" in out
    assert "tokens per call" in out
    assert "pld" in err.splitlines()[0]
    assert "\x1b[" not in out


def test_colours_are_those_of_run(explain, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    _, out, _ = explain(PROMPT, *SHORT)
    assert "\x1b[" in out
    assert "\x1b[" not in explain(PROMPT, *SHORT, "--no-color")[1].replace("\x1b[1m", "").replace(
        "\x1b[2m", ""
    ).replace("\x1b[0m", "").replace("\x1b[1;2m", "")


@pytest.mark.parametrize(("steps", "shown"), [("2:4", [2, 3]), ("3", [3]), (":2", [0, 1]), ("-1", [-1]), ("90:", [])])
def test_a_range_of_steps(explain, steps, shown):
    total = len(json.loads(explain(PROMPT, *SHORT, "--json", "-")[1])["steps"])
    wanted = [total + i if i < 0 else i for i in shown]
    code, out, _ = explain(PROMPT, *SHORT, f"--steps={steps}", "--full")
    assert code == 0
    found = [int(line.split()[1]) for line in out.splitlines() if line.startswith("step ")]
    assert found == wanted
    assert ("no step in that range" in out) is (not wanted)


def test_files_are_written(explain, tmp_path):
    files = {name: tmp_path / f"one.{name}" for name in ("json", "html", "trace")}
    options = [word for name, path in files.items() for word in (f"--{name}", str(path))]
    code, out, err = explain(PROMPT, *SHORT, *options)
    assert code == 0
    assert "tokens per call" in out
    record = json.loads(files["json"].read_text())
    assert files["html"].read_text().startswith("<!doctype html>")
    trace = Trace.load(files["trace"])
    assert list(trace.tokens) == [token["token"] for token in record["answer"]["tokens"]]
    for path in files.values():
        assert str(path) in err.replace("\n", "")


def test_sampling_options_count(explain):
    args = (PROMPT, *SHORT, "--temperature", "0.8", "--json", "-")
    one, two = (json.loads(explain(*args, "--seed", seed)[1]) for seed in "12")
    assert one["params"]["temperature"] == 0.8
    assert one["seed"] == 1
    assert one["answer"]["text"] != two["answer"]["text"]


def test_a_draft_model(explain, folder):
    args = (PROMPT, "--preset", "spec-decode", "--max-tokens", "12", "--draft-model", folder, "--json", "-")
    code, out, _ = explain(*args, "--temperature", "1", "--seed", "3")
    assert code == 0
    nodes = [node for step in json.loads(out)["steps"] for node in step["nodes"][1:]]
    assert {node["drawn"] for node in nodes} == {"iid"}
    assert all(0 < node["q"] <= 1 for node in nodes)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], ["no prompt", "outrider explain", "--replay"]),
        ([""], ["empty"]),
        (["hi", "--preset", "pdl"], ["'pdl'", "'pld'"]),
        (["hi", "--preset", "pld", "--preset", "sam"], ["2 presets"]),
        (["hi", "--sweep", "pld"], ["--sweep without --replay"]),
        (["hi", "--cost", "x"], ["--cost without --replay"]),
        (["hi", "--steps", "x"], ["--steps 'x'"]),
        (["hi", "--steps", "1 2"], ["--steps"]),
        (["hi", "--steps", ""], ["--steps"]),
        (["hi", "--html", "nowhere/x.html"], ["--html", "nowhere/x.html"]),
        (["hi", "--json", "nowhere/x.json"], ["--json"]),
        (["hi", "--trace", "."], ["--trace"]),
        (["hi", "--param", "logprobs=2"], ["logprobs"]),
        (["hi", "--param", "n=2"], ["n is 2"]),
        (["hi", "--raw", "--system", "x"], ["--system"]),
        (["hi", "--preset", "spec-decode"], ["--draft-model"]),
        (["hi", "--preset", "spec-decode", "--draft-model", "x", "-t", "1", "--trace", "y"], ["ChainRejection"]),
        (["--replay", "nowhere.trace"], ["nowhere.trace", "cannot be read"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(explain, args, words):
    code, out, err = explain(*args)
    assert code == 2
    assert out == ""
    for word in words:
        assert word in error_line(err)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["a prompt"], ["a prompt with --replay"]),
        (["--file", "x"], ["--file with --replay"]),
        (["--temperature", "1"], ["--temperature with --replay"]),
        (["--max-tokens", "4"], ["--max-tokens with --replay"]),
        (["--model", "x"], ["--model with --replay"]),
        (["--raw"], ["--raw with --replay"]),
        (["--trace", "y"], ["--trace with --replay"]),
        (["--dtype", "float32"], ["--dtype with --replay", "--draft-model"]),
        (["--threads", "0"], ["--threads"]),
        (["--preset", "auto"], ["'token-recycling' cannot be replayed", "rejected tokens"]),
        (["--preset", "smartspec"], ["Goodput"]),
        (["--preset", "spec-decode"], ["'spec-decode'", "draft model"]),
        (["--sweep", "token-recycling(nodes={2,4})"], ["none of these presets can be replayed"]),
        (["--sweep", "pld(depth={2,4)"], ["braces"]),
        (["--sweep", "pld", "--html", "x"], ["--html with several presets"]),
        (["--sweep", "pld", "--steps", "1"], ["--steps with several presets"]),
        (["--sweep", "pld", "--full"], ["--full with several presets"]),
        (["--cost", "x"], ["--cost with one preset"]),
        (["--sweep", "pld", "--cost", "nowhere"], ["cost file", "nowhere"]),
    ],
)
def test_what_a_replay_refuses(explain, recorded, args, words):
    code, out, err = explain("--replay", recorded[0], *args)
    assert code == 2
    assert out == ""
    for word in words:
        assert word in error_line(err)


def test_files_that_are_no_trace(explain, recorded, tmp_path):
    path = tmp_path / "bad.trace"
    content = Path(recorded[0]).read_bytes()
    for data, words in (
        (b"hello", "is not a trace"),
        (content[: len(content) // 2], "damaged or cut off"),
        (content.replace(b'\\"version\\": 1', b'\\"version\\": 2'), "has version 2"),
    ):
        path.write_bytes(data)
        code, _, err = explain("--replay", str(path))
        assert code == 2
        assert words in error_line(err)


def test_a_replay_shows_what_the_live_run_showed(explain, recorded):
    trace, record = recorded
    code, out, _ = explain("--replay", trace, "--json", "-")
    assert code == 0
    again = json.loads(out)
    assert again["replayed"] is True
    assert again["preset"] == "sam|pld"
    assert again["answer"] == record["answer"]
    assert again["summary"] == record["summary"]
    assert [step["path"] for step in again["steps"]] == [step["path"] for step in record["steps"]]


def test_another_preset_over_the_trace(explain, recorded, folder, capfd):
    code, out, _ = explain("--replay", recorded[0], "--preset", "pld(depth=2)", "--json", "-")
    assert code == 0
    args = [PROMPT, "--max-tokens", "60", "--preset", "pld(depth=2)", "--model", folder, "--json", "-"]
    assert main(["explain", *args]) == 0
    live = json.loads(capfd.readouterr().out)
    assert json.loads(out)["summary"] == live["summary"]
    code, out, _ = explain("--replay", recorded[0], "--preset", "pld(depth=2)", "--steps", "0")
    assert code == 0
    assert out.startswith("step 0 ")


def test_a_draft_model_over_the_trace(explain, recorded, folder, tmp_path):
    args = ("--replay", recorded[0], "--preset", "spec-decode(depth=2)", "--draft-model")
    code, out, _ = explain(*args, folder, "--json", "-")
    assert code == 0
    assert json.loads(out)["summary"]["accepted"] > 0
    from transformers import AutoTokenizer

    from outrider.testing.tiny import tiny_folder

    other = tiny_folder(tmp_path / "other")
    tokenizer = AutoTokenizer.from_pretrained(other)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    vocab = state["model"]["vocab"]
    vocab["e"], vocab["o"] = vocab["o"], vocab["e"]
    (other / "tokenizer.json").write_text(json.dumps(state))
    code, _, err = explain(*args, str(other))
    assert code == 2
    assert "another one for the draft model" in error_line(err)


def test_a_sweep_is_ranked(explain, recorded, tmp_path):
    path = tmp_path / "sweep.json"
    args = ("--replay", recorded[0], "--sweep", "pld(depth={1,2,8})", "--preset", "auto", "--preset", "plain")
    code, out, _ = explain(*args, "--json", str(path))
    assert code == 0
    found = json.loads(path.read_text())
    assert found["format"] == "outrider-sweep"
    assert len(found["trials"]) == 5
    gains = [trial["tokens_per_call"] for trial in found["trials"] if not trial["refused"]]
    assert gains == sorted(gains, reverse=True)
    assert found["trials"][-1]["preset"] == "auto"
    order = [out.index(trial["preset"]) for trial in found["trials"]]
    assert order == sorted(order)
    code, out, _ = explain(*args, "--json", "-")
    assert json.loads(out)["trials"] == found["trials"]


def test_a_sweep_by_cost(explain, recorded, tmp_path):
    from outrider.policy.cost import ForwardCost, StepCost

    path = tmp_path / "cost.json"
    steep = StepCost(ForwardCost(nodes=(1, 2), table=(((1.0, 2.0),),)))
    path.write_text(json.dumps(steep.as_dict()))
    args = ("--replay", recorded[0], "--sweep", "pld(depth={1,10})", "--preset", "plain", "--cost", str(path))
    code, out, _ = explain(*args)
    assert code == 0
    assert "speed-up" in out
    trials = json.loads(explain(*args, "--json", "-")[1])["trials"]
    assert trials[0]["preset"] == "plain"  # where each node costs a whole forward, nothing pays
    assert trials[0]["speedup"] == pytest.approx(1.0, rel=0.01)


@pytest.mark.parametrize("way", ["in a step", "between steps"])
def test_interrupt_keeps_what_there_is(explain, monkeypatch, tmp_path, way):
    from outrider.run.engine import Engine

    whole = json.loads(explain(PROMPT, "--max-tokens", "40", "--preset", "plain", "--json", "-")[1])
    real, calls = Engine.step, []

    def step(self):
        calls.append(1)
        if len(calls) == 12:
            if way == "in a step":
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGINT)
        return real(self)

    monkeypatch.setattr(Engine, "step", step)
    trace, record = tmp_path / "part.trace", tmp_path / "part.json"
    args = (PROMPT, "--max-tokens", "40", "--preset", "plain", "--trace", str(trace), "--json", str(record))
    code, out, err = explain(*args)
    assert code == 130
    assert "interrupted" in out
    assert "Traceback" not in err
    part = json.loads(record.read_text())
    kept = len(part["steps"])
    assert kept in (11, 12)
    assert part["answer"]["finish_reason"] == "cancelled"
    assert part["answer"]["tokens"] == whole["answer"]["tokens"][:kept]
    monkeypatch.undo()
    code, out, _ = explain("--replay", str(trace), "--json", "-")
    assert code == 0
    assert json.loads(out)["answer"] == part["answer"]


def test_an_interrupted_sweep_keeps_its_trials(explain, recorded, monkeypatch):
    import outrider.explain.sweep as module

    real, calls = module.trial, []

    def trial(*args):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*args)

    monkeypatch.setattr(module, "trial", trial)
    code, out, err = explain("--replay", recorded[0], "--sweep", "pld(depth={1..9})", "--json", "-")
    assert code == 130
    found = json.loads(out)
    assert found["interrupted"] is True
    assert len(found["trials"]) == 3
    assert "3 of 9" in err


def test_a_request_that_fails_on_the_way_is_shown_first(explain):
    """Only token 70 may ever come, and never twice in a row: nothing can follow the first one."""
    bias = json.dumps({str(token): -math.inf for token in range(262) if token != 70})
    code, out, err = explain("hi", *SHORT, "--param", "bad_words=[[70, 70]]", "--param", f"logit_bias={bias}")
    assert code == 2
    assert "step" in out
    assert "No token can follow" in error_line(err)
