"""The certificate: what was checked, with which evidence, and what it amounts to."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from outrider.certify.identity import Difference
from outrider.certify.statistics import Distance

FORMAT = "outrider certificate 1"

Status = Literal["passed", "wrong", "not run"]
Verdict = Literal["passed", "wrong", "inconclusive", "relaxed", "incomplete"]
_WORST: tuple[Verdict, ...] = ("wrong", "incomplete", "inconclusive", "relaxed", "passed")


@dataclass(frozen=True)
class Shown:
    """A difference where it happened. ``before`` is the end of the text that both agree on."""

    prompt: str
    difference: Difference
    before: str
    found_text: str
    wanted_text: str
    why: str


@dataclass(frozen=True)
class IdentityCheck:
    """Texts compared with plain decoding, token by token. ``compared`` counts tokens up to each first difference;
    ``drafted`` and ``accepted`` are the method's; ``params`` those that are not at their defaults."""

    name: str
    about: str
    status: Status
    texts: int
    tokens: int
    compared: int
    identical: int
    ties: int
    wrong: int
    drafted: int
    accepted: int
    params: dict[str, Any]
    differences: tuple[Shown, ...] = ()
    kind: str = "identity"


@dataclass(frozen=True)
class LawTest:
    """One test of the sampling check. ``adjusted`` is Holm's p-value over all tests of the certificate; ``detectable``
    the total-variation distance that would have been found with probability 0.9."""

    name: str
    about: str
    statistic: float
    dof: int
    bins: int
    samples: int
    p_value: float
    adjusted: float
    detectable: float


@dataclass(frozen=True)
class Context:
    """Where sampling started: a prompt and this many tokens of its plain answer; ``ending`` is the text just before."""

    prompt: str
    answered: int
    length: int
    ending: str


@dataclass(frozen=True)
class SamplingCheck:
    """Many continuations of a few texts, by the method and by plain decoding with other seeds."""

    name: str
    about: str
    status: Status
    contexts: tuple[Context, ...]
    samples: int
    """Continuations per context and side."""
    tokens: int
    """Tokens per continuation, at most."""
    level: float
    """Chance that any of the certificate's tests rejects a method that is exact."""
    drafted: int
    accepted: int
    failed: int
    """Continuations that ended with an error."""
    params: dict[str, Any]
    tests: tuple[LawTest, ...] = ()
    stripes: tuple[int, ...] = ()
    """Tokens in each twentieth of the target's own law, from the likeliest to the least likely: level if drawn so."""
    kind: str = "sampling"


@dataclass(frozen=True)
class Divergence:
    """What a method that changes the law changes. ``agreement`` is the share of greedy tokens that are the target's own
    choice after the text before them (ties count as agreement); ``first_tokens`` and ``pairs`` compare laws."""

    name: str
    about: str
    bound: str
    agreement: float
    tokens: int
    texts: int
    identical: int
    first_tokens: Distance | None
    pairs: Distance | None
    differences: tuple[Shown, ...] = ()
    status: str = "measured"
    kind: str = "divergence"


@dataclass(frozen=True)
class NotRun:
    """A check that was left out, and why."""

    name: str
    about: str
    reason: str
    status: Status = "not run"
    kind: str = "none"


Check = IdentityCheck | SamplingCheck | Divergence | NotRun


@dataclass(frozen=True)
class Control:
    """A fault made on purpose, which check ``of`` must find: one that does not proves nothing."""

    name: str
    of: str
    about: str
    caught: bool
    evidence: str
    stripes: tuple[int, ...] = ()
    """As in ``SamplingCheck``, for controls of it."""


@dataclass(frozen=True)
class Findings:
    """Everything about one preset."""

    name: str
    parts: str
    guarantee: str
    verdict: Verdict
    summary: str
    checks: tuple[Check, ...]
    controls: tuple[Control, ...]
    complete: bool = True


@dataclass(frozen=True)
class LeftOut:
    """A preset or prompt that was not run, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Prompts:
    """The prompts of a certificate; ``sha256`` is that of the whole suite they were taken from."""

    suite: str
    version: str
    sha256: str
    ids: tuple[str, ...]
    left_out: tuple[LeftOut, ...] = ()


@dataclass(frozen=True)
class Certificate:
    """Whether methods change what a model says: the typed result of ``certify``."""

    verdict: Verdict
    summary: str
    model: str
    draft_model: str | None
    presets: tuple[Findings, ...]
    left_out: tuple[LeftOut, ...]
    prompts: Prompts
    settings: dict[str, Any]
    provenance: dict[str, Any]
    seconds: float
    complete: bool = True
    format: str = field(default=FORMAT)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON, which knows no infinity: such numbers are None there."""
        return _jsonable(asdict(self))


def _jsonable(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _jsonable(each) for key, each in value.items()}
    return [_jsonable(each) for each in value] if isinstance(value, list | tuple) else value


def worst(verdicts: list[Verdict]) -> Verdict:
    """What several verdicts amount to; nothing at all is inconclusive."""
    return next((verdict for verdict in _WORST if verdict in verdicts), "inconclusive")
