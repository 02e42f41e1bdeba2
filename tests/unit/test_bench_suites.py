"""Suites: what is shipped, what data sets may look like, and what is said about those that are broken."""

from __future__ import annotations

import gzip
import json
import re
import sys
from collections import Counter
from importlib.resources import files
from pathlib import Path
from types import ModuleType, SimpleNamespace

import huggingface_hub
import pytest
import yaml

from outrider.bench import suite as suites
from outrider.bench.prompt_files import Shape, SuitePrompt, read_prompts
from outrider.bench.suite import define, file_hash, list_suites, load_suite, pick
from outrider.errors import ConfigError, SpecError

GROUPS = {
    "chat": 10,
    "code-writing": 8,
    "code-editing": 8,
    "summarising": 7,
    "translation": 6,
    "maths": 7,
    "retrieval": 6,
    "json": 5,
    "agent": 5,
    "correction": 4,
}


@pytest.fixture(autouse=True)
def _no_data_elsewhere(monkeypatch):
    monkeypatch.delenv("OUTRIDER_DATA", raising=False)
    monkeypatch.setattr("outrider.pull.hub.unreachable", lambda endpoint: "The hub does not answer from this machine")


def lines(path, *values):
    """A file of JSON lines; strings are written as they are."""
    text = [value if isinstance(value, str) else json.dumps(value) for value in values]
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    return path


def question(number, category, *turns):
    return {"question_id": number, "category": category, "turns": list(turns or ("one?",)), "reference": ["x"]}


# -- what is shipped --------------------------------------------------------------------------------------------


def test_the_shipped_suites_are_whole():
    assert list_suites() == ["gsm8k", "humaneval", "own", "spec-bench"]
    for name in list_suites():
        definition = define(name)
        assert definition.name == name
        assert definition.about
        assert definition.licence
        assert definition.data.file or definition.data.home.startswith("https://")
    with pytest.raises(ConfigError, match=r"unknown suite 'gms8k'\. Did you mean 'gsm8k'"):
        define("gms8k")


def test_data_are_found_as_resources_of_the_package():
    folder = files("outrider.bench") / "suites"
    assert {entry.name for entry in folder.iterdir()} >= {"own.jsonl", "own.yaml", "spec-bench.yaml"}


def test_own_suite_is_what_its_page_says():
    suite = load_suite("own")
    assert suite.version == "1"
    assert Counter(prompt.group for prompt in suite.prompts) == GROUPS
    assert len({prompt.turns for prompt in suite.prompts}) == len(suite.prompts) == sum(GROUPS.values())
    assert all(prompt.id.startswith(prompt.group) for prompt in suite.prompts)
    assert not any(prompt.raw for prompt in suite.prompts)
    several = Counter(prompt.group for prompt in suite.prompts if len(prompt.turns) > 1)
    assert several["agent"] == 5
    assert several["chat"] >= 3


def test_own_agent_loops_repeat_in_part_and_never_whole():
    for prompt in load_suite("own").prompts:
        if prompt.group != "agent":
            continue
        for earlier, later in zip(prompt.turns, prompt.turns[1:], strict=False):
            assert earlier not in later
            assert later not in earlier


def test_own_code_editing_has_a_whole_file_in_each_prompt():
    for prompt in load_suite("own").prompts:
        if prompt.group == "code-editing":
            _, code, rest = prompt.turns[0].split("```")
            assert rest == ""
            assert 45 <= code.count("\n") <= 65, prompt.id


def test_own_suite_is_frozen(tmp_path, monkeypatch):
    """Any change of the shipped prompts is found; line ends alone are none."""
    for entry in (files("outrider.bench") / "suites").iterdir():
        (tmp_path / entry.name).write_bytes(entry.read_bytes())
    monkeypatch.setattr(suites, "_shipped", lambda: tmp_path)
    whole = load_suite("own")
    prompts = tmp_path / "own.jsonl"
    text = prompts.read_bytes()
    prompts.write_bytes(text.replace(b"\n", b"\r\n"))
    assert load_suite("own") == whole
    prompts.write_bytes(text.replace(b"sourdough", b"sour dough", 1))
    with pytest.raises(ConfigError, match=r"suite 'own' version 1 is frozen, and 'own\.jsonl' has changed"):
        load_suite("own")
    prompts.unlink()
    with pytest.raises(ConfigError, match=r"own\.jsonl' cannot be read: No such file"):
        load_suite("own")


def test_own_suite_takes_no_data(tmp_path):
    with pytest.raises(ConfigError, match="suite 'own' brings its own prompts"):
        load_suite("own", data=tmp_path)


