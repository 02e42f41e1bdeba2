"""From tokens to text: incremental decoding, end tokens, stop strings. The only place that decides to stop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from outrider.errors import RequestError
from outrider.sampling import top_logprobs

_BROKEN = "�"  # what a tokenizer prints for the first bytes of an unfinished character


class TextStream:
    """Decodes a growing list of tokens piece by piece.

    A piece is released once it no longer changes with the tokens that follow: the decoder is given a few tokens of
    context, since many tokenizers decide about spaces by what stands before.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.text = ""
        self._tokens: list[int] = []
        self._context = 0  # start of the window that is decoded
        self._read = 0  # tokens whose text is released

    def push(self, token: int) -> None:
        """Add a token; its text is worked out when ``advance`` or ``flush`` is called."""
        self._tokens.append(token)

    def advance(self) -> None:
        """Let ``text`` grow by what is final of the tokens so far: whole characters."""
        if self.tokenizer is None or self._read == len(self._tokens):
            return
        before = self._decode(self._tokens[self._context : self._read])
        whole = self._decode(self._tokens[self._context :])
        if len(whole) > len(before) and not whole.endswith(_BROKEN):
            self.text += whole[len(before) :]
            self._context, self._read = self._read, len(self._tokens)

    def flush(self) -> None:
        """Release what is left, an unfinished character included."""
        if self.tokenizer is None or self._read == len(self._tokens):
            return
        before = self._decode(self._tokens[self._context : self._read])
        self.text += self._decode(self._tokens[self._context :])[len(before) :]
        self._context = self._read = len(self._tokens)

    def _decode(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True)) if tokens else ""


class StopCheck:
    """Ends one choice: end tokens, stop strings, ``max_tokens``, the context limit.

    Called token by token, so that a stop inside an accepted draft ends the text exactly where plain decoding would.
    """

    def __init__(
        self,
        stop_ids: frozenset[int],
        stop: tuple[str, ...],
        min_tokens: int,
        max_tokens: int,
        stream: TextStream,
    ) -> None:
        self.stop_ids, self.stop = stop_ids, stop
        self.min_tokens, self.max_tokens = min_tokens, max_tokens
        self.stream = stream
        self.count = 0
        self.reason: str | None = None
        self.cause: int | str | None = None
        self._hold = max((len(text) for text in stop), default=1) - 1
        self._sent = 0
        self._scanned = 0

    def push(self, token: int) -> bool:
        """Add a token; True when the text ends with it."""
        self.count += 1
        if token in self.stop_ids and self.count > self.min_tokens:
            self.reason, self.cause = "stop", token
            return True
        self.stream.push(token)
        if self.stop:
            self.stream.advance()
            if self.count <= self.min_tokens:
                self._scanned = len(self.stream.text)  # what was said too early to count is not found later
            elif self._found():
                self.reason = "stop"
                return True
        if self.count >= self.max_tokens:
            self.reason = "length"
            return True
        return False

    def _found(self) -> bool:
        """Cut the text at the first stop string that the last token completed."""
        text, seen = self.stream.text, self._scanned
        hits = [(at, s) for s in self.stop if (at := text.find(s, max(0, seen - len(s) + 1))) >= 0]
        self._scanned = len(text)
        if not hits:
            return False
        at, self.cause = min(hits, key=lambda hit: hit[0])
        self.stream.text = text[:at]
        return True

    def release(self, wanted: bool = True) -> str:
        """Text that is final: what could still turn out to be the start of a stop string is held back. Unless it is
        ``wanted`` piece by piece, all of it comes at the end."""
        if not wanted and self.reason is None:
            return ""
        self.stream.advance()
        if self.reason is not None and not isinstance(self.cause, str):  # a stop string has cut the text already
            self.stream.flush()
        end = len(self.stream.text)
        if self.reason is None:
            end = max(self._sent, end - self._hold)
        piece = self.stream.text[self._sent : end]
        self._sent = max(self._sent, end)
        return piece


def bad_word_ids(words: Sequence[Any], tokenizer: Any) -> list[list[int]]:
    """``bad_words`` as token ids: text is forbidden as a word of its own and in the middle of a sentence."""
    ids: list[list[int]] = []
    for word in words:
        if not isinstance(word, str):
            ids.append(list(word))
            continue
        if tokenizer is None:
            raise RequestError(
                f"bad_words contains the text {word!r}, but there is no tokenizer",
                hint="Give lists of token ids, or LLM(..., tokenizer=...).",
            )
        for text in (word, " " + word.lstrip()):
            encoded = list(tokenizer.encode(text, add_special_tokens=False))
            if encoded and encoded not in ids:
                ids.append(encoded)
    return ids


def logprobs_of(logits: Tensor, tokens: list[int], k: int) -> list[dict[int, float]]:
    """Per emitted token, the log-probabilities of itself and of the ``k`` most likely tokens; from the model's
    own logits f[N,V], before any sampling parameter, as in vLLM."""
    top = top_logprobs(logits, torch.tensor(tokens, device=logits.device), k)
    return [
        dict(zip(ids, values, strict=True)) | {token: own}
        for ids, values, token, own in zip(
            top.tokens.tolist(), top.values.tolist(), tokens, top.chosen.tolist(), strict=True
        )
    ]
