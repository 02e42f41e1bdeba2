"""What ``outrider bench`` writes and every reader of it reads: one schema, with provenance.

Words used throughout, defined here and nowhere else:

*answer*
    what one way of decoding (a preset or a peer) made of one turn of one prompt in one run; a :class:`Record`.
*decode seconds*
    wall-clock seconds of the steps that emitted the answer: draft + target + verify + other. Prefill (reading the
    prompt) is apart, and "with prefill" says when it is included.
*tokens per second*
    emitted tokens per decode second, of all answers together.
*speed-up*
    tokens per second divided by those of the baseline **over the same answers** (same prompts, turns and runs,
    measured in the same process, prompt by prompt, in rotating order). Where two answers have the same token ids
    this is the ratio of their times; where they do not it is the ratio of their times per token.
*interval*
    95 %, from resampling prompts with replacement, both sides of a prompt together (paired bootstrap on the log scale,
    with Student's t for the number of prompts). The turns and runs of a prompt stay together. Fewer than three prompts
    give none.
*mean accepted length*
    emitted tokens per target call, the token that the target itself adds included. Plain decoding is 1.
*acceptance rate*
    accepted drafted tokens / drafted tokens. All nodes of a tree count as drafted, so a wide tree has a low rate.
*acceptance at depth d*
    target calls in which a drafted token at depth d was accepted / target calls whose draft reached depth d. A tree
    with several nodes at one depth counts once. Depth 1 hangs under the last emitted token.
*identical*
    answers whose token ids are those of plain decoding / answers compared. None where no identity is promised (a
    temperature above 0 with a verifier that keeps the distribution and not the text).
*near-tie* and *wrong*
    the two kinds of first difference: rounding decided between two logits closer than the tolerance, or not.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from outrider.errors import ConfigError

SCHEMA = 1
"""Raised by one when a reader of the old schema could misread the new one."""

BASELINE = "plain"
PARTS = ("prefill", "draft", "target", "verify", "other")
"""Keys of every ``seconds``: other is the host's work between the three forwards and checks."""


class Data(BaseModel):
    """Values that do not change once made; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Interval(Data):
    low: float
    high: float


class Ratio(Data):
    """A speed-up and what it is over. ``interval`` is None where ``prompts`` is below 3."""

    baseline: str
    value: float
    interval: Interval | None
    prompts: int


class AtDepth(Data):
    """``drafted``: target calls whose draft reached ``depth``; ``accepted``: calls that accepted a token there."""

    depth: int
    drafted: int
    accepted: int

    @property
    def rate(self) -> float:
        return self.accepted / self.drafted if self.drafted else 0.0


class AtContext(Data):
    """Target calls made with at least ``low`` and fewer than ``high`` tokens (prompt and answer) before them;
    ``high`` None is open."""

    low: int
    high: int | None
    target_calls: int
    emitted_tokens: int
    draft_tokens: int
    accepted_tokens: int

    @property
    def mean_accepted_length(self) -> float:
        return self.emitted_tokens / self.target_calls if self.target_calls else 0.0

    @property
    def rate(self) -> float | None:
        """Accepted over drafted tokens; None where nothing was drafted."""
        return self.accepted_tokens / self.draft_tokens if self.draft_tokens else None


class FirstDifference(Data):
    """Where an answer leaves the plain one. ``position`` counts tokens of the answer; a token is None where that
    answer had ended. ``gap``, ``tolerance``, ``variation``, ``kind`` and ``reason`` are those of
    ``certify.identity.Difference``: how far the two tokens are apart, how far rounding may carry, what was measured of
    it, what follows ("tie": rounding decided; "wrong"; "drawn": no identity was promised), and why it is no tie."""

    position: int
    found: int | None
    wanted: int | None
    gap: float | None
    tolerance: float | None
    kind: Literal["tie", "wrong", "drawn"]
    variation: float | None = None
    reason: str = ""
    found_text: str = ""
    wanted_text: str = ""


class Record(Data):
    """One answer. ``place`` is its place in the order of this prompt and run (0: measured first)."""

    prompt: str
    category: str
    group: str
    turn: int
    run: int
    place: int
    prompt_tokens: int
    token_ids: list[int]
    finish_reason: str | None
    seconds: dict[str, float]
    """Per part, see ``PARTS``. A peer that does not say how its time divides has all decoding under "target"."""
    prefill_measured: bool = True
    """False where reading the prompt could not be told from decoding: then all seconds are decode seconds."""
    target_calls: int | None = None
    """None, here and below: not known (some peers do not tell)."""
    draft_tokens: int | None = None
    accepted_tokens: int | None = None
    acceptance_histogram: list[int] = Field(default_factory=list)
    """``[i]``: target calls in which i drafted tokens were accepted."""
    by_depth: list[AtDepth] = Field(default_factory=list)
    by_context: list[AtContext] = Field(default_factory=list)
    difference: FirstDifference | None = None
    """Against the plain answer of the same prompt, turn and run; None: identical, or not compared."""
    compared: bool = True
    """Whether identity with plain decoding was promised and therefore looked at."""

    @property
    def key(self) -> tuple[str, int, int]:
        """What pairs answers of different presets, and of different results."""
        return self.prompt, self.turn, self.run

    @property
    def tokens(self) -> int:
        return len(self.token_ids)

    @property
    def decode_seconds(self) -> float:
        return sum(seconds for part, seconds in self.seconds.items() if part != "prefill")

    @property
    def all_seconds(self) -> float:
        return sum(self.seconds.values())


class Figures(Data):
    """Sums and ratios over a set of answers; the module's docstring defines each word."""

    prompts: int
    answers: int
    emitted_tokens: int
    speedup: float | None
    """Over ``baseline`` of the preset or peer these figures belong to; None where there is nothing to divide by."""
    interval: Interval | None
    """Of ``speedup``."""
    speedup_with_prefill: float | None
    tokens_per_second: float
    tokens_per_second_with_prefill: float
    target_calls: int | None
    draft_tokens: int | None
    accepted_tokens: int | None
    mean_accepted_length: float | None
    acceptance_rate: float | None
    """None where nothing was drafted, or not known."""
    acceptance_histogram: list[int]
    by_depth: list[AtDepth]
    by_context: list[AtContext]
    seconds: dict[str, float]
    compared: int
    """Answers compared with plain decoding."""
    identical: float | None
    """Share of ``compared`` that is identical; None where nothing was compared."""
    identical_answers: int
    ties: int
    wrong: int


