"""What became of each node of one draft, and why: pure functions over plain numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from outrider.explain.record import Fate, Node
from outrider.explain.words import chance, visible

Maybe = list[float | None]


def unknown(size: int) -> Maybe:
    """``size`` numbers that are not known."""
    return [None] * size


@dataclass
class Sight:
    """One row's draft on the host. Node 0 is the root; lists have one entry per node.

    ``path`` are the nodes the rule accepted, the root left out, ``bonus`` the token behind them (-1: none could
    follow), ``kept`` how many tokens were emitted. ``matched``: the rule keeps what the target chooses by itself, so
    that a node stands or falls with the choice at its parent; else a coin decides (``chance``, ``coin``).
    """

    tokens: list[int]
    parents: list[int]
    depth: list[int]
    origins: list[str]
    roles: list[str]
    drawn: list[str]
    path: list[int]
    bonus: int
    kept: int
    greedy: bool
    matched: bool
    chosen: list[int | None]
    """The target's choice behind each node, where it can be told."""
    q: Maybe = field(default_factory=list)
    p: Maybe = field(default_factory=list)
    model_p: Maybe = field(default_factory=list)
    chosen_p: Maybe = field(default_factory=list)
    chosen_model_p: Maybe = field(default_factory=list)
    chance: Maybe = field(default_factory=list)
    coin: Maybe = field(default_factory=list)

    @cached_property
    def end(self) -> int:
        """The last node of the accepted path."""
        return self.path[-1] if self.path else 0

    @cached_property
    def stands(self) -> set[int]:
        """Nodes whose children were looked at: the root and the path, as far as the text went."""
        return {0, *self.path[: self.kept]}

    @cached_property
    def last(self) -> int:
        """The node that ended the text; -1 where it goes on, or ended with the token behind the path."""
        return self.path[self.kept - 1] if 0 < self.kept <= len(self.path) else -1

    @cached_property
    def kids(self) -> list[list[int]]:
        """Per node its children, in order."""
        table: list[list[int]] = [[] for _ in self.tokens]
        for node, parent in enumerate(self.parents):
            if node:
                table[parent].append(node)
        return table


def judge(sight: Sight, texts: Callable[[int], str]) -> list[Node]:
    """The record of every node."""
    fates: list[Fate] = []
    nodes: list[Node] = []
    for n, token in enumerate(sight.tokens):
        parent = sight.parents[n]
        fates.append(_fate(sight, n, fates))
        told = n > 0 and fates[n] is not Fate.CUT  # below the end of the text nothing was asked
        wanted = sight.chosen[parent] if told else None
        tested = fates[n] in (Fate.ACCEPTED, Fate.REJECTED, Fate.LATE) and not sight.matched
        node = Node(
            token=token,
            text=texts(token),
            parent=parent,
            depth=sight.depth[n],
            origin=sight.origins[n],
            fate=fates[n],
            reason=_reason(sight, n, fates, texts),
            role=sight.roles[n],
            drawn=sight.drawn[n],
            q=sight.q[n],
            p=sight.p[n] if told else None,
            model_p=sight.model_p[n] if told else None,
            wanted=wanted,
            wanted_text="" if wanted is None else texts(wanted),
            chance=sight.chance[n] if tested else None,
            coin=_coin(sight, n, fates[n]) if tested else None,
        )
        nodes.append(node)
    return nodes


def _fate(sight: Sight, n: int, fates: list[Fate]) -> Fate:
    """``fates`` are those of the nodes before ``n``, its parent's among them."""
    parent = sight.parents[n]
    if n == 0:
        return Fate.ROOT
    if sight.roles[n] == "probe":
        return Fate.PROBE
    if parent == sight.last or fates[parent] is Fate.CUT:
        return Fate.CUT
    if n in sight.stands:
        return Fate.ACCEPTED
    if parent not in sight.stands:
        return Fate.BELOW
    rival = _rival(sight, parent)
    if rival is not None and sight.tokens[n] == sight.tokens[rival]:
        return Fate.DUPLICATE
    if sight.roles[n] == "late" and parent == sight.end and sight.tokens[n] == sight.bonus:
        return Fate.LATE
    if not sight.matched and sight.chance[n] is None:
        return Fate.UNREACHED
    return Fate.REJECTED


def _rival(sight: Sight, parent: int) -> int | None:
    """The child of ``parent`` that was accepted."""
    return next((kid for kid in sight.kids[parent] if kid in sight.stands), None)


def _coin(sight: Sight, n: int, fate: Fate) -> float | None:
    """The coin, if it is the one that decided: a rule that flips others is not spoken for."""
    coin, odds = sight.coin[n], sight.chance[n]
    if coin is None or odds is None:
        return None
    return coin if (coin < odds) is (fate is not Fate.REJECTED) else None


def _reason(sight: Sight, n: int, fates: list[Fate], texts: Callable[[int], str]) -> str:
    fate, parent = fates[n], sight.parents[n]
    if fate is Fate.REJECTED:
        return _rejected(sight, n, texts)
    if fate is Fate.BELOW:
        return f"its parent {_quoted(sight.tokens[parent], texts)} does not stand"
    if fate is Fate.DUPLICATE:
        return f"the same token stands as node {_rival(sight, parent)}"
    return {
        Fate.UNREACHED: "a sibling was accepted before its turn came",
        Fate.CUT: "the text ended above it",
        Fate.LATE: "drafted late: it is the token that the target added",
        Fate.PROBE: "a probe: never a candidate",
    }.get(fate, "")


def _rejected(sight: Sight, n: int, texts: Callable[[int], str]) -> str:
    parent = sight.parents[n]
    if not sight.matched:
        odds, coin, q = sight.chance[n], _coin(sight, n, Fate.REJECTED), sight.q[n]
        against = f"p {chance(sight.p[n])}" + ("" if q is None else f" against q {chance(q)}")
        flipped = "" if coin is None else f"; the coin fell at {chance(coin)}"
        return f"kept with probability {chance(odds)} ({against}){flipped}"
    wanted = sight.chosen[parent]
    if wanted is None:
        return "nothing could follow here"
    word = _quoted(wanted, texts)
    if sight.greedy:
        mine, theirs = sight.model_p[n], sight.chosen_model_p[parent]
        return f"the target's first choice is {word} ({chance(theirs)}); this one has {chance(mine)}"
    return f"the target drew {word} ({chance(sight.chosen_p[parent])}); this one has {chance(sight.p[n])}"


def _quoted(token: int, texts: Callable[[int], str]) -> str:
    return f"“{visible(texts(token))}”"
