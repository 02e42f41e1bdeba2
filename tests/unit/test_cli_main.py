"""The command line itself: what it costs to start, and how it fails."""

from __future__ import annotations

import subprocess
import sys
import types

import pytest

from outrider import __version__
from outrider.cli import VERBS, main
from outrider.errors import ConfigError


@pytest.fixture
def verb(monkeypatch):
    """Put a function in the place of the verb ``presets``, as ``outrider/cli/presets.py`` would define it."""

    def install(function):
        module = types.ModuleType("outrider.cli.presets")
        module.presets = function
        monkeypatch.setitem(sys.modules, module.__name__, module)

    return install


def python(code, **kwargs):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, **kwargs)


def test_help_lists_every_verb_with_its_whole_line(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name, line in VERBS.items():
        assert name in shown
        assert line in shown


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"outrider {__version__}\n"


def test_unknown_verb_names_the_nearest(capsys):
    assert main(["preset"]) == 2
    assert "presets" in capsys.readouterr().err


def test_neither_help_nor_import_loads_torch_or_a_verb():
    verbs = [f"outrider.cli.{name}" for name in VERBS]
    done = python(
        "import sys, outrider.cli\n"
        "outrider.cli.main(['--help'])\n"
        f"heavy = {{'torch', 'transformers', 'numpy', *{verbs!r}}} & set(sys.modules)\n"
        "sys.exit(f'imported: {sorted(heavy)}' if heavy else 0)"
    )
    assert done.returncode == 0, done.stderr


def test_a_verb_gets_its_arguments(verb, capsys):
    def presets(family: str, json: bool = False) -> None:
        """List them."""
        print(f"{family} {json}")

    verb(presets)
    assert main(["presets", "lookup", "--json"]) == 0
    assert capsys.readouterr().out == "lookup True\n"


def test_help_of_a_verb_is_its_docstring(verb, capsys):
    def presets(family: str) -> None:
        """Lists every method there is."""

    verb(presets)
    assert main(["presets", "-h"]) == 0
    shown = capsys.readouterr().out
    assert "Lists every method there is." in shown
    assert "outrider presets" in shown


def _refuse() -> None:
    raise ConfigError("preset 'eagel' is unknown", hint="Did you mean [eagle]?")


def test_spec_error_is_one_message_and_exit_code_2(verb, capsys, monkeypatch):
    monkeypatch.delenv("OUTRIDER_DEBUG", raising=False)
    verb(_refuse)
    assert main(["presets"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "error: preset 'eagel' is unknown. Did you mean [eagle]?\n"


def test_debug_adds_the_traceback(verb, capsys, monkeypatch):
    monkeypatch.setenv("OUTRIDER_DEBUG", "1")
    verb(_refuse)
    assert main(["presets"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_other_errors_are_not_hidden(verb):
    def presets() -> None:
        raise ZeroDivisionError

    verb(presets)
    with pytest.raises(ZeroDivisionError):
        main(["presets"])


def test_interrupt_is_130(verb, capsys):
    def presets() -> None:
        raise KeyboardInterrupt

    verb(presets)
    assert main(["presets"]) == 130
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("lines", [1, 100_000])  # met at the last flush, and in the middle of printing
def test_closed_pipe_is_quiet(lines):
    code = (
        "import sys, types, outrider.cli\n"
        "module = types.ModuleType('outrider.cli.presets')\n"
        "def presets():\n"
        "    sys.stdin.readline()\n"
        f"    for _ in range({lines}): print('a line')\n"
        "module.presets = presets\n"
        "sys.modules[module.__name__] = module\n"
        "sys.exit(outrider.cli.main(['presets']))\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    child.stdout.close()
    child.stdout = None
    _, err = child.communicate("go\n", timeout=60)
    assert (child.returncode, err) == (1, "")
