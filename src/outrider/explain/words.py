"""Tokens as text a person can read: one token at a time, with blanks and control characters made visible."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from outrider.run.text import TextStream

_SIGNS = {chr(code): chr(0x2400 + code) for code in range(32)} | {" ": "·", "\n": "⏎", "\t": "⇥", "\x7f": "␡"}
_BROKEN = "�"


class Texts:
    """Text of single tokens, remembered. ``known`` stands in for a tokenizer where there is none; a token that
    neither knows reads ``#17``."""

    def __init__(self, tokenizer: Any = None, known: Mapping[int, str] | None = None) -> None:
        self.tokenizer = tokenizer
        self.known: dict[int, str] = dict(known or {})
        self._before: list[int] | None = None

    def __call__(self, token: int) -> str:
        if token not in self.known:
            self.known[token] = f"#{token}" if self.tokenizer is None else self._decode(token)
        return self.known[token]

    def _decode(self, token: int) -> str:
        """Some tokenizers drop the blank in front of a text's first token, so another one is put before it."""
        if self._before is None:
            try:
                self._before = list(self.tokenizer.encode("a", add_special_tokens=False))[-1:]
            except Exception:  # a tokenizer of the user's own that only decodes
                self._before = []
        whole = self._text([*self._before, token])
        text = whole.removeprefix(self._text(self._before)) if self._before else whole
        if _BROKEN in text:  # some bytes of a character
            spelling = getattr(self.tokenizer, "convert_ids_to_tokens", None)
            return text if spelling is None else _bytes(str(spelling(token)))
        return text

    def _text(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=False))


class Pieces:
    """What each token adds to the text of an answer: the bytes of an unfinished character add nothing, the last of
    them all of it. ``known`` stands in for a tokenizer."""

    def __init__(self, tokenizer: Any = None, known: Sequence[str] | None = None) -> None:
        self._stream = TextStream(tokenizer)
        self._known = None if known is None else list(known)

    def take(self, tokens: Sequence[int]) -> list[str]:
        """The pieces of the next ``tokens``."""
        if self._known is not None:
            some, self._known = self._known[: len(tokens)], self._known[len(tokens) :]
            return some
        pieces = []
        for token in tokens:
            before = len(self._stream.text)
            self._stream.push(token)
            self._stream.advance()
            pieces.append(self._stream.text[before:])
        return pieces


@lru_cache(maxsize=1)
def _byte_table() -> dict[str, int]:
    """Byte-level vocabularies spell printable bytes as themselves and the others as what comes from 256 on."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _bytes(spelling: str) -> str:
    """``<E280>`` for a token that holds a part of a character; the spelling itself in other vocabularies."""
    table = _byte_table()
    if not all(char in table for char in spelling):
        return spelling
    return f"<{bytes(table[char] for char in spelling).hex().upper()}>"


def visible(text: str, ascii_only: bool = False) -> str:
    """``text`` on one line: blanks as dots, line ends as arrows, control characters as pictures; an empty text as
    ``""``. For a terminal without Unicode, escapes instead."""
    if not text:
        return '""'
    if ascii_only:
        return ascii(text)[1:-1].replace(" ", "_")
    return "".join(_SIGNS.get(char) or _sign(char) for char in text)


def _sign(char: str) -> str:
    """Characters that would move the cursor, turn the line around or not be seen, as their number."""
    return f"<{ord(char):X}>" if unicodedata.category(char) in ("Cc", "Cf", "Zl", "Zp", "Zs") else char


def chance(value: float | None) -> str:
    """A probability in few characters; a question mark where it is not known."""
    if value is None:
        return "?"
    if 0 < value < 0.005:
        return f"{value:.0e}".replace("e-0", "e-")
    if 0.995 < value < 1:
        return ">.99"
    return f"{value:.2f}"


def count(number: int, what: str) -> str:
    """``1 token``, ``2 tokens``."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
