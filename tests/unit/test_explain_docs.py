"""docs/explain.md is run as it stands, on a tiny model in place of the one it names."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from outrider.cli import main
from outrider.explain import Fate
from outrider.explain.screen import WORDS
from outrider.testing.tiny import tiny_folder

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "explain.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny_folder(tmp_path_factory.mktemp("models") / "tiny"))


def test_the_commands_work(folder, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    lines = [line for block in blocks("console") for line in block.splitlines()]
    assert len(lines) == 8
    for line in lines:
        words = shlex.split(line)
        assert words.pop(0) == "outrider"
        model = [] if "--replay" in words else ["--model", folder]
        assert main([*words, *model]) == 0, line
        assert capfd.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"tree.html", "count.trace", "sweep.json"}
    assert len(json.loads((tmp_path / "sweep.json").read_text())["trials"]) == 15


def test_the_python_example_works(folder, capsys):
    (code,) = blocks("python")
    exec(compile(code.replace("smollm2-135m", folder), "docs/explain.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "sam" in printed
    assert "the target's first choice" in printed


def test_every_fate_is_explained():
    table = PAGE.split("| what became of it |")[1].split("\n\n")[0]
    for fate in set(Fate) - {Fate.ROOT}:
        assert str(fate) in table or WORDS[fate] in table
