"""Plain decoding, which every check compares with: decoded once for all methods of one law."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from outrider.certify.compare import Reference, everything_on
from outrider.certify.decode import Ask, Decoder, Tick
from outrider.certify.identity import Judge
from outrider.certify.law import Sampled, Sampler
from outrider.certify.score import Along, Scorer, contexts
from outrider.errors import ConfigError, check_number
from outrider.params import SamplingParams
from outrider.parts import Law, Parts
from outrider.registry import preset

WARMER = 1.2
"""A control samples at this many times the temperature."""


@dataclass(frozen=True)
class Plan:
    """How much is checked. ``sampling`` shapes every check above temperature 0; with temperature 0 there are none.
    ``samples`` continuations are drawn from each of ``contexts`` texts (0: no sampling check), ``sample_tokens`` long.
    ``level`` is the chance that the sampling tests of a certificate reject a method that is exact."""

    prompts: int = 8
    max_tokens: int = 48
    sampling: SamplingParams = field(default_factory=lambda: SamplingParams(temperature=1.0))
    samples: int = 300
    contexts: int = 3
    sample_tokens: int = 6
    level: float = 0.001
    seed: int = 0

    def __post_init__(self) -> None:
        check_number("prompts", self.prompts, 1)
        check_number("max_tokens", self.max_tokens, 2)
        check_number("samples", self.samples, 0)
        check_number("contexts", self.contexts, 1)
        check_number("sample_tokens", self.sample_tokens, 2)
        check_number("level", self.level, 1e-12, 0.5)
        check_number("seed", self.seed, 0, 2**62)
        if 0 < self.samples < 20:
            raise ConfigError(
                f"samples={self.samples}", why="a test needs counts", hint="Give 20 or more, or 0 for none."
            )
        if self.sampling.n != 1 or self.sampling.logprobs is not None:
            raise ConfigError(
                "sampling with n or logprobs", hint="Leave them out: a certificate compares single texts."
            )


@dataclass(frozen=True)
class Progress:
    """How far a certificate is: ``done`` of about ``total`` tokens of one stage of one preset's checks."""

    preset: str
    number: int
    """Which of the ``count`` presets it is, from 1."""
    count: int
    stage: str
    done: int
    total: int


Tell = Callable[[str, int, int], None]


class Counter:
    """Turns the ticks of decoding into progress."""

    def __init__(self, tell: Tell, stage: str, total: int) -> None:
        self._tell, self._stage, self._total, self._done = tell, stage, total, 0
        tell(stage, 0, total)

    def __call__(self, tokens: int) -> None:
        self._done += tokens
        self._tell(self._stage, min(self._done, self._total), self._total)


class Ground:
    """Plain decoding under one law; everything is worked out when it is first asked for."""

    def __init__(self, decoder: Decoder, law: Law | None, asks: Sequence[Ask], plan: Plan, tell: Tell) -> None:
        self.decoder, self.law, self.asks, self.plan, self._plain_tell = decoder, law, tuple(asks), plan, tell
        self.scorer = Scorer(decoder, law)
        self.judge = Judge(decoder.engine(self.plain(), 1))

    def plain(self) -> Parts:
        """Fresh parts of plain decoding."""
        return preset("plain").with_(law=self.law)

    def counter(self, stage: str, total: int) -> Tick:
        return Counter(self._plain_tell, stage, total)

    # -- texts --------------------------------------------------------------------------------------------

    @cached_property
    def greedy(self) -> Reference:
        """The most likely tokens."""
        return self._decode("plain greedy texts", [SamplingParams(max_tokens=self.plan.max_tokens)] * len(self.asks))

    @cached_property
    def seeded(self) -> Reference:
        """Texts drawn with the plan's parameters, each prompt with a seed of its own."""
        return self._decode("plain seeded texts", self._seeded(self.plan.sampling))

    @cached_property
    def everything(self) -> Reference:
        """The same with every sampling parameter switched on."""
        return self._decode("plain texts, every parameter on", self._seeded(self._on(self.plan.sampling)))

    @cached_property
    def everything_greedy(self) -> Reference:
        """The most likely tokens with every sampling parameter switched on."""
        params = replace(self._on(self.plan.sampling), temperature=0.0)
        return self._decode("plain greedy texts, every parameter on", [params] * len(self.asks))

    def _on(self, base: SamplingParams) -> SamplingParams:
        base = replace(base, max_tokens=self.plan.max_tokens, min_tokens=min(base.min_tokens, self.plan.max_tokens))
        return everything_on(base, self.greedy.texts, self.decoder.stop_tokens, self.decoder.tokenizer)

    def _seeded(self, base: SamplingParams) -> list[SamplingParams]:
        least = min(base.min_tokens, self.plan.max_tokens)
        return [
            replace(base, max_tokens=self.plan.max_tokens, min_tokens=least, seed=self.plan.seed + number)
            for number in range(len(self.asks))
        ]

    def _decode(self, stage: str, params: list[SamplingParams]) -> Reference:
        tick = self.counter(stage, self.plan.max_tokens * len(self.asks))
        choices = self.decoder.one_by_one(self.plain(), self.asks, params, tick)
        failed = [choice.error for choice in choices if choice.error is not None]
        if failed:
            raise failed[0]
        return Reference(self.asks, tuple(params), tuple(choices))

    @cached_property
    def along(self) -> list[Along]:
        """The target's own view of its greedy texts."""
        heat = self.plan.sampling.temperature or 1.0
        pairs = zip(self.asks, self.greedy.params, self.greedy.texts, strict=True)
        return [self.scorer.along(ask, text, params, heat) for ask, params, text in pairs]

    # -- samples ------------------------------------------------------------------------------------------

    @cached_property
    def places(self) -> list[tuple[int, int]]:
        """(prompt, tokens of its answer) where sampling starts."""
        return contexts(self.asks, self.greedy.texts, self.along, self.plan.contexts, self.plan.sample_tokens)

    @cached_property
    def sampler(self) -> Sampler:
        starts = [
            Ask(self.asks[index].name, (*self.asks[index].tokens, *self.greedy.texts[index][:at]))
            for index, at in self.places
        ]
        length = self.plan.sample_tokens
        params = replace(
            self.plan.sampling, max_tokens=length, min_tokens=min(self.plan.sampling.min_tokens, length), seed=None
        )
        # Far from the seeds of the texts above.
        seed = self.plan.seed + (1 << 40)
        return Sampler(self.decoder, self.scorer, tuple(starts), params, self.plan.samples, seed)

    def draw(self, stage: str, make: Callable[[], Parts], side: int, tell: Tell, **changes: float) -> Sampled:
        """A sample by fresh parts; see ``Sampler.draw``."""
        sampler = self.sampler
        total = len(sampler.contexts) * self.plan.samples * self.plan.sample_tokens
        parts = [make() for _ in sampler.contexts]
        return sampler.draw(parts, side, Counter(tell, stage, total), places=side != 0, **changes)

    @cached_property
    def plain_sample(self) -> Sampled:
        return self.draw("plain samples", self.plain, 0, self._plain_tell)

    @cached_property
    def warmer_sample(self) -> Sampled:
        """The control: plain decoding a little hotter."""
        heat = self.plan.sampling.temperature * WARMER
        return self.draw("control: warmer samples", self.plain, 1, self._plain_tell, temperature=heat)