# -- the data sets of others ------------------------------------------------------------------------------------


def test_spec_bench_groups_and_turns(tmp_path):
    eight = ["writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"]
    rest = ["translation", "summarization", "qa", "math_reasoning", "rag"]
    rows = [question(81 + i, name, "first", "second") for i, name in enumerate(eight)]
    rows += [question(161 + i, name) for i, name in enumerate(rest)] + [question(900, "new-category")]
    path = lines(tmp_path / "question.jsonl", *rows)
    suite = load_suite("spec-bench", data=path)
    assert Counter(prompt.group for prompt in suite.prompts) == {"multi-turn": 8, **dict.fromkeys(rest, 1)} | {
        "new-category": 1
    }
    assert suite.prompts[0] == SuitePrompt("81", "writing", "multi-turn", ("first", "second"))
    assert load_suite("spec-bench", data=tmp_path) == suite
    (tmp_path / "clone" / "data" / "spec_bench").mkdir(parents=True)
    path.rename(tmp_path / "clone" / "data" / "spec_bench" / "question.jsonl")
    assert load_suite("spec-bench", data=tmp_path / "clone") == suite


def test_humaneval_and_gsm8k_get_their_instructions(tmp_path):
    code = 'def add(a, b):\n    """Braces {like these} and {prompt} stay."""\n'
    path = tmp_path / "HumanEval.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps({"task_id": "HumanEval/0", "prompt": "\n" + code}).encode()))
    (prompt,) = load_suite("humaneval", data=tmp_path).prompts
    assert prompt.turns[0].startswith("Complete this Python function.")
    assert f"```python\n{code}```" in prompt.turns[0]
    assert (prompt.id, prompt.group, prompt.category) == ("HumanEval/0", "code", "code")
    path = lines(tmp_path / "test.jsonl", {"question": "How many?", "answer": "Two.\n#### 2"})
    (prompt,) = load_suite("gsm8k", data=path).prompts
    assert prompt.turns[0].startswith("How many?\n\nThink step by step")
    assert "Two." not in prompt.turns[0]


def test_official_data(shared_data):
    suite = load_suite("spec-bench", data=shared_data, limit=60)
    assert Counter(Counter(prompt.group for prompt in suite.prompts).values()) == {10: 6}
    assert len({prompt.category for prompt in suite.prompts}) == 13
    assert len(load_suite("humaneval", data=shared_data).prompts) == 82
    assert len(load_suite("gsm8k", data=shared_data).prompts) == 2000


def test_data_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("OUTRIDER_DATA", str(tmp_path))
    with pytest.raises(ConfigError, match="needs its data set, which is not shipped"):
        load_suite("spec-bench")
    lines(tmp_path / "spec_bench_half.jsonl", question(1, "qa"))
    assert load_suite("spec-bench").prompts[0].category == "qa"
    monkeypatch.setenv("OUTRIDER_DATA", str(tmp_path / "gone"))
    with pytest.raises(ConfigError, match=r"OUTRIDER_DATA='.*gone' is not a folder"):
        load_suite("spec-bench")


def test_data_from_the_hub(tmp_path, monkeypatch):
    """The file that the hub's client hands out; Parquet is read where pyarrow is."""
    asked = []

    def download(repo, file, *, repo_type, local_files_only):
        asked.append((repo, file, repo_type, local_files_only))
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr("outrider.pull.hub.unreachable", lambda endpoint: "")
    path = lines(tmp_path / "hub.jsonl", {"question": "How many?"})
    assert load_suite("gsm8k").prompts[0].id == "1"
    assert asked == [("openai/gsm8k", "main/test-00000-of-00001.parquet", "dataset", False)]
    path = tmp_path / "hub.parquet"
    path.write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"pyarrow is not installed\. pip install pyarrow"):
        load_suite("gsm8k")
    pyarrow = ModuleType("pyarrow")
    rows = [{"question": "How many?"}, {"question": "How much?"}]
    pyarrow.parquet = SimpleNamespace(read_table=lambda path: SimpleNamespace(to_pylist=lambda: rows))
    monkeypatch.setitem(sys.modules, "pyarrow", pyarrow)
    assert [prompt.id for prompt in load_suite("gsm8k").prompts] == ["1", "2"]
    rows[1]["question"] = None
    with pytest.raises(ConfigError, match=r"hub\.parquet', row 2: field 'question'"):
        load_suite("gsm8k")


