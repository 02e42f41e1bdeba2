"""One file over HTTP, resumed where it stopped, checked against its sha256."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from outrider.errors import PullError
from outrider.pull.progress import Progress

CHUNK = 1 << 20
ATTEMPTS = 4  # in a row without one new byte
PAUSE_S = 0.5  # before the second attempt; doubles
TIMEOUT_S = (5.0, 60.0)  # to connect, and between two chunks
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def download(session: Any, url: str, target: Path, *, sha256: str, size: int | None, progress: Progress) -> None:
    """Bring ``url`` to ``target`` through a ``requests`` session.

    What has arrived is in ``target.part`` and survives cut connections, full disks and Ctrl-C; the next call
    asks the server for the rest only. ``sha256`` (hex, may be empty) is checked before the file gets its
    name. ``size`` in bytes, if known. Raises :class:`PullError`.
    """
    part = target.with_name(target.name + ".part")
    resumed = part.exists() and part.stat().st_size > 0
    _transfer(session, url, part, size, progress)
    if sha256 and file_sha256(part) != sha256:
        part.unlink()
        if not resumed:
            raise PullError(
                f"{target.name} has the wrong checksum",
                why=f"The index promises sha256 {sha256[:12]}…, the bytes that came differ; they are removed",
                hint="Pull again; if it repeats, the file at the source is damaged",
            )
        # The old part may have been of another build of the file: start afresh once.
        progress.note(f"{target.name}: the earlier part does not fit; starting again")
        return download(session, url, target, sha256=sha256, size=size, progress=progress)
    part.replace(target)
    return None


def _transfer(session: Any, url: str, part: Path, size: int | None, progress: Progress) -> None:
    import requests

    here = part.stat().st_size if part.exists() else 0
    progress.start(part.name.removesuffix(".part"), size, here)
    failures, last = 0, ""
    try:
        while failures < ATTEMPTS:
            before = part.stat().st_size if part.exists() else 0
            try:
                if _one_request(session, url, part, size, progress):
                    return
                last = "the connection ended early"
            except (
                requests.ConnectionError,
                requests.Timeout,
                requests.exceptions.ChunkedEncodingError,
            ) as e:
                last = _reason(e)
            after = part.stat().st_size if part.exists() else 0
            failures = 0 if after > before else failures + 1
            time.sleep(min(PAUSE_S * 2**failures, 8.0))
    finally:
        progress.finish()
    raise PullError(
        f"{part.name.removesuffix('.part')} did not arrive completely",
        why=f"{last}, {ATTEMPTS} times in a row",
        hint="What has arrived is kept: run the same command again to resume",
    )


def _one_request(session: Any, url: str, part: Path, size: int | None, progress: Progress) -> bool:
    """Ask for what is missing; True when the file is complete."""
    have = part.stat().st_size if part.exists() else 0
    if size is not None and have == size:
        return True
    # Compressed transfer would make byte ranges meaningless.
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with session.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as answer:
        if answer.status_code == 416:  # longer than the file is, or complete without our knowing the size
            return _past_the_end(answer, part, have, progress)
        if answer.status_code >= 500 or answer.status_code in (408, 429):
            import requests

            raise requests.ConnectionError(f"the server answered {answer.status_code}")
        if answer.status_code not in (200, 206):
            raise PullError(
                f"{part.name.removesuffix('.part')} cannot be fetched",
                why=f"The server answered {answer.status_code}",
                hint="Check the index that pip is configured with (pip config list)",
            )
        offset = have if answer.status_code == 206 else 0
        if have and not offset:  # this server knows no ranges
            progress.advance(-have)
        expected = _int(answer.headers.get("Content-Length"))
        total = size if size is not None else (None if expected is None else offset + expected)
        progress.expect(total)
        _append(answer, part, offset, total, progress)
    return total is None or part.stat().st_size >= total


def _past_the_end(answer: Any, part: Path, have: int, progress: Progress) -> bool:
    total = _int(answer.headers.get("Content-Range", "").rpartition("/")[2])
    if total == have:
        return True
    part.unlink()
    progress.advance(-have)
    return False


def _append(answer: Any, part: Path, offset: int, total: int | None, progress: Progress) -> None:
    with disk_errors(part, total), open_part(part, offset) as file:
        for chunk in answer.iter_content(CHUNK):
            write(file, chunk)
            progress.advance(len(chunk))


def open_part(part: Path, offset: int) -> Any:
    """``part`` opened for writing at ``offset`` bytes, cut there; unbuffered, so that nothing is lost."""
    file = open(part, "r+b" if part.exists() else "xb", buffering=0)  # noqa: SIM115 - the caller closes it
    file.truncate(offset)
    file.seek(offset)
    return file


def write(file: Any, data: bytes) -> None:
    """All of ``data``: an unbuffered file may take only a part of it, as on a disk that fills up."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


@contextlib.contextmanager
def disk_errors(target: Path, total: int | None = None) -> Iterator[None]:
    """Turn a full disk into a :class:`PullError` that says how much is missing and that the rest is kept."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        have = target.stat().st_size if target.is_file() else 0
        missing = f"{human(total - have)} more are needed" if total is not None else "more room is needed"
        free = human(shutil.disk_usage(target.parent).free)
        raise PullError(
            f"the disk is full while writing {target.name}",
            why=f"{missing}, {free} are free in {str(target.parent)!r}",
            hint="Make room and run the same command again: the partial file is kept and resumed "
            "(OUTRIDER_HOME chooses another disk)",
        ) from error


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Hex sha256 of a file, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def human(count: float) -> str:
    """Bytes for people: ``98.4 MB``."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def _int(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def _reason(error: Exception) -> str:
    return str(error).split("(Caused by")[0][:200] or type(error).__name__
