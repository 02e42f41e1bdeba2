"""What a policy keeps of each drafter and of the step that runs, and how it reads budgets and trees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from outrider.policy.acceptance import Book, Kind
from outrider.policy.explore import Tries
from outrider.policy.learnt import LearntDraft, Window
from outrider.types import Budget, DraftTree

if TYPE_CHECKING:
    from outrider.run.row import Row

_SPEAKS, _YIELDS = 0.05, 0.2
"""Weight of the latest step in how often a drafter has something to say, and in what comes of it."""
_HORIZON = 64
"""Steps over which reading a text is written off, where the request goes on for longer."""


@dataclass
class Source:
    """One drafter of a combination, or all of them together where they cannot be told apart."""

    index: int
    names: frozenset[str]
    draft: LearntDraft
    on: bool = True
    """Whether it paid the last time it was thought about."""
    free: bool = False
    """Whether asking costs nothing to speak of, so that proposals are judged when they are there."""
    branching: bool = False
    """Whether it is asked for trees, of whatever shape they turn out."""
    together: Window = field(default_factory=lambda: Window(9))
    """Seconds of drafting in steps in which others were asked after it: it takes no more."""
    followed: bool = False
    """Whether its proposals can be looked at before they are verified, and held against the text when they are not."""
    spoke: float = 1.0
    """How often it has something to say when asked."""
    yields: float = 1.0
    """Tokens that a row emits, lately, in steps with a draft of its."""
    origin: str = ""
    """Of its latest proposal."""
    tries: Tries = field(default_factory=Tries)
    dropped: int = 0
    """Proposals in a row that were not verified and of which nothing was right."""
    reach: int = 0
    """The furthest node of a draft of its that was accepted."""
    asked: int = 0
    """The step in which it was asked last."""
    length: int = 0
    """Nodes it was last found worth asking for."""
    judged: int = -1
    """The step of that verdict; -1 when something has changed since."""
    read: dict[int, int] = field(default_factory=dict)
    """Tokens of each request's text it had seen when it was last asked."""

    def takes_at_most(self, levels: int, seconds: float) -> bool:
        """Whether a proposal of that depth is known to take no more than ``seconds``."""
        if self.draft.measured:
            return self.draft.seconds(levels) <= seconds
        return self.together.count > 0 and self.together.median <= seconds

    def behind(self, row: Row) -> int:
        """Tokens of the row's text it has not read."""
        return len(row.tokens) - self.read.get(row.id, 0)

    def reading(self, row: Row) -> float:
        """Seconds until it has read them."""
        return self.draft.seconds(0, self.behind(row)) - self.draft.seconds(0)

    def reading_per_step(self, row: Row) -> float:
        """The same, spread over the steps that are left of the request."""
        return self.reading(row) / min(max(row.params.max_tokens - row.output_length, 1), _HORIZON)

    def gains(self, book: Book, row: int | None, lengths: Sequence[int]) -> list[float]:
        """Accepted nodes expected when it is asked for each of ``lengths``, a ladder; ``row`` None: of any request."""
        if not self.branching:
            return book.gains(Kind(self.index, self.origin), row, lengths[-1])
        curves = {}  # another number of nodes is another tree
        for size in {length.bit_length() for length in lengths[1:]}:
            kind = Kind(self.index, self.origin, size, True)
            curves[size] = book.gains(kind, row, min(lengths[-1], (1 << size) - 1))
        return [curves[length.bit_length()][i] if length else 0.0 for i, length in enumerate(lengths)]

    def heard(self, emitted: Sequence[int], rows: int) -> None:
        """It was asked for ``rows`` rows and had something to say for those that emitted so many tokens."""
        self.spoke += _SPEAKS * (len(emitted) / rows - self.spoke)
        if emitted:
            self.yields += _YIELDS * (sum(emitted) / len(emitted) - self.yields)


@dataclass(frozen=True)
class Asked:
    """A source that was asked in a step, ``behind`` tokens behind the text."""

    source: Source
    behind: int


@dataclass
class Step:
    """The step that runs. ``kind`` "plain" is a step without drafts for measurement, "try" one with drafts that did
    not seem to pay."""

    rows: int = 0
    context: float = 0.0
    plain: float = 0.0
    """Seconds a plain step would take."""
    kind: str = ""
    asked: Sequence[Asked] = ()
    merged: bool = False
    """Whether all drafters are asked about every row, and not each only where those before it are silent."""
    served: Sequence[int] = ()
    """Number of the source of each row's proposal, -1 for none; empty where proposals were not looked at."""
    depth: int = 0
    """Levels of the deepest proposal that was looked at."""
    kept: int = 0
    """Nodes of the longest draft that was verified."""
    nodes: int = 1
    emitted: float = 0.0
    """Tokens per row."""
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def drafting(self) -> float:
        return self.seconds.get("draft", 0.0)

    def listen(self, emitted: Sequence[Sequence[int]]) -> None:
        """Learn how long the drafters took and how often they speak, given what each row emitted. The time is that of
        the last drafter asked, less what those before it usually take."""
        everybody = self.merged or min(self.served) < 0
        asked = [one for one in self.asked if everybody or one.source.index <= max(self.served)]
        if not asked:
            return
        seconds = self.drafting
        for one in asked[:-1]:
            one.source.together.add(self.drafting)
            seconds -= one.source.draft.seconds(0)
        final = asked[-1].source
        depth = self.depth if self.merged or final.index in self.served else 0
        final.draft.observe(depth, asked[-1].behind, max(seconds, 0.0))
        for one in asked:
            mine = one.source.index
            heard = [len(tokens) for who, tokens in zip(self.served, emitted, strict=True) if who == mine]
            one.source.heard(heard, max(sum(who < 0 or who >= mine for who in self.served), 1))


def most_nodes(share: Budget) -> int:
    """Nodes of the largest draft within a budget."""
    return max(min(share.depth, share.nodes) if share.width == 1 else share.nodes, 0) if share.depth > 0 else 0


def levels(share: Budget, nodes: int) -> int:
    """Levels of a draft of ``nodes`` nodes."""
    return min(share.depth, nodes)


def cut(share: Budget, nodes: int) -> Budget:
    """The budget for ``nodes`` nodes."""
    return replace(share, depth=levels(share, nodes), nodes=min(share.nodes, nodes))


def sizes(tree: DraftTree) -> list[int]:
    """Drafted nodes per row."""
    if tree.shape[1] == 1:
        return [0] * tree.shape[0]
    if tree.host is not None:
        return [len(tokens) - 1 for tokens, _ in tree.host]
    return (tree.real.sum(1) - 1).tolist()


def first_origins(tree: DraftTree) -> list[str]:
    """Who proposed the first drafted node of each row (of a tree of at least two nodes)."""
    if tree.origin is None:
        return [tree.origins[1]] * tree.shape[0]
    return [tree.origins[index] for index in tree.origin[:, 1].tolist()]


def best_length(tokens: Sequence[float], seconds: Sequence[float]) -> int:
    """Index of the largest ``tokens[i] / seconds[i]``; the first among equals."""
    best, most = 0, 0.0
    for i, (count, time) in enumerate(zip(tokens, seconds, strict=True)):
        if count > most * time:
            best, most = i, count / time
    return best