def test_missing_data_say_what_to_pass_and_where_they_live(tmp_path):
    with pytest.raises(ConfigError, match=r"Give --data PATH.*https://github\.com/hemingkx/Spec-Bench"):
        load_suite("spec-bench")
    with pytest.raises(ConfigError, match=r"The hub does not answer.*--data PATH.*grade-school-math"):
        load_suite("gsm8k")
    with pytest.raises(ConfigError, match=r"nowhere' does not exist.*--data PATH"):
        load_suite("humaneval", data=tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"holds no data of suite 'humaneval'.*HumanEval\.jsonl"):
        load_suite("humaneval", data=tmp_path)
    for name in ("gsm8k_train.jsonl", "gsm8k_dev.jsonl"):
        lines(tmp_path / name, {"question": "x"})
    with pytest.raises(ConfigError, match=r"several files 'gsm8k\*\.jsonl': gsm8k_dev\.jsonl, gsm8k_train\.jsonl"):
        load_suite("gsm8k", data=tmp_path)


# -- a user's own lines -----------------------------------------------------------------------------------------


def test_every_form_of_a_line(tmp_path):
    path = lines(
        tmp_path / "mine.v2.jsonl",
        {"prompt": "plain"},
        "",
        '"bare\u2028text"',
        {"question": "asked", "answer": "no"},
        {"id": 7, "turns": ["a", "b"], "category": "two", "system": "Be short."},
        {"task_id": "t/1", "prompt": "continue", "raw": True, "group": "base"},
        {
            "messages": [
                {"role": "system", "content": "Be kind."},
                {"role": "user", "content": "hello"},
                {"role": "assistant", "content": "not used"},
                {"role": "user", "content": "again"},
            ],
            "prompt": "hello",
        },
    )
    suite = load_suite(str(path))
    assert (suite.name, suite.version, suite.max_tokens) == ("mine", "0", 256)
    assert suite.prompts == (
        SuitePrompt("line-1", "all", "all", ("plain",)),
        SuitePrompt("line-3", "all", "all", ("bare\u2028text",)),
        SuitePrompt("line-4", "all", "all", ("asked",)),
        SuitePrompt("7", "two", "two", ("a", "b"), "Be short."),
        SuitePrompt("t/1", "base", "base", ("continue",), raw=True),
        SuitePrompt("line-7", "all", "all", ("hello", "again"), "Be kind."),
    )


BROKEN = {
    '{"prompt": "x"': r"line 2 is not JSON: Expecting ',' delimiter at column 15\. A prompt file has one JSON value",
    "[" * 100_000: "line 2 is nested too deeply",
    "[1, 2]": "line 2: the line: input should be a valid dictionary",
    "17": "line 2: the line: input should be a valid dictionary",
    '{"text": "x"}': r"line 2: the line has no prompt, messages, turns or question\. A line of the format jsonl looks",
    '{"prompt": 3}': "line 2: field 'prompt': input should be a valid string",
    '{"prompt": "  "}': "line 2: field 'prompt' is blank",
    '{"prompt": "\\ud800"}': "line 2: field 'prompt' holds half of a surrogate pair",
    '""': "line 2: field 'prompt' is blank",
    '{"turns": []}': "line 2: field 'turns': list should have at least 1 item",
    '{"turns": ["a", 5]}': "line 2: field 'turns.1': input should be a valid string",
    '{"messages": [{"role": "user"}]}': "line 2: field 'messages.0.content' is missing",
    '{"messages": [{"role": "tool", "content": "x"}]}': "line 2: field 'messages.0.role': input should be 'system'",
    '{"messages": [{"role": "system", "content": "x"}]}': "line 2: the line has no prompt",
    '{"messages": [{"role": "user", "content": [{"type": "text"}]}]}': "line 2: field 'messages.0.content'",
    '{"prompt": "x", "id": 1.5}': "line 2: field 'id",
    '{"prompt": "x", "id": "a"}': r"line 2: the id 'a' was used in line 1\. Ids must differ",
    '{"prompt": "x", "raw": "yes"}': "line 2: field 'raw': input should be a valid boolean",
    '{"turns": ["a", "b"], "raw": true}': "line 2: the line is raw and has several turns",
    '{"prompt": "a", "system": "b", "raw": true}': "line 2: the line is raw and has a system message",
}


