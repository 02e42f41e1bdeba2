"""docs/extending.md is run as it stands: its blocks are a plug-in that conforms and stands in `bench` beside others."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from outrider.testing.tiny import tiny_folder

PAGE = Path(__file__).resolve().parents[2] / "docs" / "extending.md"


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own: what a plug-in registers stays registered."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OUTRIDER_DEBUG": "1"}
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=cwd, env=env, capture_output=True, text=True, timeout=200
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's Python blocks as the two files it speaks of."""
    folder = tmp_path_factory.mktemp("plugin")
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    tests = [block for block in blocks if block.startswith("# test_my_parts.py")]
    parts = [block for block in blocks if block not in tests]
    assert (len(parts), len(tests)) == (5, 1)
    (folder / "my_parts.py").write_text("\n\n".join(parts), encoding="utf-8")
    (folder / "test_my_parts.py").write_text(tests[0], encoding="utf-8")
    return folder


def test_the_page_s_own_tests_pass(folder: Path) -> None:
    done = run("pytest", "-q", "-p", "no:cacheprovider", "test_my_parts.py", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


def test_a_drafter_that_breaks_the_rules_is_caught(folder: Path) -> None:
    """The suite is worth something: the same file with state kept by place in the batch does not conform."""
    broken = folder / "broken"
    broken.mkdir()
    text = (folder / "my_parts.py").read_text(encoding="utf-8")
    wrong = text.replace("[([row.tokens[-1], *chain]", "[([row.tokens[0], *chain]")
    assert wrong != text
    (broken / "my_parts.py").write_text(wrong, encoding="utf-8")
    (broken / "test_my_parts.py").write_text((folder / "test_my_parts.py").read_text(encoding="utf-8"))
    done = run("pytest", "-q", "-p", "no:cacheprovider", "test_my_parts.py", "-k", "bigrams", cwd=broken)
    assert done.returncode == 1, done.stdout + done.stderr


def test_the_plug_in_stands_in_bench_beside_the_others(folder: Path, tmp_path: Path) -> None:
    model = tiny_folder(tmp_path / "model")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"{i} abc abc abc"}) + "\n" for i in range(2)), encoding="utf-8")
    words = ["bench", "--plugin", "my_parts.py", "--presets", "bigrams,sam,bigrams|pld", "--suite", str(prompts)]
    words += ["--model", str(model), "--max-tokens", "8", "--json", "-"]
    done = run("outrider", *words, cwd=folder)
    assert done.returncode == 0, done.stderr
    found = {entry["name"]: entry for entry in json.loads(done.stdout)["presets"]}
    assert {"plain", "bigrams", "sam", "bigrams|pld"} <= set(found)
    assert found["bigrams"]["identical"]


def test_the_plug_in_is_shown(folder: Path) -> None:
    done = run("outrider", "presets", "bigrams-near-best", "--plugin", "my_parts.py", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["guarantee"] == "relaxed"
