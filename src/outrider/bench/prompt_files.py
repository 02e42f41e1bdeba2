"""Prompt files: JSON lines in the layouts that data sets come in, checked line by line."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, ValidationError, model_validator

from outrider.errors import ConfigError

Format = Literal["spec-bench", "humaneval", "gsm8k", "jsonl", "own"]


@dataclass(frozen=True)
class SuitePrompt:
    """One conversation of a suite: the user's ``turns``, between which the model's own answers go.

    ``raw`` prompts are continued as they are, without the chat template; they have one turn and no ``system``.
    """

    id: str
    category: str
    group: str
    turns: tuple[str, ...]
    system: str | None = None
    raw: bool = False


@dataclass(frozen=True)
class Shape:
    """How lines become prompts. ``template`` goes around the first turn, at ``{prompt}``; ``groups`` maps
    categories to groups, and a category that it does not name goes to ``group``, or else is its own."""

    format: Format
    template: str = "{prompt}"
    system: str | None = None
    group: str | None = None
    groups: Mapping[str, str] = field(default_factory=dict)


def read_prompts(path: Path, shape: Shape) -> tuple[SuitePrompt, ...]:
    """The prompts of ``path`` (``.jsonl``, ``.jsonl.gz`` or ``.parquet``), in its order.

    Raises ``ConfigError`` naming the file and the line: not UTF-8, not JSON, a missing or wrong field, an id that
    was there before, no prompts at all.
    """
    found: dict[str, SuitePrompt] = {}
    lines: dict[str, int] = {}
    unit = "row" if path.suffix == ".parquet" else "line"
    for number, value in _values(path):
        where = f"{str(path)!r}, {unit} {number}"
        prompt = _prompt(value, shape, where, number)
        if prompt.id in found:
            raise ConfigError(
                f"{where}: the id {prompt.id!r} was used in {unit} {lines[prompt.id]}", hint="Ids must differ."
            )
        found[prompt.id], lines[prompt.id] = prompt, number
    if not found:
        raise ConfigError(f"prompt file {str(path)!r} has no prompts", hint=_looks_like(shape.format))
    return tuple(found.values())


# -- lines ------------------------------------------------------------------------------------------------------


def _values(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number from 1, JSON value) of every line that is not blank."""
    if path.suffix == ".parquet":
        yield from enumerate(_parquet(path), 1)
        return
    for number, line in enumerate(_text(path).split("\n"), 1):  # splitlines would also split at U+2028
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(
                f"{str(path)!r}, line {number} is not JSON: {error.msg} at column {error.colno}",
                hint="A prompt file has one JSON value on each line.",
            ) from None
        except RecursionError:
            raise ConfigError(f"{str(path)!r}, line {number} is nested too deeply") from None


def _text(path: Path) -> str:
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ConfigError(f"prompt file {str(path)!r} cannot be unpacked: {error}") from None
    except OSError as error:
        raise ConfigError(f"prompt file {str(path)!r} cannot be read: {error.strerror or error}") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{str(path)!r}, line {number} is not UTF-8 text", hint="Convert the file first.") from None


def _parquet(path: Path) -> list[Any]:
    """Rows of a Parquet file, which is how the hub keeps data sets."""
    try:
        from pyarrow import parquet
    except ImportError:
        raise ConfigError(
            f"{str(path)!r} is a Parquet file, and pyarrow is not installed",
            hint="pip install pyarrow, or give the data set as JSON lines.",
        ) from None
    try:
        rows: list[Any] = parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's own errors derive from these
        raise ConfigError(f"Parquet file {str(path)!r} cannot be read", why=str(error).split("\n")[0]) from None
    return rows


# -- formats ----------------------------------------------------------------------------------------------------


def _encodable(text: str) -> str:
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise ValueError("holds half of a surrogate pair, which is no text")
    return text


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("is blank")
    return _encodable(text)


Text = Annotated[str, AfterValidator(_not_blank)]
Turns = Annotated[list[Text], Field(min_length=1)]


class _Row(BaseModel):
    """A line of a data set; fields that we have no use for are left alone."""

    model_config = ConfigDict(strict=True, extra="ignore")

    def named(self, number: int) -> str:
        raise NotImplementedError

    def said(self) -> list[str]:
        raise NotImplementedError

    category: Text | None = None
    group: Text | None = None
    system: Text | None = None
    raw: bool = False


