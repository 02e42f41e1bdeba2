"""What a request may ask of sampling. Names are vLLM's; a value that cannot be honoured is an error, never
ignored.

Two defaults differ from vLLM's on purpose. ``temperature`` is 0: the same prompt gives the same text every
time, which is what a newcomer expects, what transformers' ``generate`` does, and what shows at a glance that
drafting changed nothing. ``max_tokens`` is 256: vLLM's 16 cuts the first answer everyone tries in the middle
of a sentence."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

from outrider.errors import RequestError, nearest

GREEDY_BELOW = 1e-5
"""Temperatures under this mean 0, as in vLLM: dividing logits by less only overflows."""

ALIASES: dict[str, str] = {
    # transformers' GenerationConfig and generate()
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "num_return_sequences": "n",
    "eos_token_id": "stop_token_ids",
    "stop_strings": "stop",
    "bad_words_ids": "bad_words",
    "logits_processor": "logits_processors",
    # the OpenAI API
    "max_completion_tokens": "max_tokens",
}
"""Other names under which ``from_dict`` accepts a field. ``do_sample`` is understood as well: False means
temperature 0 whatever the temperature says (as in transformers); True means temperature 1 where none is
given."""


@dataclass(frozen=True)
class SamplingParams:
    """How one request is sampled. Every field is checked when it is built; ``RequestError`` names what is
    wrong.

    Probabilities are shaped in this order (transformers' order): logit bias, repetition penalty, presence and
    frequency penalty, bad words, min tokens, logits processors, temperature, top-k, top-p, min-p, typical-p.
    """

    n: int = 1
    """Continuations per prompt (at temperature 0 they are all the same)."""
    max_tokens: int = 256
    """At most this many new tokens."""
    min_tokens: int = 0
    """End-of-text and stop tokens cannot be chosen before this many new tokens."""
    temperature: float = 0.0
    """0 (or below 1e-5) picks the most likely token, the lowest id among equals; the truncations below then
    have nothing to do."""
    top_k: int = 0
    """Keep the k most likely tokens and all that tie with the last of them. 0 and -1: off."""
    top_p: float = 1.0
    """Keep the smallest set of most likely tokens whose probability reaches this. 1: off."""
    min_p: float = 0.0
    """Keep tokens at least this fraction as likely as the most likely one. 0: off."""
    typical_p: float = 1.0
    """Locally typical sampling (Meister et al., 2202.00666). 1: off."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens in prompt or output (2019, CTRL). 1: off."""
    presence_penalty: float = 0.0
    """Subtracted once from the logit of every token that is in the output."""
    frequency_penalty: float = 0.0
    """Subtracted once per occurrence in the output."""
    logit_bias: Mapping[int, float] | None = None
    """Added to the logits of these token ids; ``-inf`` forbids one."""
    bad_words: Sequence[str | Sequence[int]] = ()
    """Words (strings) or token sequences that must not appear; a match may begin in the prompt."""
    stop: Sequence[str] = ()
    """Strings that end the text. One string or several."""
    stop_token_ids: Sequence[int] = ()
    """Token ids that end the text, beside the model's own."""
    ignore_eos: bool = False
    """Go on past the model's end-of-text token."""
    seed: int | None = None
    """Any 64-bit integer. None: a fresh one is drawn for the request."""
    logprobs: int | None = None
    """Report the log-probability of each emitted token and of this many most likely ones (0: the emitted
    alone), from the model's own logits before any of the above. None: off."""
    logits_processors: Sequence[Any] = ()
    """``outrider.processors.RowProcessor`` objects, classes or factories, transformers ``LogitsProcessor``
    objects, or callables ``(token_ids, logits f[V]) -> f[V]`` that see prompt and output."""

    def __post_init__(self) -> None:
        self._whole("n", 1)
        self._whole("max_tokens", 1)
        self._whole("min_tokens", 0)
        if self.min_tokens > self.max_tokens:
            self._fail("min_tokens", f"at most max_tokens, which is {self.max_tokens}")
        self._number("temperature", lambda x: 0 <= x < math.inf, "a finite number, 0 or above")
        if self.temperature < GREEDY_BELOW:
            self._set("temperature", 0.0)
        self._whole("top_k", -1)
        self._set("top_k", max(self.top_k, 0))
        self._number("top_p", lambda x: 0 < x <= 1, "above 0 and at most 1 (1 is off)")
        self._number("min_p", lambda x: 0 <= x <= 1, "between 0 (off) and 1")
        self._number("typical_p", lambda x: 0 < x <= 1, "above 0 and at most 1 (1 is off)")
        self._number("repetition_penalty", lambda x: 0 < x < math.inf, "a finite number above 0 (1 is off)")
        for name in ("presence_penalty", "frequency_penalty"):
            self._number(name, lambda x: -2 <= x <= 2, "between -2 and 2 (0 is off)")
        if self.seed is not None:
            self._whole("seed", -(2**63), 2**63 - 1)
        if self.logprobs is not None:
            self._whole("logprobs", 0)
        ignore_eos: Any = self.ignore_eos
        if not isinstance(ignore_eos, bool):
            self._fail("ignore_eos", "True or False")
        self._check_lists()

    def _check_lists(self) -> None:
        self._set("logit_bias", self._bias())
        ids = [self.stop_token_ids] if isinstance(self.stop_token_ids, Integral) else self.stop_token_ids
        self._set("stop_token_ids", self._token_ids("stop_token_ids", ids))
        stop: Any = [self.stop] if isinstance(self.stop, str) else self.stop
        if not _is_list(stop) or not all(isinstance(s, str) and s for s in stop):
            self._fail("stop", "a string or a list of strings, none of them empty")
        self._set("stop", tuple(stop))
        words: Any = self.bad_words
        if not _is_list(words) or not all(_is_list(w) or isinstance(w, str) for w in words):
            self._fail("bad_words", "a list of strings or of lists of token ids")
        if not all(len(word) for word in self.bad_words):
            self._fail("bad_words", "words that are not empty")
        self._set(
            "bad_words",
            tuple(w if isinstance(w, str) else self._token_ids("bad_words", w) for w in self.bad_words),
        )
        processors: Any = self.logits_processors
        if not isinstance(processors, Sequence) or isinstance(processors, str):
            self._fail("logits_processors", "a list")
        self._set("logits_processors", tuple(processors))

    @property
    def greedy(self) -> bool:
        """Temperature 0: the most likely token is chosen, nothing is drawn."""
        return self.temperature == 0.0

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SamplingParams:
        """From outside data. Accepts the names in ``ALIASES``; a value of None means "not given".

        Raises ``RequestError`` for an unknown name (naming the nearest), for a name given twice with
        different values, and for every value the constructor refuses."""
        known = {f.name for f in fields(cls)}
        given: dict[str, Any] = {}
        for key, value in values.items():
            name = ALIASES.get(key, key)
            if name not in known and key != "do_sample":
                raise RequestError(
                    f"Unknown sampling parameter {key!r}",
                    hint=nearest(str(key), [*known, *ALIASES, "do_sample"]),
                )
            if value is None:
                continue
            if name in given and given[name] != value:
                raise RequestError(
                    f"{name} is given twice, as {given[name]!r} and {value!r}",
                    why=f"{key!r} is another name for it" if key != name else "one name is another's alias",
                    hint="Keep one of them.",
                )
            given[name] = value
        sample = given.pop("do_sample", None)
        if sample is not None and not isinstance(sample, bool):
            raise RequestError(f"do_sample is {sample!r}", hint="It must be True or False.")
        if sample is False:
            given["temperature"] = 0.0
        elif sample and given.setdefault("temperature", 1.0) == 0:
            raise RequestError(
                "do_sample is True and temperature is 0",
                why="they contradict each other",
                hint="Drop one of them.",
            )
        return cls(**given)

    # The checks below fill in plain Python values (an int for a numpy int, a tuple for a list), once, at
    # birth.

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _fail(self, name: str, allowed: str) -> None:
        raise RequestError(f"{name} is {getattr(self, name)!r}", hint=f"It must be {allowed}.")

    def _whole(self, name: str, low: int, high: int | None = None) -> None:
        value = getattr(self, name)
        too_high = high is not None and _is_whole(value) and value > high
        if not _is_whole(value) or value < low or too_high:
            span = f"{low} or above" if high is None else f"between {low} and {high}"
            self._fail(name, f"a whole number, {span}")
        self._set(name, int(value))

    def _number(self, name: str, fits: Callable[[float], bool], allowed: str) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, Real) or not fits(float(value)):
            self._fail(name, allowed)
        self._set(name, float(value))

    def _token_ids(self, name: str, ids: Any) -> tuple[int, ...]:
        if not _is_list(ids) or not all(_is_whole(i) and i >= 0 for i in ids):
            self._fail(name, "made of token ids, whole numbers from 0 up")
        return tuple(int(i) for i in ids)

    def _bias(self) -> dict[int, float]:
        allowed = "a mapping of token ids to numbers (not NaN, not +inf)"
        given: Any = {} if self.logit_bias is None else self.logit_bias
        if not isinstance(given, Mapping):
            self._fail("logit_bias", allowed)
        bias: dict[int, float] = {}
        for key, value in given.items():
            if isinstance(key, str) and key.isdecimal():  # JSON has no integer keys
                key = int(key)
            bad = isinstance(value, bool) or not isinstance(value, Real) or not float(value) < math.inf
            if bad or not _is_whole(key) or key < 0:
                self._fail("logit_bias", allowed)
            bias[int(key)] = float(value)
        return bias


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence | set | frozenset) and not isinstance(value, str | bytes)
