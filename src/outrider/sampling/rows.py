"""What sampling remembers of one request."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from outrider.errors import RequestError
from outrider.params import SamplingParams
from outrider.processors import RowProcessor, as_row_processor


class _Counts:
    """Distinct tokens in the order of their first appearance, and how often each is in the output."""

    def __init__(self, prompt: Iterable[int]) -> None:
        distinct = list(dict.fromkeys(prompt))
        self.size = len(distinct)
        self.place = {token: i for i, token in enumerate(distinct)}
        self.ids = np.zeros(max(64, 2 * self.size), dtype=np.int64)
        self.ids[: self.size] = distinct
        self.times = np.zeros(len(self.ids), dtype=np.float64)

    def add(self, token: int) -> None:
        place = self.place.get(token)
        if place is None:
            place = self.place[token] = self.size
            if self.size == len(self.ids):
                self.ids = np.concatenate([self.ids, np.zeros_like(self.ids)])
                self.times = np.concatenate([self.times, np.zeros_like(self.times)])
            self.ids[place] = token
            self.size += 1
        self.times[place] += 1

    def copy(self) -> _Counts:
        twin = _Counts(())
        twin.size, twin.place = self.size, dict(self.place)
        twin.ids, twin.times = self.ids.copy(), self.times.copy()
        return twin


class RowSampling:
    """What sampling must remember of one request. The root of a draft tree is always part of it.

    ``prompt``: all prompt ids. ``stop_ids``: ids that end the text and that ``min_tokens`` must hold back
    (those of ``params.stop_token_ids`` are added). ``bad_words``: token sequences; needed when
    ``params.bad_words`` holds strings, which only a tokenizer can turn into ids. ``processors``: ready ones,
    started here like those in ``params``. Raises ``RequestError`` for token ids outside the vocabulary."""

    def __init__(
        self,
        params: SamplingParams,
        vocab_size: int,
        prompt: Sequence[int] = (),
        stop_ids: Iterable[int] = (),
        bad_words: Sequence[Sequence[int]] | None = None,
        processors: Sequence[RowProcessor] = (),
    ) -> None:
        self.params = params
        self.vocab_size = vocab_size
        self.emitted = 0
        """Tokens of output so far."""
        self.stop_ids = tuple(sorted({*stop_ids, *params.stop_token_ids}))
        self.bias = dict(params.logit_bias or {})
        words: list[Sequence[int]] = []
        for word in params.bad_words if bad_words is None else bad_words:
            if isinstance(word, str):
                raise RequestError(
                    f"bad_words contains the string {word!r}",
                    why="there is no tokenizer here",
                    hint="Give lists of token ids.",
                )
            words.append(word)
        self.bad_words = _by_length([tuple(int(t) for t in word) for word in words])
        self.longest_prefix = max(self.bad_words, default=0)
        for name, ids in (
            ("logit_bias", self.bias),
            ("stop_token_ids", params.stop_token_ids),
            ("bad_words", [token for word in words for token in word]),
        ):
            self._check(name, ids)
        self.tail = list(prompt[-self.longest_prefix :]) if self.longest_prefix else []
        # The repetition penalty looks at the prompt as well; the other two at the output only.
        penalised = params.repetition_penalty != 1 or params.presence_penalty or params.frequency_penalty
        seen = prompt if params.repetition_penalty != 1 else ()
        self.counts = _Counts(seen) if penalised else None
        self.processors = [*processors, *map(as_row_processor, params.logits_processors)]
        for processor in self.processors:
            processor.start(prompt)
        self._plain = not (self.counts or self.bias or self.bad_words or self.processors)

    @property
    def touches_logits(self) -> bool:
        """Whether anything happens to this row's logits before the temperature."""
        return not self._plain or self.holds_back

    @property
    def holds_back(self) -> bool:
        """Whether ``min_tokens`` still forbids the end."""
        return self.emitted < self.params.min_tokens and bool(self.stop_ids)

    def advance(self, tokens: Sequence[int]) -> None:
        """``tokens`` were emitted, in this order."""
        self.emitted += len(tokens)
        if self._plain:
            return
        if self.counts is not None:
            for token in tokens:
                self.counts.add(token)
        if self.longest_prefix:
            self.tail = [*self.tail, *tokens][-self.longest_prefix :]
        for processor in self.processors:
            for token in tokens:
                processor.advance(token)

    def fork(self) -> RowSampling:
        """An independent copy."""
        twin = object.__new__(RowSampling)
        twin.__dict__.update(self.__dict__)
        twin.tail = list(self.tail)
        twin.counts = None if self.counts is None else self.counts.copy()
        twin.processors = [processor.fork() for processor in self.processors]
        return twin

    def _check(self, name: str, ids: Iterable[int]) -> None:
        for token in ids:
            if not 0 <= token < self.vocab_size:
                raise RequestError(
                    f"{name} contains token id {token}",
                    hint=f"Token ids of this model run from 0 to {self.vocab_size - 1}.",
                )


def _by_length(words: Iterable[tuple[int, ...]]) -> dict[int, list[tuple[int, ...]]]:
    groups: dict[int, list[tuple[int, ...]]] = {}
    for word in words:
        groups.setdefault(len(word) - 1, []).append(word)
    return groups


def processor_failed(error: Exception) -> RequestError:
    """The error for a request whose logits processor raised while it was told of its tokens."""
    return RequestError(
        f"a logits processor failed: {type(error).__name__}: {error}",
        hint="Mend the processor; the other requests went on.",
    )


def dead_end(row: RowSampling) -> RequestError:
    """The error for a request that has reached a node without a law."""
    return RequestError(
        f"No token can follow after {row.emitted} new tokens",
        why="the model's logits contain NaN, or bad_words, logit_bias, min_tokens and logits processors "
        "together forbid every token",
        hint="Relax those parameters; if none is set, check the model's weights and dtype.",
    )
