"""What ``outrider explain`` does: decode and record, or replay, and then show."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outrider.cli._common import Screens, print_json
from outrider.cli._open import Opened, Source, find_model, open_model
from outrider.cli.run import Task
from outrider.errors import ConfigError, RequestError, check_number

if TYPE_CHECKING:
    from outrider.explain.record import Explanation
    from outrider.explain.sweep import Trial
    from outrider.explain.trace import Trace
    from outrider.explain.watch import Explainer
    from outrider.model.load import Loaded


INTERRUPTED = 130


@dataclass(frozen=True)
class Shown:
    """What is shown and written."""

    steps: str | None
    full: bool
    json: str | None
    html: Path | None
    trace: Path | None

    def check(self) -> None:
        """Refuse what could not be done at the end, before anything runs."""
        self.range(0)
        for option, name in (("--json", self.json), ("--html", self.html), ("--trace", self.trace)):
            if name is None or (option == "--json" and name == "-"):
                continue
            path = Path(name).expanduser()
            if path.is_dir() or not path.parent.is_dir():
                raise ConfigError(
                    f"{option} {str(name)!r} cannot be written", hint="Name a file in a folder that exists."
                )

    def range(self, count: int) -> range:
        """The numbers of the steps to show, of ``count``."""
        if self.steps is None:
            return range(count)
        found = re.fullmatch(r"\s*(-?\d{1,9})?\s*(:)?\s*(-?\d{1,9})?\s*", self.steps)
        first, colon, last = found.groups() if found else (None, None, None)
        if colon is None and (first is None or last is not None):
            raise ConfigError(f"--steps {self.steps!r}", hint="Write --steps 3:10, --steps 7 or --steps -5:.")
        low, high = (None if part is None else int(part) for part in (first, last))
        if colon is None and low is not None:
            high = low + 1 or None  # behind the last one, -1, there is the end
        return range(count)[low:high]

    def write(self, explanation: Explanation, screens: Screens) -> None:
        """The files, and the view unless standard output is taken."""
        from outrider.explain.page import page

        if self.html is not None:
            _write(self.html, page(explanation))
            screens.note(f"page: {self.html}")
        if self.json == "-":
            print_json(explanation.as_dict())
            return
        if self.json is not None:
            _write(Path(self.json), json.dumps(explanation.as_dict(), default=str) + "\n")
            screens.note(f"record: {self.json}")
        self.view(explanation, screens)

    def view(self, explanation: Explanation, screens: Screens) -> None:
        from outrider.cli._paint import Palette
        from outrider.explain.screen import View, show, show_summary
        from outrider.explain.summary import summarise

        view = View(screens.out, Palette(explanation.drafters), explanation.greedy, self.full)
        show(view, explanation, [explanation.steps[i] for i in self.range(len(explanation.steps))])
        show_summary(view, explanation, summarise(explanation))
        screens.out.file.flush()


@dataclass(frozen=True)
class Given:
    """What to replay."""

    file: Path
    presets: list[str]
    sweeps: list[str]
    cost: Path | None


def _write(path: Path, text: str) -> None:
    try:
        path.expanduser().write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{str(path)!r} cannot be written: {error.strerror or error}") from None


def decode_live(source: Source, task: Task, shown: Shown, screens: Screens) -> bool:
    """Decode with the model; whether it was interrupted."""
    from outrider.explain.trace import TraceRecorder, check_recordable
    from outrider.explain.watch import Explainer

    task.check(source.preset, as_json=True)
    if task.params.logprobs is not None:
        raise ConfigError("logprobs with explain", hint="Leave them out: probabilities are shown anyway.")
    parts = source.check()
    if shown.trace is not None:
        check_recordable(parts, task.params)
    opened = open_model(source, screens)
    if shown.json != "-":
        screens.note(opened.title())
    tokens = task.encode(opened, screens)
    kept = any((shown.json, shown.html, shown.trace))  # only what is kept must say where it comes from
    explainer = Explainer.of(opened.llm, opened.preset, opened.model, provenance=kept)
    recorder = None if shown.trace is None else TraceRecorder(explainer.engine, task.params)
    found, failed = _decode(opened, explainer, tokens, task, screens)
    if recorder is not None and shown.trace is not None:
        recorder.trace(found, explainer.texts).save(shown.trace)
        size = shown.trace.expanduser().stat().st_size / 1e6
        screens.note(
            f"trace: {shown.trace} ({size:.1f} MB: the target's whole answer to {len(recorder.tokens)} tokens)"
        )
    shown.write(found, screens)
    if failed is not None:
        raise failed
    return found.finish_reason == "cancelled"


def _decode(
    opened: Opened, explainer: Explainer, tokens: list[int], task: Task, screens: Screens
) -> tuple[Explanation, RequestError | None]:
    """The explanation of what was decoded, also of a request that failed on the way."""
    from outrider.cli._answer import decode
    from outrider.run.request import Request

    seen: list[Request] = []
    with screens.err.status("decoding") as status:

        def tell(emission: Any) -> None:
            seen.append(emission.request)
            status.update(f"decoding: {len(emission.choice.token_ids)} tokens in {len(seen)} steps")

        try:
            answer = decode(opened.llm, tokens, task.params, tell)
        except RequestError as error:
            if not seen:
                raise
            return explainer.result(seen[0]), error
    return explainer.result(answer.request, "cancelled" if answer.interrupted else None), None


def decode_trace(given: Given, source: Source, shown: Shown, screens: Screens) -> bool:
    """Decode a trace again: one preset step by step, several as a ranked table."""
    from outrider.explain.replay import replay
    from outrider.explain.sweep import expand, load_cost, sweep
    from outrider.explain.trace import Trace

    presets = [*given.presets, *(preset for spec in given.sweeps for preset in expand(spec))]
    ranked = bool(given.sweeps) or len(presets) > 1
    if ranked:
        for option, value in (("--html", shown.html), ("--steps", shown.steps), ("--full", shown.full)):
            if value:
                raise ConfigError(f"{option} with several presets", hint="Replay one of them to see its steps.")
    elif given.cost is not None:
        raise ConfigError("--cost with one preset", hint="It ranks several: repeat --preset, or give --sweep.")
    if source.threads is not None:
        import torch

        check_number("--threads", source.threads, 1)
        torch.set_num_threads(source.threads)
    cost = None if given.cost is None else load_cost(given.cost)
    trace = Trace.load(given.file)
    loaded = None if source.draft_model is None else _draft_model(source, trace, screens)
    draft, tokenizer = (None, None) if loaded is None else (loaded.model, loaded.tokenizer)
    screens.note(f"{trace.header.model}, recorded with {trace.header.preset}: {len(trace.tokens)} tokens")
    if not ranked:
        preset = presets[0] if presets else trace.header.preset
        shown.write(replay(trace, preset, draft, tokenizer), screens)
        return False
    trials, interrupted = _collect(sweep(trace, presets, cost, draft), len(presets), screens)
    if trials and all(trial.refused for trial in trials):
        raise ConfigError("none of these presets can be replayed", why=trials[0].refused)
    _rank(trials, trace, given.file, shown, screens, interrupted)
    if interrupted:
        screens.note(f"interrupted after {len(trials)} of {len(presets)} settings", "yellow")
    return interrupted


def _rank(trials: list[Trial], trace: Trace, file: Path, shown: Shown, screens: Screens, interrupted: bool) -> None:
    """Write and show the trials, best first."""
    from outrider.explain.screen import show_trials

    trials.sort(key=lambda trial: trial.rank)
    record = {
        "format": "outrider-sweep",
        "version": 1,
        "trace": str(file),
        "model": trace.header.model,
        "tokens": len(trace.tokens),
        "interrupted": interrupted,
        "trials": [trial.as_dict() for trial in trials],
    }
    if shown.json == "-":
        print_json(record)
        return
    if shown.json is not None:
        _write(Path(shown.json), json.dumps(record) + "\n")
        screens.note(f"record: {shown.json}")
    show_trials(screens.out, trials)


def _collect(running: Iterator[Trial], total: int, screens: Screens) -> tuple[list[Trial], bool]:
    """All trials, or those that were done when Ctrl-C came."""
    from rich.progress import Progress

    from outrider.cli._answer import Interrupts

    trials: list[Trial] = []
    try:
        with Interrupts() as interrupts, Progress(console=screens.err, transient=True) as bar:
            work = bar.add_task("replaying", total=total)
            for trial in running:
                trials.append(trial)
                bar.advance(work)
                if interrupts.asked and len(trials) < total:
                    return trials, True
    except KeyboardInterrupt:
        return trials, True
    return trials, False


def _draft_model(source: Source, trace: Trace, screens: Screens) -> Loaded:
    """A draft model to run beside the recorded target. Raises ``ConfigError`` where its tokens are other tokens."""
    from outrider.cli._open import _quiet
    from outrider.explain.words import Texts
    from outrider.model.load import load

    assert source.draft_model is not None
    folder = find_model(source.draft_model, source.catalog, screens)
    _quiet(source.threads)
    loaded = load(folder, device="cpu", dtype=source.dtype)
    texts = Texts(loaded.tokenizer)
    for token, text in trace.header.texts.items():
        if token >= loaded.model.vocab_size or texts(token) != text:
            raise ConfigError(
                f"token {token} is {text!r} in the trace and another one for the draft model {source.draft_model}",
                hint="Give a draft model with the target's vocabulary.",
            )
    return loaded
