"""Requests and what comes back: choices, origins, statistics."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from outrider.errors import RequestError
from outrider.params import SamplingParams

if TYPE_CHECKING:
    from outrider.sampling import RowSampling


@dataclass(frozen=True)
class Origin:
    """Where an emitted token came from: the drafter's name (or "target") and its depth in the tree (0: target)."""

    name: str
    depth: int


@dataclass
class Stats:
    """Counted in one place, by the engine, for every way of decoding alike.

    ``target_calls`` are decoding steps (prefill apart). ``seconds`` are wall-clock seconds of the steps this
    request took part in, split into draft, target, verify and other, and prefill.
    """

    target_calls: int = 0
    emitted_tokens: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    accepted_per_call: Counter[int] = field(default_factory=Counter)
    prompt_tokens: int = 0
    reused_tokens: int = 0
    """Prompt tokens whose keys and values were still there from an earlier request."""
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("prefill", "draft", "target", "verify", "other"), 0.0)
    )

    @property
    def mean_accepted_length(self) -> float:
        """Emitted tokens per target call, the token that the target itself adds included; plain is 1."""
        return self.emitted_tokens / self.target_calls if self.target_calls else 0.0

    @property
    def acceptance_histogram(self) -> list[int]:
        """``[i]`` is the number of target calls in which i drafted tokens were accepted."""
        if not self.accepted_per_call:
            return []
        return [self.accepted_per_call[i] for i in range(max(self.accepted_per_call) + 1)]

    @property
    def decode_seconds(self) -> float:
        return sum(seconds for part, seconds in self.seconds.items() if part != "prefill")

    @property
    def tokens_per_second(self) -> float:
        """Emitted tokens per second of decoding; prefill is counted apart."""
        return self.emitted_tokens / self.decode_seconds if self.decode_seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain values, derived figures included."""
        fields = asdict(self)
        del fields["accepted_per_call"]
        return fields | {
            "mean_accepted_length": self.mean_accepted_length,
            "acceptance_histogram": self.acceptance_histogram,
            "tokens_per_second": self.tokens_per_second,
        }

    @classmethod
    def total(cls, parts: list[Stats]) -> Stats:
        """The sum over choices of one request."""
        whole = cls()
        for part in parts:
            whole.target_calls += part.target_calls
            whole.emitted_tokens += part.emitted_tokens
            whole.draft_tokens += part.draft_tokens
            whole.accepted_tokens += part.accepted_tokens
            whole.accepted_per_call += part.accepted_per_call
            for name, seconds in part.seconds.items():  # choices run side by side: the same steps, the same clock
                whole.seconds[name] = max(whole.seconds[name], seconds)
        if parts:
            whole.prompt_tokens, whole.reused_tokens = parts[0].prompt_tokens, parts[0].reused_tokens
        return whole


@dataclass
class Choice:
    """One generated text. ``finish_reason`` is "stop" (an end token or a stop string), "length", "cancelled",
    "error" (see ``error``), or None while it is still running."""

    index: int
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    """The token id or the string that ended the text."""
    origins: list[Origin] = field(default_factory=list)
    logprobs: list[dict[int, float]] | None = None
    """Per token: the log-probabilities of the token and of the ``logprobs`` most likely ones."""
    error: RequestError | None = None
    stats: Stats = field(default_factory=Stats)


@dataclass(eq=False)
class Request:
    """One prompt with its parameters; ``n`` choices grow in it while it runs."""

    id: int
    prompt: list[int]
    params: SamplingParams
    seed: int
    choices: list[Choice] = field(default_factory=list)
    sampling: RowSampling | None = field(default=None, repr=False)
    """Prepared for the first choice while the request waits."""
    stream: bool = True
    """Whether somebody reads the text while it grows; otherwise it is worked out once, at the end."""

    @property
    def finished(self) -> bool:
        return len(self.choices) == self.params.n and all(c.finish_reason is not None for c in self.choices)


@dataclass(frozen=True)
class Emission:
    """What one step added to one choice."""

    request: Request
    choice: Choice
    text: str
    token_ids: list[int]
    origins: list[Origin]


@dataclass
class RequestOutput:
    """What ``LLM.generate`` returns per prompt. ``text``, ``token_ids``, ``finish_reason``, ``origins`` and
    ``logprobs`` are those of the first choice."""

    prompt_token_ids: list[int]
    choices: list[Choice]

    @property
    def text(self) -> str:
        return self.choices[0].text

    @property
    def token_ids(self) -> list[int]:
        return self.choices[0].token_ids

    @property
    def finish_reason(self) -> str | None:
        return self.choices[0].finish_reason

    @property
    def origins(self) -> list[Origin]:
        return self.choices[0].origins

    @property
    def logprobs(self) -> list[dict[int, float]] | None:
        return self.choices[0].logprobs

    @property
    def stats(self) -> Stats:
        """Of all choices together."""
        return Stats.total([choice.stats for choice in self.choices])
