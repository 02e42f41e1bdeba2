"""Where a result comes from: machine, libraries, source and model. A figure without it is worth nothing."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

from outrider import __version__

if TYPE_CHECKING:
    from outrider.model.base import LanguageModel

LIBRARIES = ("torch", "transformers", "tokenizers", "numpy", "safetensors", "accelerate")
_hashes: WeakKeyDictionary[Any, tuple[int, str]] = WeakKeyDictionary()


@dataclass(frozen=True)
class ModelFacts:
    """A model as it was run. ``sha256`` is over names, shapes, types and bytes of all parameters, so that it says the
    same for a folder, a hub id and an object in memory; ``quantisation`` is "none" or the method's name."""

    name: str
    family: str
    parameters: int
    dtype: str
    device: str
    quantisation: str
    sha256: str


@dataclass(frozen=True)
class Provenance:
    """What every report carries."""

    made_at: str
    """UTC, ISO 8601."""
    outrider: str
    commit: str | None
    """Of the source tree the package runs from, "+" behind it where files differ; None outside one."""
    machine: dict[str, Any]
    libraries: dict[str, str]
    models: dict[str, ModelFacts]
    """By role: "target", "draft"."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def line(self) -> str:
        """The essentials in one line."""
        machine = self.machine
        where = machine["gpu"] or f"{machine['cpu']}, {machine['threads']} threads, {machine['capability']}"
        parts = [f"{model.name} {model.dtype}" for model in self.models.values()] + [where]
        parts += [f"torch {self.libraries['torch']}", f"outrider {self.outrider}"]
        return " · ".join(parts)


def provenance(**models: LanguageModel | None) -> Provenance:
    """Facts about this process and the ``models`` given by role; roles that are None are left out."""
    return Provenance(
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        outrider=__version__,
        commit=commit(),
        machine=machine(),
        libraries={name: found for name in LIBRARIES if (found := _version(name)) is not None},
        models={role: facts(model) for role, model in models.items() if model is not None},
    )


def machine() -> dict[str, Any]:
    """Processor, cores, threads, memory, accelerator, operating system."""
    cuda = torch.cuda.is_available()
    return {
        "cpu": _cpu(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "cuda": torch.version.cuda if cuda else None,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def facts(model: LanguageModel) -> ModelFacts:
    """What a report says of ``model``. Hashing reads all weights once (about a second per 2 GB); it is remembered."""
    hf = getattr(model, "hf", None)
    parameters = [] if hf is None else list(hf.parameters())
    return ModelFacts(
        name=model.name,
        family=str(getattr(model, "family", type(model).__name__)),
        parameters=sum(parameter.numel() for parameter in parameters),
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        quantisation=_quantisation(hf),
        sha256=weights_hash(model),
    )


def weights_hash(model: LanguageModel) -> str:
    """See ``ModelFacts.sha256``; empty for a model without parameters of its own."""
    hf = getattr(model, "hf", None)
    if hf is None:
        return ""
    known = _hashes.get(model)
    if known is None or known[0] != model.weights_version:
        digest = hashlib.sha256()
        for name, weight in hf.state_dict().items():
            data = weight.detach().contiguous().cpu()
            digest.update(f"{name} {tuple(data.shape)} {data.dtype};".encode())
            digest.update(data.view(-1).view(torch.uint8).numpy() if data.numel() else b"")
        known = _hashes[model] = (model.weights_version, digest.hexdigest())
    return known[1]


def commit() -> str | None:
    """Commit of the source tree this package runs from, None where it is installed or git is missing."""
    folder = Path(__file__).resolve().parent
    try:
        root = _git(folder, "rev-parse", "--show-toplevel")
        if not (Path(root) / "src" / "outrider" / "provenance.py").samefile(__file__):
            return None
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
        return _git(folder, "rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _quantisation(hf: Any) -> str:
    settings = getattr(getattr(hf, "config", None), "quantization_config", None)
    if settings is None:
        return "none"
    method = settings.get("quant_method") if isinstance(settings, dict) else getattr(settings, "quant_method", None)
    return str(getattr(method, "value", method) or "unknown")


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None
