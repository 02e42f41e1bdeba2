"""Many continuations of a few texts: do a method's have the law of plain decoding's?

Two views of the same samples. Against plain decoding: counts of first tokens and of pairs in two independent samples.
Against the target itself: every token has its place in the target's law after the tokens before it, from the likeliest
to the least likely; places are uniform and independent exactly when the texts are draws from that law, so that all
tokens of all continuations add to one test, those of later rounds among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from outrider.certify.decode import Ask, Decoder, Tick
from outrider.certify.result import LawTest
from outrider.certify.score import Scorer
from outrider.certify.statistics import detectable, pooled, two_sample
from outrider.params import SamplingParams
from outrider.parts import Parts
from outrider.testing.stats import ChiSquare, chi_square

ENDED = -1
"""Stands for the token after an end."""
_STRIPES, _GRID = 20, 6
_LOTS = 1_000_003
_SHARED = 25

ABOUT = {
    "first tokens": "first token after each text, against plain decoding",
    "pairs": "first two tokens after each text, against plain decoding",
    "next tokens": "the token after every text that enough continuations share, against the target's own law",
    "places": "every token, by its place in the target's own law",
    "neighbours": "every two tokens in a row, by their places",
}


@dataclass(frozen=True)
class Sampled:
    """``texts[c][r]``: continuation r of context c. ``places`` are those of its tokens, None for the plain side;
    ``forks`` are tests of the tokens behind each text that enough continuations share. ``failed`` counts continuations
    that ended with an error."""

    texts: list[list[list[int]]]
    drafted: int
    accepted: int
    failed: int
    places: list[list[list[float]]] | None = None
    forks: list[ChiSquare] = field(default_factory=list)

    def firsts(self, context: int) -> list[int]:
        return [text[0] for text in self.texts[context]]

    def pairs(self, context: int) -> list[tuple[int, int]]:
        return [(text[0], text[1] if len(text) > 1 else ENDED) for text in self.texts[context]]


@dataclass(frozen=True)
class Sampler:
    """Draws ``count`` continuations of each of ``contexts`` with ``params``."""

    decoder: Decoder
    scorer: Scorer
    contexts: tuple[Ask, ...]
    params: SamplingParams
    count: int
    seed: int

    def draw(self, parts: Sequence[Parts], side: int, tick: Tick, places: bool = True, **changes: float) -> Sampled:
        """The sample of fresh ``parts`` (one per context). ``side`` is the number of the sample: each has seeds of its
        own. ``changes`` are sampling parameters that differ, for controls; places are always those of ``params``."""
        texts, drafted, accepted, failed = [], 0, 0, 0
        params = replace(self.params, **changes)  # type: ignore[arg-type]
        for number, (context, mine) in enumerate(zip(self.contexts, parts, strict=True)):
            first = self.seed + (side * len(self.contexts) + number) * self.count
            choices = self.decoder.samples(mine, context, params, self.count, first, tick)
            texts.append([choice.token_ids for choice in choices if choice.token_ids])
            drafted += sum(choice.stats.draft_tokens for choice in choices)
            accepted += sum(choice.stats.accepted_tokens for choice in choices)
            failed += sum(choice.error is not None for choice in choices)
        if not places:
            return Sampled(texts, drafted, accepted, failed)
        return Sampled(texts, drafted, accepted, failed, self._places(texts, side), self._forks(texts))

    def _places(self, texts: list[list[list[int]]], side: int) -> list[list[list[float]]]:
        rng = np.random.default_rng([self.seed % 2**63, side, _LOTS])
        found = []
        for context, mine in zip(self.contexts, texts, strict=True):
            lots = torch.from_numpy(rng.random((len(mine), max(map(len, mine), default=1))))
            found.append(self.scorer.places(context, mine, self.params, lots))
        return found

    def _forks(self, texts: list[list[list[int]]]) -> list[ChiSquare]:
        found = []
        for context, mine in zip(self.contexts, texts, strict=True):
            behind: dict[tuple[int, ...], list[int]] = {}
            for text in mine:
                for at, token in enumerate(text):
                    behind.setdefault(tuple(text[:at]), []).append(token)
            shared = {start: tokens for start, tokens in behind.items() if len(tokens) >= _SHARED}
            laws = self.scorer.laws_behind(context, list(shared), self.params)
            for law, tokens in zip(laws, shared.values(), strict=True):
                # A token that rounding alone lets through a truncation is rare, not impossible.
                law = law.double().cpu() + 1e-15
                found.append(chi_square(torch.bincount(torch.tensor(tokens), minlength=len(law)), law / law.sum()))
        return found


def law_tests(found: Sampled, plain: Sampled) -> dict[str, tuple[ChiSquare, bool]]:
    """The tests by name, each with whether it is against a known law (and not against another sample)."""
    count = range(len(plain.texts))
    tests = {
        "first tokens": (pooled([two_sample(found.firsts(c), plain.firsts(c)) for c in count]), False),
        "pairs": (pooled([two_sample(found.pairs(c), plain.pairs(c)) for c in count]), False),
    }
    if found.forks:
        # Given the text before it, each fork is a sample of its own: the tests are independent.
        tests["next tokens"] = (pooled(found.forks), True)
    if found.places is not None:
        rows = [row for context in found.places for row in context]
        alone = torch.tensor([place for row in rows for place in row], dtype=torch.float64)
        tests["places"] = (_uniform(alone[:, None], _STRIPES), True)
        # Pairs that share no token: the test counts on independent ones.
        couples = [row[at : at + 2] for row in rows for at in range(0, len(row) - 1, 2)]
        if couples:
            tests["neighbours"] = (_uniform(torch.tensor(couples, dtype=torch.float64), _GRID), True)
    return tests


def stripes(found: Sampled) -> tuple[int, ...]:
    """How many tokens fall into each twentieth of the target's law, the likeliest first."""
    places = torch.tensor([place for context in found.places or () for row in context for place in row])
    return tuple(torch.bincount((places * _STRIPES).long().clamp(max=_STRIPES - 1), minlength=_STRIPES).tolist())


def _uniform(places: torch.Tensor, cuts: int) -> ChiSquare:
    """Are points f64[R,K] uniform in the unit cube?"""
    k = places.shape[1]
    cell = ((places * cuts).long().clamp(max=cuts - 1) * cuts ** torch.arange(k)).sum(1)
    counts = torch.bincount(cell, minlength=cuts**k)
    return chi_square(counts, torch.full((cuts**k,), cuts**-k, dtype=torch.float64))


def judged(tests: dict[str, tuple[ChiSquare, bool]], adjusted: Sequence[float], level: float) -> tuple[LawTest, ...]:
    """The tests for the certificate. ``level`` is that of one test: the certificate's over the number of its tests."""
    return tuple(
        LawTest(
            name=name,
            about=ABOUT[name],
            statistic=test.statistic,
            dof=test.dof,
            bins=test.bins,
            samples=test.samples,
            p_value=test.p_value,
            adjusted=value,
            detectable=detectable(test.dof, level, test.samples, against_law=known),
        )
        for (name, (test, known)), value in zip(tests.items(), adjusted, strict=True)
    )
