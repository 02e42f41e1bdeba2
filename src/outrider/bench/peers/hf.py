"""``transformers.generate`` as peers: plain, with a draft model, with prompt lookup, over one copy of the weights."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from outrider.bench.peers.base import PeerRun, PeerSetup, installed_version, prefill
from outrider.errors import RequestError

LOOKUP = 10
"""Tokens that prompt lookup drafts: the number in transformers' own documentation."""


class Weights:
    """A model read from a folder as transformers reads it, apart from ours; its users share it."""

    def __init__(self, setup: PeerSetup, folder: Path | None) -> None:
        self._setup, self.folder = setup, folder
        self._users = 0
        self._model: Any = None

    @property
    def model(self) -> Any:
        """Opened before."""
        assert self._model is not None, "not open"
        return self._model

    def open(self) -> None:
        """Read on first use. Raises ``ModelError``."""
        if self._model is None:
            from transformers import GenerationConfig

            from outrider.model import files

            assert self.folder is not None
            self._model = files.read(self.folder, self._setup.dtype, self._setup.device)
            # Sampling settings of the checkpoint (penalties, top-p) would change the greedy text.
            self._model.generation_config = GenerationConfig(pad_token_id=0)
        self._users += 1

    def close(self) -> None:
        """Let go once nobody uses it."""
        self._users -= 1
        if self._users == 0:
            self._model = None

    def missing(self, what: str, remedy: str) -> str | None:
        """Why there is nothing to read."""
        from outrider.model.files import is_adapter

        if self.folder is None:
            return f"the {what} {remedy}"
        if is_adapter(self.folder):
            return f"the {what} is a LoRA adapter, and peers run whole models"
        if not (self.folder / "config.json").is_file():
            return f"{str(self.folder)!r} is not a transformers model folder"
        return None

    def vocab_size(self) -> int | None:
        """From the configuration alone."""
        assert self.folder is not None
        config = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        size = config.get("vocab_size", (config.get("text_config") or {}).get("vocab_size"))
        return None if size is None else int(size)


class Generate:
    """``model.generate`` with do_sample=False; subclasses say what else is passed."""

    name = "transformers"
    method = "generate, plain"
    baseline = "transformers"
    library = "transformers"
    comparable = True

    def __init__(self, weights: Weights) -> None:
        self._weights = weights

    @property
    def version(self) -> str:
        return installed_version("transformers")

    @property
    def notes(self) -> list[str]:
        return ["Reads the same folder in the same dtype, with transformers' own attention."]

    def available(self) -> str | None:
        return self._weights.missing("model", "was not read from a folder")

    def open(self) -> None:
        self._weights.open()

    def close(self) -> None:
        self._weights.close()

    def generate(self, token_ids: Sequence[int], max_tokens: int, stop: Collection[int] = ()) -> PeerRun:
        """See ``Peer``."""
        from transformers import GenerationConfig

        hf = self._weights.model
        config = GenerationConfig(
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=sorted(stop) or None,
            pad_token_id=0,
            **self._fields(),
        )
        prompt = torch.tensor([list(token_ids)], device=hf.device)
        watch = _Watch(len(token_ids), hf.device)
        handle = hf.register_forward_hook(watch, with_kwargs=True)
        try:
            began = time.perf_counter()
            with torch.inference_mode(), _quiet():
                found = hf.generate(
                    prompt, attention_mask=torch.ones_like(prompt), generation_config=config, **self._options()
                )
            tokens = found[0, len(token_ids) :].tolist()  # waits for the device
            total = time.perf_counter() - began
        except Exception as error:  # of transformers' own making, for models it cannot speculate with
            raise RequestError(f"{self.name} failed", why=f"{type(error).__name__}: {_first_line(error)}") from error
        finally:
            handle.remove()
        return PeerRun(
            token_ids=tokens,
            seconds_prefill=prefill(watch.first - began, total, watch.calls),
            seconds_total=total,
            target_calls=watch.calls,
            draft_tokens=watch.drafted,
        )

    def _fields(self) -> dict[str, Any]:
        """Of the generation config."""
        return {}

    def _options(self) -> dict[str, Any]:
        """Further arguments of ``generate``."""
        return {}


class Lookup(Generate):
    """Prompt lookup decoding."""

    name = "transformers-lookup"
    method = f"generate, prompt_lookup_num_tokens={LOOKUP}"

    def _fields(self) -> dict[str, Any]:
        return {"prompt_lookup_num_tokens": LOOKUP}


class Assisted(Generate):
    """Assisted generation with the draft model, at transformers' own settings for draft lengths."""

    name = "transformers-assisted"
    method = "generate, assistant_model"

    def __init__(self, weights: Weights, draft: Weights) -> None:
        super().__init__(weights)
        self._draft = draft

    @property
    def notes(self) -> list[str]:
        return [*super().notes, "Draft lengths are transformers' own defaults (confidence threshold and schedule)."]

    def available(self) -> str | None:
        why = super().available() or self._draft.missing("draft model", "was not given as a folder (--draft-model)")
        if why is None and self._weights.vocab_size() != self._draft.vocab_size():
            sizes = f"{self._weights.vocab_size()} and {self._draft.vocab_size()} tokens"
            why = f"model and draft model have different vocabularies ({sizes})"
        return why

    def open(self) -> None:
        super().open()
        self._draft.open()

    def close(self) -> None:
        super().close()
        self._draft.close()

    def _options(self) -> dict[str, Any]:
        return {"assistant_model": self._draft.model}


class _Watch:
    """Forward hook on the target: counts calls and drafted tokens, and notes when the first call ended."""

    def __init__(self, prompt: int, device: torch.device) -> None:
        self._prompt, self._device = prompt, device
        self.calls = self.drafted = 0
        self.first = 0.0

    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        self.drafted += ids.shape[1] - (1 if self.calls else self._prompt)
        self.calls += 1
        if self.calls == 1:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            self.first = time.perf_counter()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings that transformers' assisted generation gives about its own inner calls."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no message").split("\n")[0][:300]
