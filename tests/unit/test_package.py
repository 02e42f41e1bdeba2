"""The wheel: built, looked into, installed and started."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import outrider

ROOT = Path(__file__).resolve().parents[2]


def run(*command, **kwargs):
    done = subprocess.run(
        [sys.executable, "-m", *map(str, command)], capture_output=True, text=True, timeout=120, **kwargs
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run("build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_carries_the_package_and_nothing_else(wheel):
    assert wheel.name == f"outrider-{outrider.__version__}-py3-none-any.whl"
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"outrider", f"outrider-{outrider.__version__}.dist-info"}
    assert {"outrider/py.typed", "outrider/__main__.py", "outrider/cli/__init__.py"} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    unwanted = [name for name in names if "__pycache__" in name or name.split("/")[1] == "tests"]
    assert unwanted == []


def test_every_source_file_is_in_the_wheel(wheel):
    source = ROOT / "src" / "outrider"
    kinds = ("*.py", "*.html", "*.yaml", "*.jsonl")  # pages and suites are data of the package
    found = {kind: list(source.rglob(kind)) for kind in kinds}
    assert all(found.values())
    expected = {f"outrider/{path.relative_to(source).as_posix()}" for paths in found.values() for path in paths}
    assert expected <= set(zipfile.ZipFile(wheel).namelist())


def test_installed_wheel_starts_by_itself(wheel, tmp_path):
    target = tmp_path / "site"
    run("pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target, wheel)
    # The target comes before an editable install of this repository, and the working folder is elsewhere.
    env = {**os.environ, "PYTHONPATH": str(target)}
    shown = run("outrider", "--version", cwd=tmp_path, env=env)
    assert shown == f"outrider {outrider.__version__}\n"
    code = "import outrider; print(outrider.__file__)"
    where = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert Path(where.stdout.strip()).is_relative_to(target)


def test_public_names_resolve():
    assert len(outrider.__all__) > 5
    for name in outrider.__all__:
        assert getattr(outrider, name) is not None
    assert set(outrider.__all__) <= set(dir(outrider))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = outrider.no_such_name


def test_import_alone_does_not_load_torch():
    code = "import sys, outrider; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
