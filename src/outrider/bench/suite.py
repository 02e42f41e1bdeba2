"""Suites: named, versioned sets of prompts. A definition is a YAML file beside this module, or a user's own."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from outrider.bench.prompt_files import Format, Shape, SuitePrompt, complaint, read_prompts
from outrider.errors import ConfigError, check_number, nearest

__all__ = ["Suite", "SuiteDefinition", "SuitePrompt", "define", "list_suites", "load_suite"]

ENVIRONMENT = "OUTRIDER_DATA"
"""A folder where data sets are looked for when none is given."""


@dataclass(frozen=True)
class Suite:
    """Prompts, ready to run. ``sha256`` is over all prompts that were loaded, before ``limit`` picked some: figures
    belong together only where it is the same."""

    name: str
    version: str
    sha256: str
    about: str
    max_tokens: int
    prompts: tuple[SuitePrompt, ...]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class HubFile(_Strict):
    """A file of a data set on the hub."""

    repo: str
    file: str


class Data(_Strict):
    """Where prompts come from: a ``file`` beside the definition with its ``sha256``, or a path that the user gives,
    in which one of ``names`` is looked for if it is a folder; then the ``hub``. ``home`` says where it lives."""

    file: str | None = None
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    names: list[str] = Field(default_factory=list)
    hub: HubFile | None = None
    home: str = ""


class SuiteDefinition(_Strict):
    """A suite as its YAML file describes it."""

    name: str
    version: str
    about: str
    licence: str = ""
    format: Format
    max_tokens: int = Field(ge=1)
    template: str = "{prompt}"
    system: str | None = None
    group: str | None = None
    groups: dict[str, str] = Field(default_factory=dict)
    data: Data = Field(default_factory=Data)

    @model_validator(mode="after")
    def _whole(self) -> SuiteDefinition:
        if "{prompt}" not in self.template:
            raise ValueError("has a template without {prompt}")
        if any(Path(name).is_absolute() for name in self.data.names):
            raise ValueError("has an absolute path among data.names, which are looked for inside a folder")
        if self.format == "own" and (self.data.file is None or self.data.sha256 is None):
            raise ValueError("is frozen (format own): it needs data.file and data.sha256")
        return self

    @property
    def shape(self) -> Shape:
        return Shape(self.format, self.template, self.system, self.group, self.groups)


def list_suites() -> list[str]:
    """Names of the suites of the package, sorted."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _shipped().iterdir() if entry.name.endswith(".yaml"))


def define(name: str) -> SuiteDefinition:
    """The definition of a suite of the package. Raises ``ConfigError`` with the nearest name."""
    if name not in list_suites():
        raise ConfigError(f"unknown suite {name!r}", hint=nearest(name, list_suites()))
    entry = _shipped() / f"{name}.yaml"
    return _definition(entry.read_text(encoding="utf-8"), entry.name)


def load_suite(name_or_path: str, *, data: Path | None = None, limit: int | None = None) -> Suite:
    """A suite of the package by name, a suite of your own (``.yaml``), or any file of JSON lines.

    ``data`` is the data set's file, or a folder that holds it; without it the folder in ``OUTRIDER_DATA`` is searched,
    then the hub is asked. ``limit`` takes that many prompts, in turns from the groups and spread evenly through each.

    Raises ``ConfigError`` for a name or path that is not there, data that are missing or broken (naming the line), and
    frozen data that have changed.
    """
    if limit is not None:
        check_number("limit", limit, 1)
    if name_or_path in list_suites():
        definition = define(name_or_path)
        with as_file(_shipped()) as folder:
            prompts = _prompts(definition, folder, data)
    else:
        definition, prompts = _from_path(Path(name_or_path).expanduser(), name_or_path, data)
    return Suite(
        name=definition.name,
        version=definition.version,
        sha256=_content(prompts),
        about=definition.about,
        max_tokens=definition.max_tokens,
        prompts=prompts if limit is None else pick(prompts, limit),
    )


def pick(prompts: Sequence[SuitePrompt], limit: int) -> tuple[SuitePrompt, ...]:
    """At most ``limit`` prompts: one of each group in turn, those of a group spread evenly through it."""
    groups: dict[str, list[SuitePrompt]] = {}
    for prompt in prompts:
        groups.setdefault(prompt.group, []).append(prompt)
    shares = dict.fromkeys(groups, 0)
    left = min(limit, len(prompts))
    while left:
        for name in [name for name in groups if shares[name] < len(groups[name])][:left]:
            shares[name] += 1
            left -= 1
    chosen = [_spread(groups[name], share) for name, share in shares.items()]
    rounds = max(shares.values(), default=0)
    return tuple(group[turn] for turn in range(rounds) for group in chosen if turn < len(group))


