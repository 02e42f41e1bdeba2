"""``llama-cpp-python`` as peers, on a GGUF file of the same model: plain, and with its prompt lookup."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import Any

from outrider.bench.peers.base import PROBE, PeerRun, PeerSetup, installed_version, missing, prefill, same_tokens
from outrider.errors import ConfigError, ModelError, RequestError

LOOKUP = 10
"""Tokens that its prompt lookup drafts: the default of ``LlamaPromptLookupDecoding``."""


class Llama:
    """``Llama.generate`` on token ids, at temperature 0. Every answer begins with an empty cache."""

    name = "llama-cpp"
    method = "Llama.generate, plain"
    baseline = "llama-cpp"
    library = "llama-cpp-python"
    comparable = False

    def __init__(self, setup: PeerSetup) -> None:
        self._setup = setup
        self._llama: Any = None
        self._kind = "of unknown type"

    @property
    def version(self) -> str:
        return installed_version("llama-cpp-python")

    @property
    def notes(self) -> list[str]:
        file = self._setup.exports.gguf
        assert file is not None, "not available"
        return [f"The weights are those in {file.name!r} ({self._kind}), multiplied by llama.cpp's own kernels."]

    def available(self) -> str | None:
        why = missing("llama_cpp", "llama-cpp-python")
        if why is not None:
            return why
        file = self._setup.exports.gguf
        if file is None:
            return "no GGUF file of the model is at hand"
        if not file.is_file():
            return f"the GGUF file {str(file)!r} does not exist"
        return None

    def open(self) -> None:
        """See ``Peer``. Refuses a file that is another model's, and a build without the accelerator we run on."""
        import llama_cpp
        import torch

        on_gpu = self._setup.device.type != "cpu"
        if on_gpu and not llama_cpp.llama_supports_gpu_offload():
            raise ConfigError(
                f"{self.name} would run on the CPU, and the model runs on {self._setup.device}",
                why="llama-cpp-python was built without an accelerator",
                hint="Build it with one, or run with --device cpu.",
            )
        threads = torch.get_num_threads()
        try:
            self._llama = llama_cpp.Llama(
                model_path=str(self._setup.exports.gguf),
                n_ctx=self._setup.max_context,
                n_threads=threads,
                n_threads_batch=threads,
                n_gpu_layers=-1 if on_gpu else 0,
                verbose=False,
                **self._options(),
            )
        except (ValueError, RuntimeError, OSError) as error:
            raise ModelError(f"{self.name} cannot read {str(self._setup.exports.gguf)!r}", why=str(error)) from error
        self._kind = _file_type(self._llama)
        self._check_tokens()

    def _options(self) -> dict[str, Any]:
        return {}

    def _check_tokens(self) -> None:
        """Token ids go in and come out: they must mean the same."""
        theirs = [int(token) for token in self._llama.tokenize(PROBE.encode(), add_bos=False, special=False)]
        same_tokens(self.name, str(self._setup.exports.gguf), theirs, self._setup.tokenizer)

    def close(self) -> None:
        if self._llama is not None:
            self._llama.close()
        self._llama = None

    def generate(self, token_ids: Sequence[int], max_tokens: int, stop: Collection[int] = ()) -> PeerRun:
        """See ``Peer``."""
        llama, prompt = self._llama, [int(token) for token in token_ids]
        if len(prompt) + max_tokens > self._setup.max_context:
            raise RequestError(
                f"{self.name}: {len(prompt)} prompt tokens and {max_tokens} new ones do not fit its context of "
                f"{self._setup.max_context}",
                hint="Raise --max-context.",
            )
        llama.reset()
        watch = _Watch(llama.eval, len(prompt))
        llama.eval = watch  # found before the method of the class
        tokens: list[int] = []
        began = time.perf_counter()
        try:
            for token in llama.generate(prompt, temp=0.0, top_k=1, repeat_penalty=1.0):
                tokens.append(int(token))
                if len(tokens) == max_tokens or tokens[-1] in stop:
                    break
        except Exception as error:  # of another program's making
            raise RequestError(f"{self.name} failed", why=f"{type(error).__name__}: {error}") from error
        finally:
            del llama.eval
        total = time.perf_counter() - began
        return PeerRun(
            token_ids=tokens,
            seconds_prefill=prefill(watch.first - began, total, watch.calls),
            seconds_total=total,
            target_calls=watch.calls,
            draft_tokens=watch.drafted,
        )


class Lookup(Llama):
    """``LlamaPromptLookupDecoding``."""

    name = "llama-cpp-lookup"
    method = f"Llama.generate, LlamaPromptLookupDecoding(num_pred_tokens={LOOKUP})"

    def _options(self) -> dict[str, Any]:
        from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

        # Without logits_all, 0.3.36 makes its score table too short for what drafting writes into it.
        return {"draft_model": LlamaPromptLookupDecoding(num_pred_tokens=LOOKUP), "logits_all": True}


class _Watch:
    """In place of ``Llama.eval``: counts calls and drafted tokens, and notes when the first call ended."""

    def __init__(self, evaluate: Any, prompt: int) -> None:
        self._eval, self._prompt = evaluate, prompt
        self.calls = self.drafted = 0
        self.first = 0.0

    def __call__(self, tokens: Sequence[int]) -> Any:
        self.drafted += len(tokens) - (1 if self.calls else self._prompt)
        result = self._eval(tokens)
        self.calls += 1
        if self.calls == 1:
            self.first = time.perf_counter()
        return result


def _file_type(llama: Any) -> str:
    """The quantisation that an open file's metadata name, such as Q4_1."""
    from gguf import LlamaFileType

    try:
        return str(LlamaFileType(int(llama.metadata["general.file_type"])).name.removeprefix("MOSTLY_"))
    except (AttributeError, KeyError, ValueError):
        return "of unknown type"
