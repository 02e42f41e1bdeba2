"""Tokens as text a person can read: one token at a time, with blanks and control characters made visible."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any

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
        if _BROKEN in text:  # bytes of a character: the vocabulary's own spelling says more than a question mark
            spelling = getattr(self.tokenizer, "convert_ids_to_tokens", None)
            return str(spelling(token)) if spelling else text
        return text

    def _text(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=False))


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
