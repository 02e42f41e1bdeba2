"""``openvino-genai`` as peers, on an exported folder (or the GGUF file) of the same model: plain, prompt lookup, draft
model."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from outrider.bench.peers.base import PROBE, PeerRun, PeerSetup, installed_version, missing, prefill, same_tokens
from outrider.errors import ModelError, RequestError

LOOKUP, NGRAM = 10, 3
"""Tokens that prompt lookup drafts, and the longest n-gram it matches (it has no defaults: both must be given)."""
DRAFT = 5
"""Tokens that a draft model drafts: the number in its own documentation."""


class Pipeline:
    """``LLMPipeline.generate`` on a tensor of token ids, which answers with token ids; no prefix is kept."""

    name = "openvino"
    method = "LLMPipeline, plain"
    baseline = "openvino"
    library = "openvino-genai"
    comparable = False

    def __init__(self, setup: PeerSetup) -> None:
        self._setup = setup
        self._pipe: Any = None

    @property
    def version(self) -> str:
        return installed_version("openvino-genai")

    @property
    def notes(self) -> list[str]:
        return [f"The weights are those in {self._source.name!r}, multiplied by OpenVINO's own kernels."]

    @property
    def _source(self) -> Path:
        found = self._setup.exports.openvino or self._setup.exports.gguf
        assert found is not None, "not available"
        return found

    def available(self) -> str | None:
        why = missing("openvino_genai", "openvino-genai")
        if why is not None:
            return why
        if self._setup.device.type != "cpu":
            return f"it runs on the CPU, and the model on {self._setup.device}"
        folder, gguf = self._setup.exports.openvino, self._setup.exports.gguf
        if folder is None and gguf is not None and gguf.is_file():
            return None
        return _no_export(folder, "model")

    def open(self) -> None:
        import openvino_genai

        try:
            self._pipe = openvino_genai.LLMPipeline(
                str(self._source),
                "CPU",
                scheduler_config=openvino_genai.SchedulerConfig(),
                INFERENCE_NUM_THREADS=self._threads,
                **self._options(),
            )
            encoded = self._pipe.get_tokenizer().encode(PROBE, add_special_tokens=False)
        except RuntimeError as error:
            raise ModelError(f"{self.name} cannot read {str(self._source)!r}", why=_last_line(error)) from error
        theirs = np.asarray(encoded.input_ids.data).reshape(-1).tolist()
        same_tokens(self.name, str(self._source), theirs, self._setup.tokenizer)

    @property
    def _threads(self) -> int:
        import torch

        return torch.get_num_threads()

    def _options(self) -> dict[str, Any]:
        return {}

    def _drafting(self) -> dict[str, Any]:
        """Fields of the generation config."""
        return {}

    def close(self) -> None:
        self._pipe = None

    def generate(self, token_ids: Sequence[int], max_tokens: int, stop: Collection[int] = ()) -> PeerRun:
        """See ``Peer``."""
        import openvino
        import openvino_genai

        config = openvino_genai.GenerationConfig()
        fields = {"max_new_tokens": max_tokens, "do_sample": False, "ignore_eos": not stop, **self._drafting()}
        for name, value in fields.items():
            setattr(config, name, value)
        config.stop_token_ids = set(stop)
        prompt = openvino.Tensor(np.array([list(token_ids)], dtype=np.int64))
        began = time.perf_counter()
        try:
            result = self._pipe.generate(prompt, config)
        except Exception as error:  # of another program's making
            raise RequestError(f"{self.name} failed", why=_last_line(error)) from error
        total = time.perf_counter() - began
        raw = result.perf_metrics.raw_metrics
        first, calls = list(raw.m_times_to_first_token), len(raw.m_batch_sizes)
        return PeerRun(
            token_ids=[int(token) for token in result.tokens[0]],
            seconds_prefill=prefill(first[0] / 1e6, total, calls) if first else None,  # microseconds
            seconds_total=total,
            target_calls=calls or None,
        )


class Lookup(Pipeline):
    """``prompt_lookup=True``."""

    name = "openvino-lookup"
    method = f"LLMPipeline(prompt_lookup=True), num_assistant_tokens={LOOKUP}, max_ngram_size={NGRAM}"

    def _options(self) -> dict[str, Any]:
        return {"prompt_lookup": True}

    def _drafting(self) -> dict[str, Any]:
        return {"num_assistant_tokens": LOOKUP, "max_ngram_size": NGRAM}


class Drafted(Pipeline):
    """``draft_model``."""

    name = "openvino-draft"
    method = f"LLMPipeline(draft_model), num_assistant_tokens={DRAFT}"

    def available(self) -> str | None:
        return super().available() or _no_export(self._setup.exports.openvino_draft, "draft model")

    def _options(self) -> dict[str, Any]:
        import openvino_genai

        folder = str(self._setup.exports.openvino_draft)
        return {"draft_model": openvino_genai.draft_model(folder, "CPU", INFERENCE_NUM_THREADS=self._threads)}

    def _drafting(self) -> dict[str, Any]:
        return {"num_assistant_tokens": DRAFT}


def _no_export(folder: Path | None, what: str) -> str | None:
    if folder is None:
        return f"no OpenVINO export of the {what} is at hand"
    if not (folder / "openvino_model.xml").is_file():
        return f"{str(folder)!r} holds no openvino_model.xml"
    return None


def _last_line(error: Exception) -> str:
    """What OpenVINO says behind the places in its own source."""
    return ([line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"])[-1][:300]
