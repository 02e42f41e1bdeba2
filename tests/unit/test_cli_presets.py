"""``outrider presets``: the table, the JSON, a page."""

from __future__ import annotations

import json

import pytest

from outrider.cli import main
from outrider.registry import REGISTRY, list_presets

FIELDS = {"name", "paper", "guarantee", "needs", "trained", "summary"}


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")


def test_json(capsys):
    assert main(["presets", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in shown] == list_presets()
    for entry in shown:
        assert set(entry) == FIELDS
        assert entry["guarantee"] in ("identical", "exact", "relaxed")
        assert isinstance(entry["needs"], list)
        assert isinstance(entry["trained"], bool)
        assert entry["summary"]


@pytest.mark.parametrize("columns", [80, 160])
def test_table_fits(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    for name in list_presets():
        assert any(line.startswith(name + " ") for line in lines)


def test_every_page(capsys):
    for preset in REGISTRY.all():
        assert main(["presets", preset.name]) == 0
        shown = capsys.readouterr().out
        assert max(map(len, shown.splitlines())) <= 80
        assert str(preset.guarantee) in shown
        for setting, default in preset.settings.items():
            assert f"{setting} = {default!r}" in shown


def test_page_knows_aliases_and_links_the_paper(capsys):
    assert main(["presets", "suffix-automaton"]) == 0
    assert "https://arxiv.org/abs/2411.10666" in capsys.readouterr().out
    assert main(["presets", "sam", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["depth"] == 40


def test_unknown_name_suggests_the_nearest(capsys):
    assert main(["presets", "token-recyling"]) == 2
    assert "'token-recycling'" in capsys.readouterr().err


def test_plugin_file_is_listed(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(REGISTRY, "_presets", dict(REGISTRY._presets))
    monkeypatch.setattr(REGISTRY, "_aliases", dict(REGISTRY._aliases))
    file = tmp_path / "mine.py"
    file.write_text(
        "from outrider.registry import preset, register\n"
        "@register('mine-own', paper='2401.00001')\n"
        "def mine():\n"
        "    '''Look up, my way.'''\n"
        "    return preset('pld')\n"
    )
    assert main(["presets", "--plugin", str(file)]) == 0
    assert "Look up, my way." in capsys.readouterr().out
