"""The chosen method in the words of other engines, where they have it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass

from outrider.draft.automaton import SuffixDrafter
from outrider.draft.lookup import PromptLookup
from outrider.draft.model import DraftModel
from outrider.errors import ConfigError, nearest
from outrider.parts import Parts
from outrider.registry import preset
from outrider.tree.grow import Chain


@dataclass(frozen=True)
class Exported:
    """``flags`` for the engine's command line (empty: no speculation); ``notes`` say where it is not the same."""

    flags: str
    notes: tuple[str, ...] = ()


def export(engine: str, spec: str, draft_model: str | None = None) -> Exported:
    """Flags of ``engine`` (vllm, sglang, llama.cpp) for the preset ``spec``. Raises ``ConfigError`` for an engine that
    is not known and for a method that it does not have."""
    writer = ENGINES.get(engine)
    if writer is None:
        raise ConfigError(f"--export {engine!r}", hint=nearest(engine, ENGINES))
    parts = preset(spec)
    if parts.drafter is None:
        return Exported("", ("plain decoding is the engine's default: no flags are needed",))
    found = writer(parts, draft_model)
    if found is None:
        raise ConfigError(f"{engine} has no equivalent of {spec!r}", hint="Export a pld or spec-decode preset.")
    return found


def _vllm(parts: Parts, draft_model: str | None) -> Exported | None:
    drafter, depth = parts.drafter, _depth(parts)
    notes: tuple[str, ...] = ()
    if isinstance(drafter, PromptLookup):
        config: dict[str, object] = {
            "method": "ngram",
            "num_speculative_tokens": depth,
            "prompt_lookup_max": drafter.max_ngram,
            "prompt_lookup_min": drafter.min_ngram,
        }
        notes = ("vLLM copies the first occurrence, outrider the latest",)
    elif isinstance(drafter, DraftModel) and isinstance(drafter.structure, Chain):
        config = {"method": "draft_model", "model": _named(draft_model), "num_speculative_tokens": depth}
    elif isinstance(drafter, SuffixDrafter) and drafter.alpha is not None:
        config = {
            "method": "suffix",
            "num_speculative_tokens": depth,
            "suffix_decoding_max_spec_factor": drafter.alpha,
        }
        notes = ("suffix decoding is the nearest: it keeps counts of continuations and needs arctic-inference",)
    else:
        return None
    return Exported(f"--speculative-config {shlex.quote(json.dumps(config))}", notes)


def _sglang(parts: Parts, draft_model: str | None) -> Exported | None:
    drafter, depth = parts.drafter, _depth(parts)
    if isinstance(drafter, PromptLookup):
        words = ["NGRAM", "--speculative-num-draft-tokens", depth + 1, "--speculative-ngram-max-bfs-breadth", 1]
        notes: tuple[str, ...] = ("SGLang looks in a trie of all requests; with a breadth of 1 its drafts are chains",)
    elif isinstance(drafter, DraftModel) and isinstance(drafter.structure, Chain):
        words = ["STANDALONE", "--speculative-draft-model-path", _named(draft_model), "--speculative-num-steps", depth]
        words += ["--speculative-eagle-topk", 1, "--speculative-num-draft-tokens", depth + 1]
        notes = ()
    else:
        return None
    return Exported(shlex.join(["--speculative-algorithm", *map(str, words)]), notes)


def _llama_cpp(parts: Parts, draft_model: str | None) -> Exported | None:
    drafter, depth = parts.drafter, _depth(parts)
    if isinstance(drafter, PromptLookup):
        words = ["--spec-type", "ngram-simple", "--spec-ngram-size-n", drafter.max_ngram]
        words += ["--spec-ngram-size-m", depth, "--draft-max", depth]
        notes: tuple[str, ...] = ()
        if drafter.min_ngram < drafter.max_ngram:
            notes = (f"llama.cpp looks for {drafter.max_ngram} tokens alone, not for fewer",)
    elif isinstance(drafter, DraftModel) and isinstance(drafter.structure, Chain):
        words = ["-md", _named(draft_model), "--draft-max", depth, "--draft-min", 0]
        threshold = getattr(parts.policy, "threshold", 0.0)
        words += ["--draft-p-min", threshold]
        notes = ("the draft model must be a GGUF file",)
    else:
        return None
    return Exported(shlex.join(map(str, words)), notes)


ENGINES: dict[str, Callable[[Parts, str | None], Exported | None]] = {
    "vllm": _vllm,
    "sglang": _sglang,
    "llama.cpp": _llama_cpp,
}


def _depth(parts: Parts) -> int:
    return parts.policy.plan([]).depth


def _named(draft_model: str | None) -> str:
    return draft_model or "DRAFT_MODEL"