def _spread(group: Sequence[SuitePrompt], count: int) -> list[SuitePrompt]:
    """``count`` of them, each from the middle of its part."""
    return [group[(2 * part + 1) * len(group) // (2 * count)] for part in range(count)]


# -- definitions and data ---------------------------------------------------------------------------------------


def _shipped() -> Traversable:
    return files("outrider.bench") / "suites"


def _definition(text: str, where: str) -> SuiteDefinition:
    try:
        return SuiteDefinition.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise ConfigError(f"suite {where!r} is not YAML", why=" ".join(str(error).split())) from None
    except ValidationError as error:
        found = complaint(error, "the suite")
        unknown = [str(e["loc"][-1]) for e in error.errors() if e["type"] == "extra_forbidden"][:1]
        hint = nearest(unknown[0], {*SuiteDefinition.model_fields, *Data.model_fields}) if unknown else ""
        raise ConfigError(f"suite {where!r}: {found}", hint=hint) from None


def _from_path(path: Path, written: str, data: Path | None) -> tuple[SuiteDefinition, tuple[SuitePrompt, ...]]:
    """A user's definition, or lines that need none."""
    if path.is_dir():
        raise ConfigError(
            f"suite {written!r} is a folder", hint="Name the suite, and give the folder as its data: --data FOLDER."
        )
    if not path.is_file():
        raise ConfigError(
            f"suite {written!r} is neither a known suite nor a file",
            hint=nearest(path.name.split(".")[0], list_suites()),
        )
    if path.suffix in (".yaml", ".yml"):
        try:
            definition = _definition(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"suite {written!r} cannot be read", why=str(error)) from None
        return definition, _prompts(definition, path.parent, data)
    if data is not None:
        raise ConfigError(f"suite {written!r} is a file of prompts, and data={str(data)!r} another", hint="Give one.")
    definition = SuiteDefinition(
        name=path.name.split(".")[0] or path.name,
        version="0",
        about=f"prompts of {path.name}",
        format="jsonl",
        max_tokens=256,
    )
    return definition, read_prompts(path, definition.shape)


def _prompts(definition: SuiteDefinition, beside: Path, data: Path | None) -> tuple[SuitePrompt, ...]:
    """The prompts of a definition that lies in the folder ``beside``."""
    if definition.data.file is None:
        return read_prompts(_find(definition, data), definition.shape)
    if data is not None:
        raise ConfigError(
            f"suite {definition.name!r} brings its own prompts, and data={str(data)!r} was given", hint="Leave it out."
        )
    path, wanted = beside / definition.data.file, definition.data.sha256
    if wanted is not None and path.is_file() and (found := file_hash(path)) != wanted:
        raise ConfigError(
            f"suite {definition.name!r} version {definition.version} is frozen, and {path.name!r} has changed",
            why=f"Its sha256 is {found}, not {wanted}",
            hint="Reinstall the package; changed prompts are a new version of the suite.",
        )
    return read_prompts(path, definition.shape)


def _find(definition: SuiteDefinition, data: Path | None) -> Path:
    """The data set's file: as given, in ``OUTRIDER_DATA``, or on the hub."""
    if data is not None:
        given = Path(data).expanduser()
        if not given.exists():
            raise ConfigError(f"data={str(data)!r} does not exist", hint=_remedy(definition))
        return _inside(given, definition, f"data={str(data)!r}") if given.is_dir() else given
    if folder := os.environ.get(ENVIRONMENT):
        if not Path(folder).is_dir():
            raise ConfigError(f"{ENVIRONMENT}={folder!r} is not a folder", hint=_remedy(definition))
        if (found := _look(Path(folder), definition.data.names)) is not None:
            return found
    if definition.data.hub is not None:
        return _from_hub(definition, definition.data.hub)
    raise ConfigError(f"suite {definition.name!r} needs its data set, which is not shipped", hint=_remedy(definition))


def _inside(folder: Path, definition: SuiteDefinition, written: str) -> Path:
    found = _look(folder, definition.data.names)
    if found is None:
        names = ", ".join(definition.data.names)
        raise ConfigError(f"{written} holds no data of suite {definition.name!r}", why=f"Looked for {names}")
    return found


def _look(folder: Path, names: Iterable[str]) -> Path | None:
    """The one file in ``folder`` that the first fitting pattern names."""
    for name in names:
        found = sorted(path for path in folder.glob(name) if path.is_file())
        if len(found) > 1:
            listed = ", ".join(path.name for path in found)
            raise ConfigError(f"{str(folder)!r} holds several files {name!r}: {listed}", hint="Give one by its path.")
        if found:
            return found[0]
    return None


def _from_hub(definition: SuiteDefinition, source: HubFile) -> Path:
    """The data set's file in the hub's cache, fetched if need be."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    from outrider.pull.hub import unreachable

    problem = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else unreachable(constants.ENDPOINT)
    try:
        return Path(hf_hub_download(source.repo, source.file, repo_type="dataset", local_files_only=bool(problem)))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ConfigError(
            f"suite {definition.name!r} needs its data set, and {source.repo} could not be fetched from the hub",
            why=problem or str(error).strip().split("\n")[0],
            hint=_remedy(definition),
        ) from None


def _remedy(definition: SuiteDefinition) -> str:
    home = f" The data set lives at {definition.data.home}." if definition.data.home else ""
    return f"Give --data PATH: the file, or a folder that holds it.{home}"


# -- hashes -----------------------------------------------------------------------------------------------------


def file_hash(path: Path) -> str:
    """sha256 of a text file, line ends apart, so that a checkout with other line ends is the same."""
    return hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()


def _content(prompts: Iterable[SuitePrompt]) -> str:
    """sha256 over what the model will be asked, and how it is grouped."""
    digest = hashlib.sha256()
    for prompt in prompts:
        fields = [prompt.id, prompt.category, prompt.group, prompt.turns, prompt.system, prompt.raw]
        digest.update(json.dumps(fields, ensure_ascii=True, separators=(",", ":")).encode() + b"\n")
    return digest.hexdigest()
