"""What differs between the conditions of two results, in sentences, sorted by what it forbids to compare."""

from __future__ import annotations

from typing import Any

from outrider.bench.result import BenchResult

_MACHINE = {"cpu": "processor", "capability": "instruction set", "cores": "cores", "threads": "threads", "gpu": "GPU"}


def blocking(a: BenchResult, b: BenchResult) -> list[str]:
    """Why figures of ``a`` and ``b`` do not belong together."""
    old_suite, new_suite = (f"{result.suite.name} {result.suite.version}" for result in (a, b))
    reasons = _pair("suite", old_suite, new_suite, same=a.suite.sha256 == b.suite.sha256, alike="with other prompts")
    old, new = _model(a, "target"), _model(b, "target")
    kept = len(reasons)
    for name in ("dtype", "quantisation"):
        reasons += _pair(name, old.get(name), new.get(name))
    weights = old.get("sha256") == new.get("sha256") or len(reasons) > kept  # another dtype always has other bytes
    reasons += _pair("model", old.get("name"), new.get("name"), same=weights, alike="with other weights")
    for name in ("max_tokens", "params", "batch_size"):
        reasons += _pair(name.replace("_", " "), getattr(a.settings, name), getattr(b.settings, name))
    if a.settings.temperature > 0:
        reasons += _pair("seed", a.settings.seed, b.settings.seed)
    return reasons


def machines(a: BenchResult, b: BenchResult) -> list[str]:
    """How the machines differ, where that changes tokens per second."""
    old, new = (result.provenance.get("machine") or {} for result in (a, b))
    reasons = [text for key, name in _MACHINE.items() for text in _pair(name, old.get(key), new.get(key))]
    return reasons + _pair("device", _model(a, "target").get("device"), _model(b, "target").get("device"))


def other(a: BenchResult, b: BenchResult) -> list[str]:
    """What else differs and may be what is being compared: versions, the draft model, how it was measured."""
    notes = _pair("outrider", _version(a), _version(b))
    old, new = (result.provenance.get("libraries") or {} for result in (a, b))
    notes += [text for name in sorted({*old, *new}) for text in _pair(name, old.get(name), new.get(name))]
    old, new = (result.provenance.get("machine") or {} for result in (a, b))
    notes += [text for name in ("python", "system", "cuda") for text in _pair(name, old.get(name), new.get(name))]
    old, new = _model(a, "draft"), _model(b, "draft")
    same = old.get("sha256") == new.get("sha256")
    notes += _pair("draft model", old.get("name"), new.get("name"), same=same, alike="with other weights")
    for name in ("fresh", "repeats", "order", "warm_up", "max_context"):
        notes += _pair(name.replace("_", " "), getattr(a.settings, name), getattr(b.settings, name))
    return notes + _pair("prompts", a.suite.prompts, b.suite.prompts)


def _model(result: BenchResult, role: str) -> dict[str, Any]:
    return dict((result.provenance.get("models") or {}).get(role) or {})


def _version(result: BenchResult) -> str:
    words = (result.provenance.get("outrider"), result.provenance.get("commit"))
    return " ".join(str(word) for word in words if word)


def _pair(what: str, old: object, new: object, same: bool | None = None, alike: str = "") -> list[str]:
    """A sentence if two facts differ. ``same`` decides where the facts shown do not; ``alike``: how they differ where
    they read the same."""
    if old == new if same is None else same:
        return []
    return [f"{what} {_said(old)}, {alike}"] if old == new else [f"{what} {_said(old)} against {_said(new)}"]


def _said(value: object) -> str:
    return "none" if value is None or value == {} else str(value)
