"""The view in a browser: what the template ``explain.html`` is given, as plain values."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from outrider.cli._paint import Palette
from outrider.explain.record import Bonus, Emitted, Explanation, Fate, Node, Step
from outrider.explain.screen import WORDS
from outrider.explain.summary import summarise
from outrider.explain.words import chance, count, visible
from outrider.pages import render

_BYTES = re.compile("<(0x)?([0-9A-F]{2})+>|.*\N{REPLACEMENT CHARACTER}.*", re.DOTALL)
_COLOURS = 8
_OPEN = 40
"""Up to so many steps are all open when the page is."""


@dataclass(frozen=True)
class Pill:
    """A node as the page draws it. ``colour`` is the number of its origin, 0 for the target."""

    text: str
    colour: int
    fate: str
    odds: str
    facts: tuple[tuple[str, str], ...]
    reason: str = ""


@dataclass
class Branch:
    """A run of accepted nodes without branches, what fell beside its end, and what goes on behind it."""

    run: list[Pill] = field(default_factory=list)
    fallen: list[Pill] = field(default_factory=list)
    """Siblings of what stands (or of what the target added instead)."""
    below: list[Branch] = field(default_factory=list)
    """Their subtrees, hidden at first: nobody looked at them."""
    hidden: int = 0
    kids: list[Branch] = field(default_factory=list)
    bonus: Pill | None = None


class Page:
    """Turns an explanation into what the template shows; ``html`` is the page."""

    def __init__(self, explanation: Explanation) -> None:
        self.explanation = explanation
        names = [name for name in Palette(explanation.drafters).styles if name != explanation.target]
        used = [node.origin for step in explanation.steps for node in step.nodes[1:]]
        proposing = [name for name in dict.fromkeys([*names, *used]) if name in {*used}]
        self.colours = {explanation.target: 0}
        self.colours |= {name: 1 + i % _COLOURS for i, name in enumerate(proposing)}

    def html(self) -> str:
        """The whole page."""
        found = self.explanation
        summary = summarise(found)
        tokens = list(found.tokens())
        wrote = {name: sum(token.origin == name for token in tokens) for name in self.colours}
        return render(
            "explain.html",
            title="What was drafted, what stood, and why",
            provenance=found.provenance,
            lead=self._lead(),
            prompt=_shown(found.prompt_text),
            prompt_tokens=count(len(found.prompt), "token"),
            tokens=[self._token(token) for token in tokens],
            legend=[(name, self.colours[name], wrote[name]) for name in self.colours],
            summary=summary,
            lost=[(WORDS[Fate(fate)], number) for fate, number in summary.fates.items() if Fate(fate) in WORDS],
            misses=[(visible(miss.drafted), visible(miss.wanted), miss.times) for miss in summary.misses],
            colours=self.colours,
            bars=self._bars(),
            groups=[
                {"silence": why, "steps": [self._step(step) for step in some]}
                for why, some in groupby(found.steps, lambda step: step.silence)
            ],
            opened=len(found.steps) <= _OPEN,
            ending=_ending(found),
        )

    def _lead(self) -> str:
        found = self.explanation
        parts = [found.model, found.preset]
        if found.drafters not in ("", found.preset):
            parts.append(found.drafters)
        heat = found.params.get("temperature", 0.0)
        parts.append(f"temperature {heat:g}" + ("" if found.greedy else f", seed {found.seed}"))
        parts.append(f"guarantee: {found.guarantee}")
        if found.replayed:
            parts.append("replayed over a trace, without the target")
        return " · ".join(parts)

    def _token(self, token: Emitted) -> dict[str, Any]:
        whose = token.origin if token.node else f"{token.origin} itself"
        where = f", level {token.depth} of its draft" if token.node else ""
        sign = "▫" if _BYTES.fullmatch(token.text) else visible(token.text)  # of a token that adds nothing by itself
        return {
            "text": _shown(token.piece) if token.piece else [(sign, True)],
            "colour": self.colours.get(token.origin, 0),
            "step": token.step,
            "title": f"{whose}{where}; step {token.step}; token {token.token}",
        }

    def _bars(self) -> list[dict[str, Any]]:
        """Per step the colours of its tokens from bottom to top, for the chart of steps."""
        bars = []
        for step in self.explanation.steps:
            path = [self.colours[step.nodes[node].origin] for node in step.path]
            bars.append({"step": step.index, "blocks": path + ([] if step.bonus is None else [0])})
        return bars

    def _step(self, step: Step) -> dict[str, Any]:
        emitted = [self._pill(step.nodes[node]) for node in step.path]
        if step.bonus is not None:
            emitted.append(self._bonus(step.bonus))
        drafted = [(name, self.colours[name], sum(n.origin == name for n in step.nodes[1:])) for name in step.origins]
        notes = []
        if step.plan is not None and (step.plan.proposed or 0) > step.drafted:
            notes.append(f"shortened from {step.plan.proposed} nodes by the policy")
        times = [f"{name} {1000 * step.seconds[name]:.1f} ms" for name in ("draft", "target") if name in step.seconds]
        return {
            "index": step.index,
            "position": step.position,
            "root": visible(step.nodes[0].text),
            "drafted": step.drafted,
            "origins": drafted,
            "only": drafted[0][1] if len(drafted) == 1 else "",
            "stand": len(step.path),
            "notes": notes + times,
            "emitted": emitted,
            "lost": any(node.fate is Fate.REJECTED for node in step.nodes),
            "tree": self._branch(step, 0, step.children()),
        }

    def _branch(self, step: Step, node: int, kids: list[list[int]]) -> Branch:
        """What hangs under ``node``: along what stands in full, beside it folded."""
        branch = Branch()
        stand = [kid for kid in kids[node] if step.nodes[kid].fate is Fate.ACCEPTED]
        others = [kid for kid in kids[node] if kid not in stand]
        branch.fallen = [self._pill(step.nodes[kid]) for kid in others]
        branch.below = [self._fallen(step, kid, kids) for kid in others if kids[kid]]
        branch.hidden = sum(_size(below) for below in branch.below) - len(branch.below)
        for kid in stand:
            run = [self._pill(step.nodes[kid])]
            while len(kids[kid]) == 1 and step.nodes[kids[kid][0]].fate is Fate.ACCEPTED:
                kid = kids[kid][0]
                run.append(self._pill(step.nodes[kid]))
            further = self._branch(step, kid, kids)
            further.run = run
            branch.kids.append(further)
        if step.bonus is not None and node == (step.path[-1] if step.path else 0):
            branch.bonus = self._bonus(step.bonus)
        return branch

    def _fallen(self, step: Step, node: int, kids: list[list[int]]) -> Branch:
        """A subtree that does not stand: runs without branches, leaves side by side."""
        branch = Branch(run=[self._pill(step.nodes[node])])
        while len(kids[node]) == 1:
            node = kids[node][0]
            branch.run.append(self._pill(step.nodes[node]))
        branch.fallen = [self._pill(step.nodes[kid]) for kid in kids[node] if not kids[kid]]
        branch.kids = [self._fallen(step, kid, kids) for kid in kids[node] if kids[kid]]
        return branch

    def _pill(self, node: Node) -> Pill:
        drawn = node.drawn.replace("_", " ")
        facts = [
            ("token", f"{node.token}, level {node.depth}"),
            ("proposed by", node.origin),
            ("how", "chosen, not drawn" if node.drawn == "point" else f"drawn ({drawn})"),
        ]
        if node.q is not None:
            facts.append(("draft q", chance(node.q)))
        facts += self._odds(node)
        if node.wanted is not None and node.wanted != node.token:
            facts.append(("target took", visible(node.wanted_text)))
        if node.chance is not None:
            facts.append(("kept with", chance(node.chance)))
        if node.coin is not None:
            facts.append(("coin", chance(node.coin)))
        colour = self.colours.get(node.origin, 0)
        return Pill(visible(node.text), colour, str(node.fate), self._shown_odds(node), tuple(facts), node.reason)

    def _bonus(self, bonus: Bonus) -> Pill:
        facts = (("token", str(bonus.token)), ("from", "the target itself"), *self._odds(bonus))
        return Pill(visible(bonus.text), 0, "bonus", self._shown_odds(bonus), facts)

    def _odds(self, what: Node | Bonus) -> list[tuple[str, str]]:
        """Both probabilities that the target gives, where they are known."""
        odds = [] if self.explanation.greedy or what.p is None else [("target p", chance(what.p))]
        return odds + ([] if what.model_p is None else [("model", f"{chance(what.model_p)} at temperature 1")])

    def _shown_odds(self, what: Node | Bonus) -> str:
        value = what.model_p if self.explanation.greedy else what.p
        return "" if value is None else chance(value)


def page(explanation: Explanation) -> str:
    """One self-contained HTML page."""
    return Page(explanation).html()


def _size(branch: Branch) -> int:
    return len(branch.run) + len(branch.fallen) + sum(_size(kid) for kid in branch.kids)


def _shown(text: str) -> list[tuple[str, bool]]:
    """Pieces of text, and whether a piece is a sign for what would not be seen: line ends always, blanks where there
    is nothing else."""
    if text and not text.strip(" "):
        return [(visible(text), True)]
    pieces: list[tuple[str, bool]] = []
    for char in text:
        sign = visible(char)
        unseen = char != " " and sign != char
        piece = f"{sign}\n" if char == "\n" else sign if unseen else char
        if pieces and pieces[-1][1] is unseen:
            pieces[-1] = (pieces[-1][0] + piece, unseen)
        else:
            pieces.append((piece, unseen))
    return pieces or [(visible(text), True)]


def _ending(found: Explanation) -> str:
    if found.finish_reason == "cancelled":
        return "interrupted"
    if found.finish_reason == "length":
        return f"cut at {len(list(found.tokens()))} tokens"
    return "ended by the model" if not isinstance(found.stop_reason, str) else f"stopped at {found.stop_reason!r}"