class _SpecBench(_Row):
    question_id: int | Text
    category: Text
    turns: Turns

    def named(self, number: int) -> str:
        return str(self.question_id)

    def said(self) -> list[str]:
        return self.turns


class _HumanEval(_Row):
    task_id: Text
    prompt: Text

    def named(self, number: int) -> str:
        return self.task_id

    def said(self) -> list[str]:
        return [self.prompt.strip("\n")]


class _Gsm8k(_Row):
    question: Text

    def named(self, number: int) -> str:
        return str(number)

    def said(self) -> list[str]:
        return [self.question]


class _Message(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, AfterValidator(_encodable)]

    @model_validator(mode="after")
    def _said(self) -> _Message:
        if self.role == "user":
            _not_blank(self.content)
        return self


class _Jsonl(_Row):
    """Of several forms on one line the richest counts: ``messages``, then ``turns``, ``prompt``, ``question``."""

    id: int | Text | None = Field(None, validation_alias=AliasChoices("id", "question_id", "task_id"))
    messages: Annotated[list[_Message], Field(min_length=1)] | None = None
    turns: Turns | None = None
    prompt: Text | None = None
    question: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, value: Any) -> Any:
        return {"prompt": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _whole(self) -> _Jsonl:
        if not self.said():
            raise ValueError("has no prompt, messages, turns or question")
        if self.raw and len(self.said()) > 1:
            raise ValueError("is raw and has several turns, which only a chat template can join")
        if self.raw and self.instruction() is not None:
            raise ValueError("is raw and has a system message, which only a chat template can place")
        return self

    def named(self, number: int) -> str:
        return f"line-{number}" if self.id is None else str(self.id)

    def said(self) -> list[str]:
        if self.messages is not None:
            return [message.content for message in self.messages if message.role == "user"]
        if self.turns is not None:
            return self.turns
        return [text for text in (self.prompt, self.question) if text is not None][:1]

    def instruction(self) -> str | None:
        """The system message, wherever it stands."""
        texts = [m.content for m in self.messages or () if m.role in ("system", "developer") and m.content.strip()]
        return "\n\n".join(texts) or self.system


_ROWS: dict[Format, tuple[type[_Row], str]] = {
    "spec-bench": (_SpecBench, '{"question_id": 81, "category": "writing", "turns": ["first", "second"]}'),
    "humaneval": (_HumanEval, '{"task_id": "HumanEval/0", "prompt": "def add(a, b):"}'),
    "gsm8k": (_Gsm8k, '{"question": "How many?", "answer": "#### 3"}'),
    "jsonl": (_Jsonl, '{"prompt": "text"}, {"messages": [{"role": "user", "content": "text"}]} or {"turns": ["text"]}'),
    "own": (_Jsonl, '{"id": "chat-1", "category": "chat", "turns": ["text"]}'),
}


def _prompt(value: Any, shape: Shape, where: str, number: int) -> SuitePrompt:
    """The prompt of one line."""
    kind, _ = _ROWS[shape.format]
    try:
        row = kind.model_validate(value)
    except ValidationError as error:
        raise ConfigError(f"{where}: {complaint(error, 'the line')}", hint=_looks_like(shape.format)) from None
    first, *rest = row.said()
    category = row.category or row.group or shape.group or "all"
    instruction = row.instruction() if isinstance(row, _Jsonl) else row.system
    return SuitePrompt(
        id=row.named(number),
        category=category,
        group=row.group or shape.groups.get(category) or shape.group or category,
        turns=(shape.template.replace("{prompt}", first), *rest),
        system=instruction or (None if row.raw else shape.system),
        raw=row.raw,
    )


def _looks_like(form: Format) -> str:
    return f"A line of the format {form} looks like {_ROWS[form][1]}."


def complaint(error: ValidationError, whole: str) -> str:
    """The first thing that pydantic found, as half a sentence: "field 'turns' is missing"."""
    first = error.errors(include_url=False)[0]
    place: Sequence[int | str] = first["loc"]
    name = f"field {'.'.join(str(step) for step in place)!r}" if place else whole
    if first["type"] == "missing":
        return f"{name} is missing"
    message = first["msg"].removeprefix("Value error, ")
    return f"{name} {message}" if first["type"] == "value_error" else f"{name}: {message[0].lower()}{message[1:]}"
