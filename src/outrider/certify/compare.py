"""Texts of a method against those of plain decoding, difference by difference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from outrider.certify.decode import Ask, Decoder, Tick
from outrider.certify.identity import Difference, Judge, first_difference
from outrider.certify.result import IdentityCheck, Shown
from outrider.params import SamplingParams
from outrider.run.request import Choice
from outrider.types import Guarantee

_BEFORE = 48


@dataclass(frozen=True)
class Reference:
    """Plain decoding of some prompts, one after the other; ``params`` are each prompt's."""

    asks: tuple[Ask, ...]
    params: tuple[SamplingParams, ...]
    choices: tuple[Choice, ...]

    @property
    def texts(self) -> list[list[int]]:
        return [choice.token_ids for choice in self.choices]


@dataclass(frozen=True)
class Comparer:
    """Compares what a method with ``guarantee`` says with a reference; ``judge`` knows the law and the end tokens."""

    decoder: Decoder
    judge: Judge
    guarantee: Guarantee

    def check(self, name: str, about: str, found: Sequence[Choice], wanted: Reference, tick: Tick) -> IdentityCheck:
        """The finished check; ``tick`` is told of every text."""
        shown, compared = [], 0
        for ask, params, mine, right in zip(wanted.asks, wanted.params, found, wanted.choices, strict=True):
            difference = self.difference(ask, mine, right, params)
            length = len(right.token_ids)
            compared += length if difference is None else min(difference.position + 1, length)
            if difference is not None:
                shown.append(self.show(ask, difference, right.token_ids))
            tick(1)
        kinds = [each.difference.kind for each in shown]
        return IdentityCheck(
            name=name,
            about=about,
            status="wrong" if "wrong" in kinds else "passed",
            texts=len(found),
            tokens=sum(len(right.token_ids) for right in wanted.choices),
            compared=compared,
            identical=len(found) - len(shown),
            ties=kinds.count("tie"),
            wrong=kinds.count("wrong"),
            drafted=sum(choice.stats.draft_tokens for choice in found),
            accepted=sum(choice.stats.accepted_tokens for choice in found),
            params=given(wanted.params[0]),
            differences=tuple(sorted(shown, key=lambda each: each.difference.kind != "wrong")),
        )

    def first_wrong(self, found: Sequence[Choice], wanted: Reference) -> tuple[int, Difference] | None:
        """The first text that differs by more than rounding, and where: what a control looks for."""
        for index, (ask, params, mine, right) in enumerate(
            zip(wanted.asks, wanted.params, found, wanted.choices, strict=True)
        ):
            difference = self.difference(ask, mine, right, params)
            if difference is not None and difference.kind == "wrong":
                return index, difference
        return None

    def difference(self, ask: Ask, mine: Choice, right: Choice, params: SamplingParams) -> Difference | None:
        """Tokens first; where they are equal, the text and why it ended must be equal as well."""
        position = first_difference(mine.token_ids, right.token_ids)
        if position is not None:
            return self.judge.classify(ask.tokens, mine.token_ids, right.token_ids, params, self.guarantee)
        for name in ("text", "finish_reason", "stop_reason"):
            if getattr(mine, name) != getattr(right, name):
                reason = f"the tokens are equal, but {name} is {getattr(mine, name)!r} and not {getattr(right, name)!r}"
                return Difference(len(right.token_ids), None, None, None, None, "wrong", reason=reason)
        return None

    def show(self, ask: Ask, difference: Difference, text: Sequence[int]) -> Shown:
        """``difference`` with the text around it."""
        whole = [*ask.tokens, *text[: difference.position]]
        return Shown(
            prompt=ask.name,
            difference=difference,
            before=self.text(whole[-_BEFORE:]),
            found_text=self.text([difference.found]),
            wanted_text=self.text([difference.wanted]),
            why=difference.words(),
        )

    def text(self, tokens: Sequence[int | None]) -> str:
        """Decoded, special tokens included; the ids themselves where there is no tokenizer."""
        ids = [token for token in tokens if token is not None]
        if self.decoder.tokenizer is None:
            return " ".join(map(str, ids))
        return str(self.decoder.tokenizer.decode(ids))


def given(params: SamplingParams) -> dict[str, Any]:
    """The fields that are not at their defaults, as plain values; processors by name."""
    default = SamplingParams()
    found = {f.name: getattr(params, f.name) for f in fields(params)}
    changed = {name: value for name, value in found.items() if value != getattr(default, name) or name == "temperature"}
    if "logits_processors" in changed:
        changed["logits_processors"] = [
            getattr(each, "__name__", type(each).__name__) for each in params.logits_processors
        ]
    if "logit_bias" in changed:  # infinite where it forbids
        changed["logit_bias"] = {
            token: value if math.isfinite(value) else repr(value) for token, value in changed["logit_bias"].items()
        }
    return changed


def everything_on(
    base: SamplingParams, texts: Sequence[Sequence[int]], stop_tokens: frozenset[int], tokenizer: Any
) -> SamplingParams:
    """``base`` with every sampling parameter switched on that it leaves off, chosen so that each has something to do:
    the commonest tokens of ``texts`` are forbidden and biased, a stop string and a stop token are taken from the middle
    of one of them."""
    said = [token for text in texts for token in text if token not in stop_tokens]
    common = sorted(set(said), key=lambda token: (-said.count(token), token))
    common += [token for token in (0, 1, 2, 3) if token not in common and token not in stop_tokens]
    late = [text[2 * len(text) // 3] for text in texts if text]
    rare = sorted((token for token in late if token not in stop_tokens), key=said.count) or common[-1:]
    strings = [] if tokenizer is None else [str(tokenizer.decode([token])).strip() for token in rare[1:]]
    on: dict[str, Any] = {
        "top_p": 0.95,
        "top_k": 50,
        "min_p": 0.01,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.1,
        "logit_bias": {common[1]: -1.5, common[2]: 1.0},
        "bad_words": [[common[0]], [common[3], common[1]]],
        "min_tokens": max(1, base.max_tokens // 4),
        "stop": [text for text in strings if text and "\N{REPLACEMENT CHARACTER}" not in text][:1],
        "stop_token_ids": rare[:1],
    }
    default = SamplingParams()
    return replace(base, **{name: value for name, value in on.items() if getattr(base, name) == getattr(default, name)})
