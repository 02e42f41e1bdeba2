"""``outrider chat`` driven through standard input."""

from __future__ import annotations

import io
import json

import pytest

from outrider.cli import main


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    from outrider.testing.tiny import tiny_folder

    return str(tiny_folder(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture
def chat(folder, capfd, monkeypatch):
    """Feed lines to the command; returns exit code, standard output, standard error."""
    for name in ("NO_COLOR", "FORCE_COLOR", "OUTRIDER_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")

    def call(lines, *args):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(line + "\n" for line in lines)))
        code = main(["chat", "--model", folder, "--preset", "pld", "--max-tokens", "6", *args])
        return code, *capfd.readouterr()

    return call


def test_the_common_prefix_is_reused(chat):
    code, out, _ = chat(["hello", "and again", "and once more"], "--json")
    assert code == 0
    answers = [json.loads(line) for line in out.splitlines()]
    assert len(answers) == 3
    reused = [answer["stats"]["reused_tokens"] for answer in answers]
    assert reused[0] == 0
    for i in (1, 2):
        assert reused[i] >= answers[i - 1]["stats"]["prompt_tokens"] - 1
        assert reused[i] < answers[i]["stats"]["prompt_tokens"]


def test_stats_line_and_plain_output(chat):
    code, out, err = chat(["hello", "again", "/stats"])
    assert code == 0
    assert "reused" in err
    assert "2 answers" in err
    assert "reused" not in out


def test_reuse_changes_nothing(chat):
    """The second answer is what a fresh model says to the same conversation."""
    _, out, _ = chat(["hello", "again"], "--json")
    _, plain, _ = chat(["hello", "again"], "--json", "--preset", "plain")
    ids = [[json.loads(line)["token_ids"] for line in text.splitlines()] for text in (out, plain)]
    assert ids[0] == ids[1]


def test_reset_and_preset_and_exit(chat):
    code, out, err = chat(
        ["hello", "/preset plain", "more", "/reset", "hello", "/preset nope", "/exit", "never"], "--json"
    )
    assert code == 0
    answers = [json.loads(line) for line in out.splitlines()]
    assert [answer["preset"] for answer in answers] == ["pld", "plain", "plain"]
    assert answers[0]["token_ids"] == answers[2]["token_ids"]
    assert "unknown preset 'nope'" in err


def test_save_and_unknown_command(chat, tmp_path):
    file = tmp_path / "talk.json"
    code, _, err = chat(["hello", f"/save {file}", f"/save {file}", "/save", "/rest", "/help"])
    assert code == 0
    saved = json.loads(file.read_text(encoding="utf-8"))
    assert [message["role"] for message in saved["messages"]] == ["user", "assistant"]
    assert "exists" in err
    assert "did you mean /reset" in err
    assert "/preset NAME" in err


def test_several_lines_between_triple_quotes(chat, tmp_path):
    file = tmp_path / "talk.json"
    code, _, _ = chat(['"""', "one", "", "two", '"""', '"""three"""', f"/save {file}"])
    assert code == 0
    said = [m["content"] for m in json.loads(file.read_text())["messages"] if m["role"] == "user"]
    assert said == ["one\n\ntwo", "three"]


def test_a_full_context_is_explained_and_the_conversation_goes_on(chat):
    code, out, err = chat(["hello", "x" * 100, "again"], "--max-context", "64", "--json")
    assert code == 0
    assert len(out.splitlines()) == 2
    assert "/reset" in err
    code, out, err = chat(["hello" * 6], "--max-context", "36", "--param", "ignore_eos=true")
    assert code == 0
    assert "the context of 36 tokens is full" in err


def test_interrupt_stops_the_answer_and_keeps_the_conversation(chat, monkeypatch):
    from outrider.run.engine import Engine

    real, calls = Engine.step, []

    def step(self):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self)

    monkeypatch.setattr(Engine, "step", step)
    code, out, err = chat(["hello", "again"], "--json", "--param", "ignore_eos=true")
    assert code == 0
    answers = [json.loads(line) for line in out.splitlines()]
    assert [answer["finish_reason"] for answer in answers] == ["cancelled", "length"]
    assert "interrupted" in err


def test_bad_input_is_refused_before_loading(chat):
    code, out, err = chat(["hello"], "--param", "mni_p=0.1")
    assert (code, out) == (2, "")
    assert "min_p" in err
    code, _, err = chat(["hello"], "--preset", "pdl")
    assert code == 2
    assert "'pld'" in err
