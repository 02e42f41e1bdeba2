"""What all tests share. Nothing here skips a test because a package is missing: that is a broken install."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

# Timing of a single example says nothing on a shared machine.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_configure(config: pytest.Config) -> None:
    """Set torch's threads: ``OUTRIDER_TEST_THREADS``, else ``OMP_NUM_THREADS``, else one per worker."""
    threads = os.environ.get("OUTRIDER_TEST_THREADS") or os.environ.get("OMP_NUM_THREADS")
    if threads is None and hasattr(config, "workerinput"):
        threads = "1"
    if threads is not None:
        # Before torch is imported, and inherited by the processes that tests start.
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = threads
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of data sets beside the repository; tests that use it are skipped where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the data folder {folder} is not on this machine")
    return folder