@pytest.mark.parametrize("line", BROKEN, ids=range(len(BROKEN)))
def test_broken_lines_are_named(tmp_path, line):
    path = lines(tmp_path / "mine.jsonl", {"prompt": "fine", "id": "a"}, line)
    with pytest.raises(ConfigError, match=r"mine\.jsonl', " + BROKEN[line]):
        load_suite(str(path))


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("spec-bench", {"question_id": 1, "turns": ["x"]}, "line 1: field 'category' is missing"),
        ("spec-bench", question(1, "qa") | {"turns": "x"}, "line 1: field 'turns': input should be a valid list"),
        ("humaneval", {"prompt": "def f():"}, "line 1: field 'task_id' is missing"),
        ("gsm8k", {"answer": "2"}, "line 1: field 'question' is missing"),
    ],
)
def test_data_of_another_suite_are_named(tmp_path, name, row, message):
    with pytest.raises(ConfigError, match=message + ".*A line of the format " + name):
        load_suite(name, data=lines(tmp_path / "data.jsonl", row))


def test_broken_files_are_named(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text("\n \n")
    with pytest.raises(ConfigError, match=r"mine\.jsonl' has no prompts"):
        load_suite(str(path))
    path.write_bytes('{"prompt": "eins"}\n{"prompt": "größer"}\n'.encode("latin-1"))
    with pytest.raises(ConfigError, match="line 2 is not UTF-8 text"):
        load_suite(str(path))
    path.write_bytes(b"\xef\xbb\xbf" + b'{"prompt": "byte order mark"}\r\n')
    assert load_suite(str(path)).prompts[0].turns == ("byte order mark",)
    packed = tmp_path / "mine.jsonl.gz"
    packed.write_bytes(gzip.compress(b'{"prompt": "x"}' * 50)[:-9])
    with pytest.raises(ConfigError, match=r"mine\.jsonl\.gz' cannot be unpacked"):
        load_suite(str(packed))


def test_names_and_paths_that_are_not_there(tmp_path):
    with pytest.raises(
        ConfigError, match=r"'spec-bnch' is neither a known suite nor a file\. Did you mean 'spec-bench'"
    ):
        load_suite("spec-bnch")
    with pytest.raises(ConfigError, match=r"humanevl\.jsonl' is neither .* Did you mean 'humaneval'"):
        load_suite(str(tmp_path / "humanevl.jsonl"))
    with pytest.raises(ConfigError, match=r"is a folder\. Name the suite"):
        load_suite(str(tmp_path))
    path = lines(tmp_path / "mine.jsonl", {"prompt": "x"})
    with pytest.raises(ConfigError, match="is a file of prompts, and data="):
        load_suite(str(path), data=tmp_path)
    assert issubclass(ConfigError, SpecError)


# -- a user's own definition ------------------------------------------------------------------------------------


def definition(tmp_path, **changes):
    fields = {"name": "mine", "version": "3", "about": "mine", "format": "jsonl", "max_tokens": 40}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(fields | {"data": {"file": "prompts.jsonl"}} | changes))
    return path


def test_a_definition_of_ones_own(tmp_path):
    prompts = lines(
        tmp_path / "prompts.jsonl", {"turns": ["a", "b"], "category": "x"}, {"prompt": "c", "system": "own"}
    )
    path = definition(tmp_path, template="<{prompt}>", system="all", groups={"x": "first"}, group="rest")
    suite = load_suite(str(path))
    assert (suite.name, suite.version, suite.max_tokens) == ("mine", "3", 40)
    assert suite.prompts == (
        SuitePrompt("line-1", "x", "first", ("<a>", "b"), "all"),
        SuitePrompt("line-2", "rest", "rest", ("<c>",), "own"),
    )
    frozen = {"file": "prompts.jsonl", "sha256": file_hash(prompts)}
    assert load_suite(str(definition(tmp_path, data=frozen, format="own"))).prompts[0].turns == ("a", "b")
    with pytest.raises(ConfigError, match=r"is frozen, and 'prompts\.jsonl' has changed"):
        load_suite(str(definition(tmp_path, data=frozen | {"sha256": "0" * 64})))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"template": "no place"}, r"the suite has a template without \{prompt\}"),
        ({"format": "own"}, "is frozen .* needs data.file and data.sha256"),
        ({"format": "json"}, "field 'format': input should be 'spec-bench', 'humaneval', 'gsm8k', 'jsonl' or 'own'"),
        ({"max_tokens": 0}, "field 'max_tokens': input should be greater than or equal to 1"),
        ({"version": 3}, "field 'version': input should be a valid string"),
        ({"templat": "x"}, r"field 'templat': .*Did you mean 'template'"),
        ({"data": {"files": "x"}}, r"field 'data.files': .*Did you mean 'file'"),
        ({"data": {"names": ["/tmp/x"]}}, "an absolute path among data.names"),
        ({"data": {"file": "gone.jsonl"}}, r"gone\.jsonl' cannot be read: No such file"),
    ],
)
def test_broken_definitions_are_named(tmp_path, changes, message):
    lines(tmp_path / "prompts.jsonl", {"prompt": "x"})
    with pytest.raises(ConfigError, match=message):
        load_suite(str(definition(tmp_path, **changes)))


