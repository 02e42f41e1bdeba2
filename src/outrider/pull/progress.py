"""How far a pull is: the events that sources report, and the rich bar that shows them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


class Progress:
    """Receives events and shows nothing; the base of :class:`RichProgress` and good enough for tests."""

    def note(self, text: str) -> None:
        """One line worth reading."""

    def start(self, label: str, total: int | None, done: int = 0) -> None:
        """A file of ``total`` bytes begins, of which ``done`` are here already."""

    def expect(self, total: int | None) -> None:
        """The length of the file in bytes, now that the server has told it."""

    def advance(self, count: int) -> None:
        """``count`` more bytes; negative when they turn out to be useless."""

    def finish(self) -> None:
        """The file begun last is complete, or given up."""

    @contextlib.contextmanager
    def working(self, label: str) -> Iterator[None]:
        """A stretch of work of unknown length."""
        yield


class RichProgress(Progress):
    """Bars on standard error, so that standard output stays free for ``--json``."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True)
        self._bar: Any = None

    def note(self, text: str) -> None:
        self._console.print(text, style="dim", markup=False, highlight=False, soft_wrap=True)

    def start(self, label: str, total: int | None, done: int = 0) -> None:
        from rich import progress

        self.finish()
        bar = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.DownloadColumn(),
            progress.TransferSpeedColumn(),
            progress.TimeRemainingColumn(),
            console=self._console,
        )
        bar.start()
        label = f"{label} (resumed)" if done else label
        self._task, self._bar = bar.add_task(label, total=total, completed=done), bar

    def expect(self, total: int | None) -> None:
        if self._bar is not None and total is not None:
            self._bar.update(self._task, total=total)

    def advance(self, count: int) -> None:
        if self._bar is not None:
            self._bar.advance(self._task, count)

    def finish(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    @contextlib.contextmanager
    def working(self, label: str) -> Iterator[None]:
        self.finish()
        with self._console.status(label):
            yield
