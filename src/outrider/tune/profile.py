"""Profiles: what was measured and chosen for one model on one machine, kept where ``preset="auto"`` finds it.

One JSON file per model and machine, in a folder of the cache beside the models (``OUTRIDER_HOME``), written in one
rename. A profile holds for exactly what it was measured with: the weights, their type and quantisation, device,
processor, cores, threads, and the draft model if it is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from outrider.errors import ModelError
from outrider.policy.cost import StepCost
from outrider.provenance import facts, machine
from outrider.pull import store
from outrider.tune.lookup import FOLDER

if TYPE_CHECKING:
    from outrider.model.base import LanguageModel

SCHEMA = 1
"""Raised by one when a reader of the old schema could misread the new one."""


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Around(_Data):
    """What a model runs in. ``gpu`` is empty on a CPU, ``draft_dtype`` without a draft model."""

    dtype: str
    draft_dtype: str
    device: str
    cpu: str
    gpu: str
    cores: int
    threads: int


class Key(_Data):
    """What a profile holds for. All of it must be equal."""

    weights: str
    quantisation: str
    draft_weights: str
    around: Around

    @property
    def digest(self) -> str:
        """A short name of it."""
        return hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True).encode()).hexdigest()[:12]


class Workload(_Data):
    """What it was measured on: ``recorded`` prompts for the prediction, ``checked`` others for the check."""

    source: str
    recorded: int
    checked: int
    tokens: int
    """Recorded tokens of output."""
    max_tokens: int
    temperature: float


class Forecast(_Data):
    """Figures of ``predict.Prediction``; ``prompts`` are those behind it."""

    tokens_per_second: float
    speedup: float
    mean_accepted_length: float
    mean_nodes: float
    seconds: dict[str, float]
    prompts: int
    source: Literal["replay", "run"]


class Measured(_Data):
    """Figures of ``predict.Check``. ``predicted`` is the forecast for the kinds of prompts that were measured, made
    before; the errors are those of its tokens per second and of its speed-up, 0.1 being 10 % too high."""

    tokens_per_second: float
    speedup: float
    prompts: int
    predicted: Forecast
    error: float
    speedup_error: float


class Place(_Data):
    """One candidate; ``speedup`` over plain is what is believed of it in the end."""

    preset: str
    speedup: float
    predicted: Forecast
    measured: Measured | None


class LeftOut(_Data):
    preset: str
    reason: str


class Profile(_Data):
    """The whole file. ``preset`` is the choice, ``why`` the reason in one sentence, ``ranking`` best first."""

    schema_version: int = SCHEMA
    key: Key
    model: str
    draft_model: str | None
    family: str
    parameters: int
    made_at: str
    outrider: str
    preset: str
    speedup: float
    why: str
    cost: dict[str, Any]
    """``policy.cost.StepCost.as_dict()``: the curve of the forward, the drafters, the host."""
    host_per_node: float
    """Seconds that each drafted node adds to the host's part of a step."""
    prompt_token: float | None
    """Seconds per token of a prompt; None where the target reads prompts apart from the first step."""
    unrest: float
    """Median over fastest time of plain steps; far above 1 on a machine that was busy with other things."""
    ranking: list[Place]
    left_out: list[LeftOut]
    workload: Workload
    seconds: float
    """How long it took."""
    provenance: dict[str, Any]

    @field_validator("cost")
    @classmethod
    def _readable(cls, cost: dict[str, Any]) -> dict[str, Any]:
        StepCost.from_dict(cost)
        return cost

    @property
    def step_cost(self) -> StepCost:
        return StepCost.from_dict(self.cost)

    @property
    def day(self) -> str:
        return self.made_at[:10]

    @property
    def file(self) -> Path:
        """Where it is kept."""
        name = "".join(c if c.isalnum() or c in "-._" else "-" for c in Path(self.model).name).lstrip(".") or "model"
        return folder() / f"{name}-{self.key.digest}.json"


def folder() -> Path:
    """Where profiles are kept. It need not exist."""
    return store.home() / FOLDER


def around(target: LanguageModel, draft: LanguageModel | None) -> Around:
    """What these models run in now."""
    here = machine()
    return Around(
        dtype=_dtype(target),
        draft_dtype="" if draft is None else _dtype(draft),
        device=target.device.type,
        cpu=here["cpu"],
        gpu=(here["gpu"] or "") if target.device.type == "cuda" else "",
        cores=here["cores"] or 0,
        threads=here["threads"],
    )


def key_of(target: LanguageModel, draft: LanguageModel | None = None) -> Key:
    """The key of these models on this machine. Reads all weights once for their hash (remembered)."""
    known = facts(target)
    return Key(
        weights=known.sha256,
        quantisation=known.quantisation,
        draft_weights="" if draft is None else facts(draft).sha256,
        around=around(target, draft),
    )


def _dtype(model: LanguageModel) -> str:
    return str(model.dtype).removeprefix("torch.")


# -- files --------------------------------------------------------------------------------------------------------


def prepare() -> Path:
    """The folder, made and known to be writable. Raises ``ModelError``."""
    where = folder()
    try:
        where.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=where):
            pass
    except OSError as error:
        raise ModelError(
            f"the folder for profiles {str(where)!r} cannot be written",
            why=error.strerror or str(error),
            hint="Set OUTRIDER_HOME to a folder that can.",
        ) from error
    return where


def save(profile: Profile) -> Path:
    """Write a profile; one of the same key is replaced. Nobody ever sees half of it."""
    path = profile.file
    prepare()
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-", suffix=".json")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(profile.model_dump_json(indent=1) + "\n")
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    return path


def discard(key: Key) -> None:
    """Delete the profiles of a key, if there are any: something newer stands for them."""
    for path, one in list(profiles()):
        if isinstance(one, Profile) and one.key == key:
            with contextlib.suppress(OSError):
                path.unlink()


def log(entry: dict[str, Any]) -> Path:
    """Append a line to ``predictions.jsonl`` beside the profiles: predictions go there before anything is measured."""
    path = prepare() / "predictions.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
    return path


class Unreadable(Exception):
    """A file that is no profile; ``older`` if another version of outrider wrote it."""

    def __init__(self, reason: str, older: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.older = reason, older


def read(path: Path) -> Profile:
    """The profile in a file. Raises ``Unreadable``."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from None
    except ValueError:
        raise Unreadable("it is not JSON") from None
    version = data.get("schema_version") if isinstance(data, dict) else None
    if isinstance(version, int) and version != SCHEMA:
        raise Unreadable(f"it has schema version {version}, and this outrider reads {SCHEMA}", older=True)
    try:
        return Profile.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"]) or "the whole"
        raise Unreadable(f"{where}: {first['msg']}") from None


def files() -> list[Path]:
    """All files that should be profiles, by name."""
    where = folder()
    return sorted(where.glob("[!.]*.json")) if where.is_dir() else []


def profiles() -> Iterator[tuple[Path, Profile | Unreadable]]:
    """Every file, with its profile or what is wrong with it."""
    for path in files():
        try:
            yield path, read(path)
        except Unreadable as error:
            yield path, error


def set_aside(path: Path) -> Path | None:
    """Rename a file that cannot be read, so that it is met once; None where that is not allowed."""
    other = path.with_suffix(".broken")
    try:
        os.replace(path, other)
    except OSError:
        return None
    return other
