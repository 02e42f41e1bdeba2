"""What ``outrider verify`` does between its options and its exit code."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from outrider.cli._bench import STDOUT, Files
from outrider.cli._common import Screens
from outrider.cli._open import Opened, Source, open_model
from outrider.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from outrider.bench.suite import Suite
    from outrider.certify import Certificate, Plan, Progress
    from outrider.certify.result import Findings, LeftOut

WRONG, INCONCLUSIVE, INTERRUPTED = 1, 3, 130
_TONES = {"good": "bold green", "bad": "bold red", "warn": "bold yellow"}
_MARKS = {
    "passed": ("ok", "green"),
    "wrong": ("wrong", "bold red"),
    "measured": ("~", "yellow"),
    "not run": ("-", "dim"),
}
_SHOWN = 3


@dataclass(frozen=True)
class Task:
    """What is to be certified; everything that can be refused without a model has been."""

    presets: list[str]
    suite: Suite
    plan: Plan


@dataclass(frozen=True)
class Outputs:
    """Where the certificate goes: ``--json`` and ``--html``; ``-`` is standard output."""

    json: Path | None
    html: Path | None

    @property
    def to_stdout(self) -> bool:
        return STDOUT in (self.json, self.html)

    def check(self) -> None:
        """Refuse before anything runs what could not be written after it."""
        for option, path in (("--json", self.json), ("--html", self.html)):
            if path is None or path == STDOUT:
                continue
            if path.is_dir() or not path.parent.is_dir():
                raise ConfigError(
                    f"{option} {str(path)!r} cannot be written", hint="Name a file in a folder that exists."
                )
        if self.json is not None and self.json == self.html:
            raise ConfigError(f"--json and --html are both {str(self.json)!r}", hint="Give two names.")

    def write(self, certificate: Certificate) -> None:
        """Both files, each whole or not at all."""
        if self.json is not None:
            Files.put(self.json, json.dumps(certificate.as_dict(), indent=1))
        if self.html is not None:
            from outrider.certify.page import page

            Files.put(self.html, page(certificate))


def make(task: Task, source: Source, outputs: Outputs, screens: Screens) -> int:
    """Run, show and write; the exit code."""
    from outrider.certify import Certifier

    opened = open_model(source, screens)
    names, left_out = _runnable(task.presets, opened)
    interrupted = False
    with progress(screens) as tell:
        certifier = Certifier(opened.llm, names, task.suite, task.plan, tell, left_out)
        try:
            certifier.run()
        except KeyboardInterrupt:
            interrupted = True
    certificate = certifier.certificate()
    show(screens.err if outputs.to_stdout else screens.out, certificate)
    outputs.write(certificate)
    if interrupted:
        screens.note("interrupted: what was found until then is kept", "yellow")
        return INTERRUPTED
    return {"wrong": WRONG, "inconclusive": INCONCLUSIVE}.get(certificate.verdict, 0)


def _runnable(specs: list[str], opened: Opened) -> tuple[list[str], list[LeftOut]]:
    """The presets to certify, and those of "all" that cannot be run. ``plain`` is what they are compared with: it is
    certified itself only where it was named."""
    from outrider.bench.choose import choose
    from outrider.certify.decode import Decoder
    from outrider.certify.result import LeftOut
    from outrider.registry import preset

    decoder = Decoder(opened.llm)
    drafts = opened.llm.draft is not None
    chosen = choose(specs, draft_model=drafts, try_out=lambda spec: decoder.engine(preset(spec), 1))
    names = [name for name in chosen.presets if name != "plain" or "plain" in specs]
    if not names:
        raise ConfigError("no preset can be run with this model", why=chosen.left_out[0].reason)
    return names, [LeftOut(each.name, each.reason) for each in chosen.left_out]


@contextmanager
def progress(screens: Screens) -> Iterator[Callable[[Progress], None]]:
    """A bar on standard error: whose turn it is, what is being done, how far that is, how long it has taken."""
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), TaskProgressColumn(), TimeElapsedColumn())
    with Bar(*columns, console=screens.err, transient=True, expand=True) as bar:
        task = bar.add_task("starting", total=None)

        def tell(step: Progress) -> None:
            what = f"{step.preset} ({step.number} of {step.count})" if step.count > 1 else step.preset
            bar.update(task, description=f"{what}: {step.stage}", completed=step.done, total=step.total)

        yield tell


# -- the summary --------------------------------------------------------------------------------------------------


def show(console: Console, certificate: Certificate) -> None:
    """The verdict first, then each method's checks and controls."""
    from rich.text import Text

    from outrider.certify.words import TITLES, TONES

    provenance = certificate.provenance["models"]["target"]
    prompts = certificate.prompts
    head = f"{certificate.model} · {provenance['dtype']} · {len(prompts.ids)} prompts ({prompts.suite})"
    console.print(head, style="dim", soft_wrap=True)
    line = Text(TITLES[certificate.verdict], _TONES[TONES[certificate.verdict]])
    line.append(f"  {certificate.summary}", "none")
    console.print(line)
    for found in certificate.presets:
        _findings(console, found, alone=len(certificate.presets) == 1)
    compared, tokens = _compared(certificate)
    if compared < tokens / 2:
        console.print(Text("half of the tokens stand behind a tie: --dtype float32 compares more", "dim"))
    for each in (*certificate.left_out, *prompts.left_out):
        console.print(Text(f"left out: {each.name}: {each.reason}", "dim"))


def _compared(certificate: Certificate) -> tuple[int, int]:
    """Tokens that were compared, and all of them."""
    from outrider.certify.result import IdentityCheck

    checks = [check for found in certificate.presets for check in found.checks if isinstance(check, IdentityCheck)]
    passed = [check for check in checks if check.status == "passed"]
    return sum(check.compared for check in passed), sum(check.tokens for check in passed)


def _findings(console: Console, found: Findings, alone: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    from outrider.certify.words import NAMES, TITLES, TONES, evidence

    console.print()
    line = Text(found.name, "bold")
    line.append(f"  promises: {found.guarantee}", "dim")
    if not alone:
        line.append(f"  {TITLES[found.verdict]}", _TONES[TONES[found.verdict]])
    console.print(line)
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    for check in found.checks:
        table.add_row(Text(*_MARKS[check.status]), NAMES[check.name], evidence(check))
        wrong = [each for each in getattr(check, "differences", ()) if each.difference.kind == "wrong"]
        for each in wrong[:_SHOWN]:
            pair = f"{each.found_text!r} for {each.wanted_text!r}"
            table.add_row("", "", Text(f"{each.prompt}, token {each.difference.position}: {pair}; {each.why}", "red"))
    for control in found.controls:
        mark = Text("ok", "green") if control.caught else Text("missed", "bold yellow")
        name = f"control: {control.name}" + ("" if control.of == "all" else f" ({control.of})")
        table.add_row(mark, name, Text(control.evidence, "dim" if control.caught else "yellow"))
    console.print(table)
