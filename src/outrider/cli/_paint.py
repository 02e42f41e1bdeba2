"""The answer on the screen: every character in the colour of the token it came from."""

from __future__ import annotations

import re
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from outrider.run.request import Emission

Run = tuple[str, str]
"""Text and the name of who proposed it."""

TARGET = "target"
COLOURS = ("green", "cyan", "magenta", "yellow", "blue", "bright_red", "bright_green", "bright_magenta")

# A newline, blanks, one wide character (East Asian text breaks anywhere), or the rest of a word.
_WIDE = r"\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6"
_PIECES = re.compile(rf"\n|[^\S\n]+|[{_WIDE}]|[^\s{_WIDE}]+")
# Control characters could move the cursor or rename the window: show their pictures instead.
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
_PICTURES |= {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
_AS_IS = ("```", "    ", "\t", "|", "~~~")


class Palette:
    """One colour per drafter, the target without one. Names of ``known`` come first, so that they keep theirs."""

    def __init__(self, known: str = "") -> None:
        self.styles: dict[str, str] = {TARGET: ""}
        for name in re.split(r"[|+]", known):
            if name:
                self.style(name)

    def style(self, name: str) -> str:
        """The rich style of a name, the same one every time."""
        if name not in self.styles:
            self.styles[name] = COLOURS[(len(self.styles) - 1) % len(COLOURS)]
        return self.styles[name]


class Runs:
    """Splits what a request emits into runs of characters of the same origin.

    Text is released later than the tokens it belongs to (unfinished characters, possible stop strings), and a stop
    string cuts it: the engine's pieces say *what* is shown, the tokens decoded once more only *whose* it is.
    """

    def __init__(self, tokenizer: Any) -> None:
        from outrider.run.text import TextStream

        self._decoded = TextStream(tokenizer)
        self._marks: deque[tuple[int, str]] = deque()  # text up to here, and whose it is
        self._shown = 0
        self._last = TARGET
        self.counts: Counter[str] = Counter()

    def take(self, emission: Emission) -> list[Run]:
        """The runs of one emission; joined they are its text."""
        for token, origin in zip(emission.token_ids, emission.origins, strict=True):
            self._decoded.push(token)
            self._decoded.advance()
            self._marks.append((len(self._decoded.text), origin.name))
            self.counts[origin.name] += 1
        runs: list[Run] = []
        text = emission.text
        while text:
            while self._marks and self._marks[0][0] <= self._shown:
                self._last = self._marks.popleft()[1]
            end, name = self._marks[0] if self._marks else (self._shown + len(text), self._last)
            piece, text = text[: end - self._shown], text[end - self._shown :]
            self._shown += len(piece)
            if runs and runs[-1][1] == name:
                runs[-1] = (runs[-1][0] + piece, name)
            else:
                runs.append((piece, name))
        return runs


class Writer:
    """Prints runs as they come. On a terminal lines break between words (code is left alone); elsewhere the text
    goes out as it is."""

    def __init__(self, console: Console, palette: Palette) -> None:
        self.console, self.palette = console, palette
        self.plain = not console.is_terminal
        self._word: list[Run] = []
        self._blank: Run = ("", TARGET)
        self._column = 0
        self._line = ""
        self._fenced = False

    def write(self, runs: list[Run]) -> None:
        if self.plain:
            self._raw("".join(text for text, _ in runs))
            return
        for text, name in runs:
            for piece in _PIECES.findall(text.translate(_PICTURES)):
                self._piece(piece, name)
        self.console.file.flush()

    def end(self) -> None:
        """Finish the last word and the last line."""
        if self.plain:
            self._raw("\n")
            return
        self._flush()
        if self._column:
            self.console.print()

    def _raw(self, text: str) -> None:
        encoding = self.console.encoding
        self.console.file.write(text.encode(encoding, "replace").decode(encoding))
        self.console.file.flush()

    def _piece(self, piece: str, name: str) -> None:
        if piece == "\n":
            self._flush()
            self._put("\n", TARGET)
            if self._line.lstrip().startswith(("```", "~~~")):
                self._fenced = not self._fenced
            self._column, self._line = 0, ""
            return
        as_is = self._fenced or (self._line + piece).startswith(_AS_IS)
        self._line = (self._line + piece)[:80]
        if as_is:
            self._flush()
            self._put(piece, name)
            self._column += _cells(piece)
        elif piece.isspace():
            self._flush()
            self._blank = (piece, name)
        else:
            if len(piece) == 1 and _cells(piece) == 2:
                self._flush()
            self._word.append((piece, name))

    def _flush(self) -> None:
        """Print the word that is held, on the next line if it does not fit on this one."""
        word = sum(_cells(text) for text, _ in self._word)
        blank = _cells(self._blank[0])
        if word and self._column and self._column + blank + word > self.console.width:
            self._put("\n", TARGET)
            self._column = 0
        elif self._blank[0]:
            self._put(*self._blank)
            self._column += blank
        for text, name in self._word:
            self._put(text, name)
        self._column += word
        self._word, self._blank = [], ("", TARGET)

    def _put(self, text: str, name: str) -> None:
        self.console.print(text, style=self.palette.style(name) or None, end="", soft_wrap=True)


def _cells(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text.expandtabs(8))
