"""Results of `outrider bench` made up from known speeds, for tests of what reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from outrider.bench import metrics, paired
from outrider.bench.result import (
    AtContext,
    AtDepth,
    BenchResult,
    FirstDifference,
    PeerResult,
    PresetResult,
    Record,
    Settings,
    SuiteFacts,
)

GROUPS = ("code", "chat")


@dataclass(frozen=True)
class Method:
    """How one preset does: its true speed over plain, the log-normal noise of each time, emitted tokens per target
    call, the depth its drafts reach (0: drafts nothing), and the prompts (by number) whose answer differs."""

    speedup: float = 1.0
    noise: float = 0.02
    length: float = 1.0
    depth: int = 0
    wrong: Sequence[int] = ()
    ties: Sequence[int] = ()
    guarantee: str = "identical"


def result(
    methods: Mapping[str, Method],
    prompts: int = 20,
    groups: Sequence[str] = GROUPS,
    seed: int = 0,
    pace: float = 1.0,
    names: Mapping[int, tuple[str, str]] | None = None,
    repeats: int = 1,
) -> BenchResult:
    """``pace``: how fast the whole machine is. ``names``: id and category of some prompts by number."""
    rng = np.random.default_rng(seed)
    whole = {"plain": Method(), **methods}
    answers = {
        name: [
            _record(method, number, run, groups, names or {}, pace, place, rng)
            for number in range(prompts)
            for run in range(repeats)
        ]
        for place, (name, method) in enumerate(whole.items())
    }
    presets = [
        PresetResult(
            **measured(answers[name], answers["plain"], "plain"),
            name=name,
            baseline="plain",
            peak_memory_bytes=(900 + 10 * place) << 20,
            spec=name,
            parts=f"drafter {name}",
            guarantee=method.guarantee,
        )
        for place, (name, method) in enumerate(whole.items())
    ]
    return BenchResult(
        provenance=provenance(),
        suite=SuiteFacts(
            name="own",
            version="1",
            sha256="5" * 64,
            about="Prompts of nine kinds.",
            limit=None,
            prompts=prompts,
            groups={group: len(range(place, prompts, len(groups))) for place, group in enumerate(groups)},
        ),
        settings=settings(list(whole), repeats),
        presets=presets,
    )


def with_peer(given: BenchResult, speedup: float | None = 1.3) -> BenchResult:
    """``given`` with one peer, twice: without and with drafting."""
    rng = np.random.default_rng(99)
    plain = given.plain.records
    slow = [_peer_record(record, 0.8, rng) for record in plain]
    fast = [_peer_record(record, 0.8 * (speedup or 1.0), rng) for record in plain]
    peers = []
    for method, records in (("generate", slow), ("prompt lookup", fast)):
        own = speedup is not None and method != "generate"
        figures = measured(records, slow if own else [], "transformers: generate")
        peers.append(
            PeerResult(
                **figures,
                name=f"transformers: {method}",
                baseline="transformers: generate",
                peak_memory_bytes=None,
                library="transformers",
                version="5.17.0",
                method=method,
                over_plain=metrics.speedup(records, plain, "plain"),
                notes=["Prefill is not measured apart."] if own else [],
            )
        )
    return given.model_copy(update={"peers": peers})


def measured(records: list[Record], base: list[Record], baseline: str) -> dict[str, Any]:
    """The figures of ``records`` in total, by group and by category, and the records."""
    parts: dict[str, Any] = metrics.totals(records, base, baseline)
    parts["groups"] = metrics.grouped(records, base, baseline, lambda record: record.group)
    parts["categories"] = metrics.grouped(records, base, baseline, lambda record: record.category)
    return parts | {"records": records}


def provenance() -> dict[str, Any]:
    return {
        "made_at": "2030-01-02T03:04:05+00:00",
        "outrider": "0.1.0",
        "commit": "abcdef012345",
        "machine": {
            "cpu": "A processor",
            "capability": "AVX2",
            "cores": 8,
            "threads": 4,
            "memory_gib": 31.2,
            "gpu": None,
            "cuda": None,
            "system": "Linux 6.1",
            "python": "3.12.1",
        },
        "libraries": {"torch": "2.11.0", "transformers": "5.17.0"},
        "models": {
            "target": {
                "name": "tiny-135m",
                "family": "llama",
                "parameters": 134_515_008,
                "dtype": "float32",
                "device": "cpu",
                "quantisation": "none",
                "sha256": "a" * 64,
            }
        },
    }


def settings(presets: list[str], repeats: int) -> Settings:
    return Settings(
        model="tiny-135m",
        draft_model=None,
        presets=presets,
        peers=[],
        max_tokens=64,
        params={},
        temperature=0.0,
        seed=0,
        threads=4,
        max_context=None,
        batch_size=1,
        repeats=repeats,
        fresh=True,
        order="rotating",
        warm_up="one prompt",
        level=paired.LEVEL,
        resamples=paired.RESAMPLES,
    )


def edit(given: BenchResult, *path: str, value: object) -> BenchResult:
    """``given`` with the value at ``path`` of its JSON form replaced."""
    data = given.model_dump(mode="json")
    place: Any = data
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return BenchResult.model_validate(data)


def _record(
    method: Method,
    number: int,
    run: int,
    groups: Sequence[str],
    names: Mapping[int, tuple[str, str]],
    pace: float,
    place: int,
    rng: np.random.Generator,
) -> Record:
    group = groups[number % len(groups)]
    name, category = names.get(number, (f"{group}-{number}", group))
    tokens = 40 + 7 * number % 24
    calls = max(1, round(tokens / method.length))
    decoding = tokens / 50 / pace / method.speedup * float(np.exp(method.noise * rng.standard_normal()))
    shares = (0.1, 0.7, 0.12, 0.08) if method.depth else (0.0, 0.85, 0.05, 0.1)
    parts = dict(zip(("draft", "target", "verify", "other"), shares, strict=True))
    kind = "wrong" if number in method.wrong else "tie" if number in method.ties else None
    context = 100 + 150 * (number % 4)
    drafted, accepted = calls * method.depth, tokens - calls if method.depth else 0
    return Record(
        prompt=name,
        category=category,
        group=group,
        turn=0,
        run=run,
        place=place,
        prompt_tokens=context,
        token_ids=list(range(tokens)),
        finish_reason="length",
        seconds={"prefill": 0.05 / pace} | {part: share * decoding for part, share in parts.items()},
        target_calls=calls,
        draft_tokens=drafted,
        accepted_tokens=accepted,
        acceptance_histogram=[calls],
        by_depth=[AtDepth(depth=d, drafted=calls, accepted=round(calls * 0.8**d)) for d in range(1, method.depth + 1)],
        by_context=[_context(context, calls, tokens, drafted, accepted)],
        difference=None if kind is None else difference(kind),
    )


def difference(kind: Any, position: int = 12) -> FirstDifference:
    gap = 0.00002 if kind == "tie" else 1.7
    return FirstDifference(
        position=position,
        found=5,
        wanted=7,
        gap=gap,
        tolerance=0.0001,
        kind=kind,
        found_text=" is",
        wanted_text=" was",
    )


def _context(tokens: int, calls: int, emitted: int, drafted: int, accepted: int) -> AtContext:
    index = metrics.bucket(tokens)
    low, high = metrics.CONTEXT_EDGES[index], metrics.CONTEXT_EDGES[index + 1]
    return AtContext(
        low=low, high=high, target_calls=calls, emitted_tokens=emitted, draft_tokens=drafted, accepted_tokens=accepted
    )


def _peer_record(record: Record, speed: float, rng: np.random.Generator) -> Record:
    seconds = record.tokens / 50 / speed * float(np.exp(0.02 * rng.standard_normal()))
    unknown = {"target_calls": None, "draft_tokens": None, "accepted_tokens": None}
    return record.model_copy(
        update=unknown | {"seconds": {"target": seconds}, "by_depth": [], "by_context": [], "prefill_measured": False}
    )


def slowed(methods: Mapping[str, Method], name: str, factor: float) -> dict[str, Method]:
    """``methods`` with one of them ``factor`` times as fast."""
    return {**methods, name: replace(methods[name], speedup=methods[name].speedup * factor)}