def test_definitions_that_are_not_yaml(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: [")
    with pytest.raises(ConfigError, match=r"mine\.yaml' is not YAML"):
        load_suite(str(path))
    path.write_text("just text")
    with pytest.raises(ConfigError, match="the suite: input should be a valid dictionary"):
        load_suite(str(path))
    path.write_bytes(b"name: \xff")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_suite(str(path))


# -- limit and hash ---------------------------------------------------------------------------------------------


def numbered(**sizes):
    return tuple(SuitePrompt(f"{group}{i}", "c", group, ("x",)) for group, size in sizes.items() for i in range(size))


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 10, 15, 16, 99])
def test_limit_goes_in_turns_and_spreads(limit):
    prompts = numbered(a=9, b=5, c=2)
    chosen = pick(prompts, limit)
    assert len(chosen) == len({prompt.id for prompt in chosen}) == min(limit, 16)
    assert [prompt.group for prompt in chosen[:3]] == ["a", "b", "c"][:limit]
    counts = Counter(prompt.group for prompt in chosen)
    full = {group for group, size in {"a": 9, "b": 5, "c": 2}.items() if counts[group] == size}
    open_groups = [counts[group] for group in "abc" if group not in full]
    assert not open_groups or max(open_groups) - min(open_groups) <= 1
    assert chosen == pick(prompts, limit)


def test_limit_takes_from_the_whole_of_a_group():
    places = [int(prompt.id[1:]) for prompt in pick(numbered(a=80), 4)]
    assert places == [10, 30, 50, 70]


def test_limits_that_are_none():
    for limit in (0, -3, True, "five"):
        with pytest.raises(ConfigError, match="limit="):
            load_suite("own", limit=limit)


def test_hash_is_of_the_data_and_not_of_the_limit(tmp_path):
    path = lines(tmp_path / "a.jsonl", *(question(i, "qa", f"q{i}") for i in range(6)))
    whole, part = load_suite("spec-bench", data=path), load_suite("spec-bench", data=path, limit=2)
    assert whole.sha256 == part.sha256
    assert len(part.prompts) == 2
    moved = tmp_path / "other name.jsonl"
    moved.write_bytes(path.read_bytes().replace(b"\n", b"\n\n"))
    assert load_suite("spec-bench", data=moved).sha256 == whole.sha256
    for change in (
        question(5, "qa", "another text"),
        question(5, "rag", "q5"),
        question(77, "qa", "q5"),
        question(5, "qa", "q5", "q6"),
    ):
        lines(path, *(question(i, "qa", f"q{i}") for i in range(5)), change)
        assert load_suite("spec-bench", data=path).sha256 != whole.sha256


def test_a_template_goes_around_the_first_turn_alone(tmp_path):
    path = lines(tmp_path / "a.jsonl", {"turns": ["{prompt}", "second"]})
    (prompt,) = read_prompts(path, Shape("jsonl", template="[{prompt}]"))
    assert prompt.turns == ("[{prompt}]", "second")


# -- the page ---------------------------------------------------------------------------------------------------

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "suites.md").read_text(encoding="utf-8")


def block(language):
    (text,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return text


def test_the_page_counts_as_the_suite_does():
    rows = re.findall(r"^\| `([a-z-]+)` \| (\d+) \|", PAGE, re.MULTILINE)
    assert {name: int(count) for name, count in rows if name in GROUPS} == GROUPS
    assert f"| `own` | {sum(GROUPS.values())} |" in PAGE


def test_the_examples_of_the_page_run(tmp_path, capsys):
    exec(block("python"), {})
    assert "chat-03 chat 2" in capsys.readouterr().out
    suite = load_suite(str(lines(tmp_path / "mine.jsonl", block("json"))))
    assert [prompt.id for prompt in suite.prompts] == ["line-1", "letter-3", "line-3", "line-4", "line-5", "line-6"]
    lines(tmp_path / "tickets.jsonl", {"prompt": "Where is it?", "category": "refund"})
    path = tmp_path / "tickets.yaml"
    path.write_text(re.sub(r"sha256: 5f0c\.\.\..*", "", block("yaml")))
    (prompt,) = load_suite(str(path)).prompts
    assert (prompt.group, prompt.turns[0]) == ("money", "Answer this ticket in two sentences.\n\nWhere is it?")
