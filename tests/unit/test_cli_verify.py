"""``outrider verify`` on a tiny random model: what it prints and writes, its exit codes, and how it fails."""

from __future__ import annotations

import json
from contextlib import contextmanager

import pytest

from outrider.cli import main
from outrider.registry import REGISTRY
from outrider.testing.tiny import tiny_folder

PLUGIN = '''
"""A method that says it is exact and is not, and one that declares that it is not."""

from outrider import register
from outrider.certify.controls import AcceptAll
from outrider.registry import preset
from outrider.types import Guarantee


class Lying(AcceptAll):
    guarantee = Guarantee.IDENTICAL


class Relaxed(AcceptAll):
    guarantee, bound = Guarantee.RELAXED, "anything may be said"


@register("lying")
def lying():
    """Accepts everything."""
    return preset("pld", verifier=Lying())


@register("loose")
def relaxed():
    """Accepts everything, and says so."""
    return preset("pld", verifier=Relaxed())
'''

PROMPTS = ["one two three one two three one two", "the sea the sea the", "abcabcabcabc"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny_folder(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    file = tmp_path_factory.mktemp("suites") / "mine.jsonl"
    lines = [json.dumps({"id": f"p{number}", "prompt": text}) for number, text in enumerate(PROMPTS)]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(file)


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "OUTRIDER_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture
def run(folder, suite, capfd):
    """Call the command; returns exit code, standard output, standard error."""

    def call(*args, model=folder, short=True):
        fixed = ["--suite", suite, "--max-tokens", "12", "--samples", "60", "--dtype", "float64"] if short else []
        code = main(["verify", "--model", model, *fixed, *args])
        return code, *capfd.readouterr()

    return call


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A file with presets of its own; the registry forgets them after the test."""
    REGISTRY.load()
    monkeypatch.setattr(REGISTRY, "_presets", dict(REGISTRY._presets))
    file = tmp_path / "methods.py"
    file.write_text(PLUGIN, encoding="utf-8")
    return str(file)


def test_a_right_method_passes(run, tmp_path):
    files = tmp_path / "c.json", tmp_path / "c.html"
    code, out, _ = run("--preset", "token-recycling", "--json", str(files[0]), "--html", str(files[1]))
    assert code == 0, out
    assert "Passed" in out
    assert out.index("Passed") < out.index("Greedy texts")
    assert "control: planted token (greedy)" in out
    read = json.loads(files[0].read_text(encoding="utf-8"))
    assert read["verdict"] == "passed"
    assert read["prompts"]["ids"] == ["p0", "p1", "p2"]
    assert read["settings"]["max_tokens"] == 12
    assert "<title>Certificate:" in files[1].read_text(encoding="utf-8")


def test_json_on_standard_output_and_nothing_else(run):
    code, out, err = run("--preset", "token-recycling", "--json", "-")
    assert code == 0
    assert json.loads(out)["presets"][0]["name"] == "token-recycling"
    assert "Passed" in err


def test_a_wrong_method_has_exit_code_1(run, plugin, tmp_path):
    page = tmp_path / "c.html"
    code, out, _ = run("--plugin", plugin, "--preset", "lying", "--html", str(page))
    assert code == 1
    assert "Wrong" in out
    assert "no tie" in out
    assert "badge bad" in page.read_text(encoding="utf-8")


def test_a_relaxed_method_is_measured(run, plugin):
    code, out, _ = run("--plugin", plugin, "--preset", "loose", "--json", "-")
    assert code == 0
    read = json.loads(out)
    assert read["verdict"] == "relaxed"
    assert read["presets"][0]["checks"][0]["bound"] == "anything may be said"


def test_what_proves_nothing_has_exit_code_3(run):
    """Twenty samples of two tokens cannot tell the warmer control from plain decoding."""
    code, out, _ = run("--preset", "plain", "--samples", "20", "--top-k", "2", "--temperature", "0.05")
    assert code == 3
    assert "Inconclusive" in out
    assert "missed" in out


def test_all_presets_that_can_run(run):
    code, out, _ = run("--preset", "all", "--samples", "0", "--prompts", "2", "--json", "-")
    read = json.loads(out)
    names = [found["name"] for found in read["presets"]]
    assert {"sam", "pld", "token-recycling"} <= set(names)
    assert "plain" not in names
    assert len(names) == len(set(names)) >= 4
    left = {each["name"]: each["reason"] for each in read["left_out"]}
    assert "draft model" in left["spec-decode"]
    assert code in (0, 3)


def test_with_a_draft_model_and_settings(run, folder):
    code, out, _ = run("--draft-model", folder, "--preset", "spec-decode(depth=2),sam|pld", "--json", "-")
    read = json.loads(out)
    assert [found["name"] for found in read["presets"]] == ["spec-decode(depth=2)", "sam|pld"]
    assert read["presets"][0]["verdict"] in ("passed", "inconclusive")
    assert read["draft_model"]
    assert code in (0, 3)


def test_sampling_options_reach_the_checks(run):
    args = ("--temperature", "0.7", "--top-p", "0.9", "--param", "min_p=0.02", "--seed", "5", "--json", "-")
    _, out, _ = run("--preset", "sam", *args)
    read = json.loads(out)
    assert read["settings"]["sampling"] == {"temperature": 0.7, "top_p": 0.9, "min_p": 0.02}
    seeded = next(check for check in read["presets"][0]["checks"] if check["name"] == "seeded")
    assert (seeded["params"]["top_p"], seeded["params"]["seed"]) == (0.9, 5)


def test_an_interruption_writes_what_was_found(run, tmp_path, monkeypatch):
    import outrider.cli._verify as module

    @contextmanager
    def impatient(screens):
        def tell(step):
            if step.stage == "in one batch":
                raise KeyboardInterrupt

        yield tell

    monkeypatch.setattr(module, "progress", impatient)
    file = tmp_path / "c.json"
    code, out, err = run("--preset", "sam", "--json", str(file))
    assert code == 130
    assert "interrupted" in err
    assert "Incomplete" in out
    read = json.loads(file.read_text(encoding="utf-8"))
    assert read["verdict"] == "incomplete"
    assert [check["name"] for check in read["presets"][0]["checks"]] == ["greedy"]


def test_colours_on_a_terminal_only(run, monkeypatch):
    args = ("--preset", "sam", "--samples", "0", "--prompts", "1")
    assert "\x1b[" not in run(*args)[1]
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[" in run(*args)[1]


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("--preset", "samm"), "Did you mean 'sam'"),
        (("--preset", "sam,,pld"), "a name is empty"),
        (("--preset", "sam,sam"), "twice"),
        (("--preset", "spec-decode"), "draft model"),
        (("--suite", "nowhere.jsonl"), "neither a known suite nor a file"),
        (("--prompts", "0"), "prompts=0"),
        (("--max-tokens", "1"), "max_tokens=1"),
        (("--samples", "3"), "samples=3"),
        (("--seed", "-1"), "seed=-1"),
        (("--temperature", "-1"), "temperature"),
        (("--top-p", "2"), "top_p"),
        (("--param", "min_q=1"), "min_p"),
        (("--param", "temperature=1"), "--temperature"),
        (("--param", "n=2"), "n=2"),
        (("--param", "logprobs=2"), "logprobs"),
        (("--threads", "0"), "--threads is 0"),
        (("--json", "/nowhere/c.json"), "cannot be written"),
        (("--html", "."), "cannot be written"),
        (("--json", "-", "--html", "-"), "Give two names"),
        (("--plugin", "missing.py"), "does not exist"),
        (("--max-context", "8"), "no prompt can be decoded"),
    ],
)
def test_bad_input_has_exit_code_2(run, args, told):
    code, out, err = run(*args)
    assert code == 2
    assert out == ""
    assert told in err


def test_a_model_that_is_not_there(run):
    code, _, err = run("--preset", "sam", model="no/such-model-here")
    assert code == 2
    assert "no/such-model-here" in err


def test_help_names_the_exit_codes(capfd):
    assert main(["verify", "--help"]) == 0
    out = capfd.readouterr().out
    assert "inconclusive" in out
    assert "--samples" in out
