"""What a peer is: another program that decodes the same prompts, greedily, from the same weights where it can."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from outrider.errors import ConfigError

if TYPE_CHECKING:
    from outrider.run.llm import LLM

CONTEXT = 4096
"""Tokens of prompt and answer that a peer makes room for if nothing else is asked."""
PROBE = "The first 12 rows (see below) are fine; def f(x): return x + 1"
"""A text that tokenizers of different models split differently."""


@dataclass(frozen=True)
class Exports:
    """The model in the formats of other programs: a ``.gguf`` file, folders that OpenVINO reads."""

    gguf: Path | None = None
    openvino: Path | None = None
    openvino_draft: Path | None = None


@dataclass(frozen=True)
class PeerSetup:
    """What peers are opened from. ``folder`` and ``draft_folder`` are the folders our own models were read from, None
    where they were not."""

    folder: Path | None
    draft_folder: Path | None
    tokenizer: Any
    device: torch.device
    dtype: torch.dtype
    max_context: int = CONTEXT
    exports: Exports = field(default_factory=Exports)

    @classmethod
    def of(
        cls, llm: LLM, folder: Path | None, draft_folder: Path | None = None, exports: Exports | None = None
    ) -> PeerSetup:
        """The setup beside ``llm``. What ``exports`` leave out is looked for in the models' own folders: an export, a
        ``.gguf`` file, or the file that the folder was unpacked from."""
        model, given = llm.language_model, exports or Exports()
        return cls(
            folder=folder,
            draft_folder=draft_folder,
            tokenizer=llm.tokenizer,
            device=model.device,
            dtype=model.dtype,
            max_context=llm.limits.max_context or CONTEXT,
            exports=Exports(
                gguf=given.gguf or _gguf_of(folder),
                openvino=given.openvino or _if_export(folder),
                openvino_draft=given.openvino_draft or _if_export(draft_folder),
            ),
        )


@dataclass(frozen=True)
class PeerRun:
    """One answer. ``token_ids`` are those the peer generated, never a text tokenised again; a stop token is the last.

    ``seconds_prefill`` is the time to the first token less the part of it that generating took, at the pace of the
    rest of the answer: what is left over reads the prompt. None where there was no rest to tell the pace from.
    ``target_calls`` counts forwards of the target, ``draft_tokens`` what was drafted in them; None: not known.
    """

    token_ids: list[int]
    seconds_prefill: float | None
    seconds_total: float
    target_calls: int | None = None
    draft_tokens: int | None = None


class Peer(Protocol):
    """Another way of decoding, of another program.

    ``baseline`` is the name of the peer that does the same without drafting: the only one its speed-up may be given
    over. ``comparable``: the same numbers are computed as here, so that another greedy token is a tie or a mistake.
    """

    name: str
    baseline: str
    library: str
    method: str
    comparable: bool

    @property
    def version(self) -> str:
        """Of ``library``, empty where it is not installed."""

    @property
    def notes(self) -> list[str]:
        """How its conditions differ from ours, in sentences."""

    def available(self) -> str | None:
        """None, or why it cannot run and what is missing. Loads nothing."""

    def open(self) -> None:
        """Load the weights. Raises ``ModelError`` or ``ConfigError`` where they are not what they should be."""

    def generate(self, token_ids: Sequence[int], max_tokens: int, stop: Collection[int] = ()) -> PeerRun:
        """Continue ``token_ids`` greedily until a token of ``stop``. Raises ``RequestError``."""

    def close(self) -> None:
        """Let go of the weights."""


def prefill(first: float, total: float, calls: int) -> float | None:
    """``PeerRun.seconds_prefill`` from the time to the end of the first of ``calls`` steps and of all of them."""
    if calls < 2:
        return None
    return max(0.0, first - (total - first) / (calls - 1))


def same_tokens(name: str, source: str, theirs: Sequence[int], tokenizer: Any) -> None:
    """Raise ``ConfigError`` unless a peer splits ``PROBE`` as ``tokenizer`` does: ids go in and come out."""
    if tokenizer is not None and list(theirs) != tokenizer.encode(PROBE, add_special_tokens=False):
        raise ConfigError(
            f"{name}: {source!r} has other tokens than the model",
            why="the same token ids would be other words",
            hint="Give a file that was made from the same model.",
        )


def missing(package: str, install: str) -> str | None:
    """Why ``package`` cannot be imported, or None. Does not import it."""
    import importlib.util
    import sys

    if package in sys.modules and sys.modules[package] is not None:
        return None
    try:
        found = importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        found = False
    return None if found else f"{install} is not installed (pip install {install})"


def installed_version(distribution: str) -> str:
    """Of an installed distribution, empty where there is none."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def _gguf_of(folder: Path | None) -> Path | None:
    """The GGUF file in a model's folder, or the one the folder was unpacked from."""
    from outrider.pull.store import RECORD

    if folder is None:
        return None
    found = sorted(folder.glob("*.gguf"))
    if found:
        return found[0] if len(found) == 1 else None
    try:
        source = Path(json.loads((folder / RECORD).read_text(encoding="utf-8"))["source"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return source if source.suffix == ".gguf" and source.is_file() else None


def _if_export(folder: Path | None) -> Path | None:
    return folder if folder is not None and (folder / "openvino_model.xml").is_file() else None