class Result(Figures):
    """What presets and peers have in common. The inherited figures are the totals."""

    name: str
    baseline: str
    """What ``speedup`` is over, here and in ``groups`` and ``categories``."""
    groups: dict[str, Figures]
    categories: dict[str, Figures]
    peak_memory_bytes: int | None
    """Highest memory while this preset or peer was running: of the process (Linux: resident set) on CPU, of torch's
    allocator on a GPU. The models and the engines of all presets are in it. None: not known."""
    records: list[Record]


class PresetResult(Result):
    """A preset of outrider. ``spec`` is what was asked for, ``parts`` what it became, ``name`` what tables show."""

    spec: str
    parts: str
    guarantee: str
    uses_draft_model: bool = False


class PeerResult(Result):
    """Another program on the same prompts and weights. ``over_plain`` is its tokens per second over those of
    outrider's own plain decoding, beside ``speedup`` over its ``baseline`` (the same program without drafting)."""

    library: str
    version: str
    method: str
    over_plain: Ratio | None
    notes: list[str] = Field(default_factory=list)
    """How its conditions differ, if they do (other numerics, prefill not measured apart, ...)."""


class SuiteFacts(Data):
    """Which prompts. ``limit`` is what was asked for (None: all), ``prompts`` how many that gave."""

    name: str
    version: str
    sha256: str
    about: str
    limit: int | None
    prompts: int
    groups: dict[str, int]
    """Prompts per group, in the suite's order."""


class Settings(Data):
    """How it was measured."""

    model: str
    draft_model: str | None
    presets: list[str]
    peers: list[str]
    max_tokens: int
    params: dict[str, Any]
    """Fields of ``SamplingParams`` that are not at their defaults, ``max_tokens`` apart."""
    temperature: float
    seed: int | None
    threads: int
    max_context: int | None
    batch_size: int
    repeats: int
    fresh: bool
    """True: every prompt gets a new engine. False: one engine per preset, so that drafters keep what they learn."""
    order: str
    warm_up: str
    level: float
    """Of the intervals."""
    resamples: int


class LeftOut(Data):
    """A preset, peer or prompt that was not measured, and why."""

    name: str
    reason: str


class BenchResult(Data):
    """The one object that ``outrider bench --json`` prints."""

    schema_version: int = SCHEMA
    provenance: dict[str, Any]
    """``outrider.provenance.Provenance.as_dict()``."""
    suite: SuiteFacts
    settings: Settings
    presets: list[PresetResult]
    """The baseline first."""
    peers: list[PeerResult] = Field(default_factory=list)
    left_out: list[LeftOut] = Field(default_factory=list)
    """Presets and peers that could not be run."""
    failures: list[LeftOut] = Field(default_factory=list)
    """Prompts that some preset could not answer: they are in nobody's figures."""
    notes: list[str] = Field(default_factory=list)
    """What a reader must know to judge the figures, in sentences."""

    @property
    def plain(self) -> PresetResult:
        return self.preset(BASELINE)

    def preset(self, name: str) -> PresetResult:
        """The result of that name. Raises ``KeyError``."""
        for result in self.presets:
            if result.name == name:
                return result
        raise KeyError(name)

    def to_json(self) -> str:
        """One line of ASCII, figures that are not numbers never in it."""
        return json.dumps(self.model_dump(mode="json"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str, where: str = "the result") -> BenchResult:
        """Read and check. Raises ``ConfigError`` naming ``where`` and the first thing that is wrong."""
        hint = "Give a file that `outrider bench --json` wrote."
        try:
            data = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"{where} is not JSON", why=str(error), hint=hint) from None
        if not isinstance(data, dict) or "schema_version" not in data or "presets" not in data:
            raise ConfigError(f"{where} is not a result of `outrider bench`", hint=hint)
        if data["schema_version"] != SCHEMA:
            raise ConfigError(
                f"{where} has schema version {data['schema_version']!r}",
                why=f"this version of outrider reads version {SCHEMA}",
                hint="Measure again, or use the version of outrider that wrote it.",
            )
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(step) for step in first["loc"])
            raise ConfigError(f"{where} is damaged at {place}", why=first["msg"], hint=hint) from None

    @classmethod
    def read(cls, path: str | Path) -> BenchResult:
        """The result in a file. Raises ``ConfigError``."""
        where = f"result file {str(path)!r}"
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{where} cannot be read: {error.strerror or error}") from None
        except UnicodeDecodeError:
            raise ConfigError(f"{where} is not UTF-8 text") from None
        return cls.from_json(text, where)
