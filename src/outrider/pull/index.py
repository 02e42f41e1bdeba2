"""Where pip would find a wheel: the same indexes, folders, certificate and proxy that pip is configured with.

The lookup itself is ``pypi-simple``'s, which reads both forms an index may answer in (HTML and JSON). Nothing
is installed and no dependency is followed.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from outrider.errors import ModelError, PullError

TIMEOUT_S = (5.0, 30.0)
_COMMANDS = ("global", "install", "download", ":env:")  # later ones win, as in pip


@dataclass(frozen=True)
class Settings:
    """What of pip's configuration matters here. ``indexes`` and ``find_links`` are URLs or folders."""

    indexes: tuple[str, ...]
    find_links: tuple[str, ...] = ()
    cert: str = ""
    client_cert: str = ""
    proxy: str = ""


@dataclass(frozen=True)
class Wheel:
    """A wheel file: ``url`` (or local path), hex ``sha256`` (may be empty), ``size`` in bytes if known."""

    filename: str
    url: str
    sha256: str = ""
    size: int | None = None


def settings() -> Settings:
    """pip's configuration: files and ``PIP_*`` variables through pip itself; without pip the latter alone."""
    found: dict[str, dict[str, str]] = {}
    for line in _pip_config():
        key, _, value = line.partition("=")
        section, _, option = key.strip().rpartition(".")
        try:
            found.setdefault(section, {})[option.replace("_", "-")] = str(ast.literal_eval(value.strip()))
        except (ValueError, SyntaxError):
            continue
    merged: dict[str, str] = {}
    for section in _COMMANDS:
        merged |= found.get(section, {})
    indexes: list[str] = []
    if merged.get("no-index", "").lower() not in ("1", "true", "yes", "on"):
        from pypi_simple import PYPI_SIMPLE_ENDPOINT

        indexes = [
            merged.get("index-url") or PYPI_SIMPLE_ENDPOINT,
            *merged.get("extra-index-url", "").split(),
        ]
    return Settings(
        indexes=tuple(indexes),
        find_links=tuple(merged.get("find-links", "").split()),
        cert=merged.get("cert", ""),
        client_cert=merged.get("client-cert", ""),
        proxy=merged.get("proxy", ""),
    )


def _pip_config() -> list[str]:
    if importlib.util.find_spec("pip") is not None:
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        if done.returncode == 0:
            return done.stdout.splitlines()
    names = [name for name in os.environ if name.startswith("PIP_")]
    return [f":env:.{name[4:].lower().replace('_', '-')}={os.environ[name]!r}" for name in names]


def session(config: Settings) -> Any:
    """A ``requests`` session with pip's certificate and proxy."""
    import requests

    made = requests.Session()
    if config.cert:
        made.verify = config.cert
    if config.client_cert:
        made.cert = config.client_cert
    if config.proxy:
        made.proxies = {"http": config.proxy, "https": config.proxy}
    return made


def find_wheel(project: str, version: str, config: Settings, http: Any) -> Wheel:
    """The wheel of exactly this version: folders first, then each index. Raises :class:`PullError`."""
    seen: set[str] = set()
    problems: list[str] = []
    for place in (*config.find_links, *config.indexes):
        try:
            wheels = _wheels_at(place, project, http, flat=place in config.find_links)
        except (OSError, ValueError) as error:  # requests' errors are OSErrors
            problems.append(_short(error))
            continue
        fitting = [wheel for found, wheel in wheels if _same(found, version)]
        seen |= {found for found, _ in wheels}
        if fitting:
            # A wheel for every platform if there is one: only its data files are of interest.
            return min(fitting, key=lambda wheel: not wheel.filename.endswith("-none-any.whl"))
    if seen:
        raise PullError(f"the index has no wheel {project}=={version}", why=f"It has {', '.join(sorted(seen))}")
    if problems:
        raise PullError(
            f"the package index could not be asked for {project}=={version}",
            why="; ".join(dict.fromkeys(problems)),
            hint="Check the network and `pip config list`; the same command resumes",
        )
    raise PullError(
        f"no package index has {project!r}",
        hint="Check the spelling, or set PIP_INDEX_URL or PIP_FIND_LINKS to where it is",
    )


def _wheels_at(place: str, project: str, http: Any, flat: bool) -> list[tuple[str, Wheel]]:
    """``(version, wheel)`` of ``project`` in one folder, page or index."""
    from packaging.utils import canonicalize_name
    from pypi_simple import NoSuchProjectError, ProjectPage, PyPISimple

    name = canonicalize_name(project)
    parts = urlsplit(place)
    if parts.scheme not in ("http", "https"):
        folder = Path(url2pathname(parts.path) if parts.scheme == "file" else place).expanduser()
        if flat:
            files = sorted(folder.glob("*.whl")) if folder.is_dir() else []
            return _matching([Wheel(file.name, str(file), "", file.stat().st_size) for file in files], name)
        page_file = folder / name / "index.html"
        if not page_file.is_file():
            return []
        page = ProjectPage.from_html(name, page_file.read_bytes(), base_url=page_file.as_uri())
    elif flat:
        answer = http.get(place, timeout=TIMEOUT_S)
        answer.raise_for_status()
        page = ProjectPage.from_html(name, answer.content, base_url=answer.url)
    else:
        # Not as a context manager: that would close the session, which the download goes on with.
        client = PyPISimple(place.rstrip("/") + "/", session=http)
        try:
            page = client.get_project_page(name, timeout=TIMEOUT_S)
        except NoSuchProjectError:
            return []
    packages = page.packages
    return _matching([Wheel(p.filename, p.url, p.digests.get("sha256", ""), p.size) for p in packages], name)


def _matching(wheels: list[Wheel], name: str) -> list[tuple[str, Wheel]]:
    from packaging.utils import InvalidWheelFilename, parse_wheel_filename

    found = []
    for wheel in wheels:
        try:
            project, version, _, _ = parse_wheel_filename(wheel.filename)
        except (InvalidWheelFilename, ValueError):
            continue
        if project == name:
            found.append((str(version), wheel))
    return found


def _same(found: str, wanted: str) -> bool:
    from packaging.version import InvalidVersion, Version

    try:
        return Version(found) == Version(wanted)
    except InvalidVersion as error:
        raise ModelError(f"version {wanted!r} is not one a package can have", hint="Write NAME==1.2.3") from error


def local_path(url: str) -> Path | None:
    """The file behind a ``file:`` URL or a plain path, None for anything on a network."""
    parts = urlsplit(url)
    if parts.scheme in ("http", "https"):
        return None
    return Path(url2pathname(parts.path) if parts.scheme == "file" else url)


def _short(error: Exception) -> str:
    return str(error).split("(Caused by")[0].strip()[:200] or type(error).__name__
