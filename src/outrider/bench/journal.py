"""What an interrupted run keeps: one line per prompt, in a file that the same command goes on from."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from outrider.bench.result import SCHEMA, Data, LeftOut, Record
from outrider.errors import ConfigError

KIND = "outrider bench, unfinished"


class Entry(Data):
    """One prompt of one run, measured for everybody. ``records`` and ``peaks`` (bytes) are by preset or peer."""

    run: int
    prompt: str
    records: dict[str, list[Record]]
    failures: list[LeftOut] = Field(default_factory=list)
    peaks: dict[str, int | None] = Field(default_factory=dict)


class Journal:
    """``entries`` are those of an earlier attempt; ``append`` writes through at once."""

    def __init__(self, path: Path, entries: list[Entry], resumed_from: dict[str, Any] | None) -> None:
        self.path, self.entries, self.resumed_from = path, entries, resumed_from

    @classmethod
    def open(cls, path: str | Path, settings: dict[str, Any], about: dict[str, Any], restart: bool = False) -> Journal:
        """Start one, or go on with what is there.

        ``settings`` must be equal for two attempts to belong together; ``about`` is kept and not compared
        (``resumed_from`` is that of the first attempt). ``restart`` throws an earlier attempt away. Raises
        ``ConfigError`` naming what differs.
        """
        path = Path(path)
        if restart or not path.exists():
            return cls(path, [], None)._write(settings, about)
        head, entries = _read(path)
        theirs = head["settings"]
        ours = json.loads(json.dumps(settings))
        changed = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
        if changed:
            listed = "; ".join(
                f"{name} was {_short(theirs.get(name))} and is {_short(ours.get(name))}" for name in changed
            )
            raise ConfigError(
                f"the unfinished result {str(path)!r} was measured otherwise: {listed}",
                hint="Give the command that began it to go on, or --restart to throw it away and start over.",
            )
        journal = cls(path, entries, head["about"] if entries else None)
        return journal._write(settings, head["about"] if entries else about)

    def append(self, entry: Entry) -> None:
        """Keep one more prompt. Raises ``ConfigError`` when the file cannot be written."""
        self.entries.append(entry)
        try:
            with self.path.open("a", encoding="ascii") as file:
                file.write(_line(entry.model_dump(mode="json")))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise _cannot_write(self.path, error) from None

    def remove(self) -> None:
        """The run is complete: the result has everything."""
        self.path.unlink(missing_ok=True)

    def _write(self, settings: dict[str, Any], about: dict[str, Any]) -> Journal:
        """The whole file anew, so that a line cut short by a crash is gone."""
        head = {"kind": KIND, "schema_version": SCHEMA, "settings": settings, "about": about}
        fresh = self.path.with_name(self.path.name + ".new")
        try:
            with fresh.open("w", encoding="ascii") as file:
                file.write(_line(head))
                file.writelines(_line(entry.model_dump(mode="json")) for entry in self.entries)
            os.replace(fresh, self.path)
        except OSError as error:
            raise _cannot_write(self.path, error) from None
        return self


def _line(value: Any) -> str:
    return json.dumps(value, allow_nan=False) + "\n"


def _read(path: Path) -> tuple[dict[str, Any], list[Entry]]:
    """Head and entries; a last line that was cut short does not count."""
    broken = ConfigError(f"{str(path)!r} is not an unfinished result", hint="--restart throws it away and starts over.")
    try:
        first, *lines = path.read_text(encoding="utf-8").split("\n")
        head = json.loads(first)
        if head["kind"] != KIND or head["schema_version"] != SCHEMA or not isinstance(head["settings"], dict):
            raise broken
        entries = [Entry.model_validate_json(line) for line in lines[:-1]]
    except OSError as error:
        raise ConfigError(f"unfinished result {str(path)!r} cannot be read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, ValidationError):
        raise broken from None
    return head, entries


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _cannot_write(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"{str(path)!r} cannot be written: {error.strerror or error}", hint="Results are kept there while they grow."
    )
