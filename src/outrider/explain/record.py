"""The typed record of one answer: every step, every drafted node, and what became of it.

The terminal view, the page, the JSON file and the replay all read these classes and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from outrider.run.request import Stats

VERSION = 1
"""Of what ``Explanation.as_dict`` gives; it changes when a field changes its meaning or goes."""


class Fate(StrEnum):
    """What became of a node."""

    ROOT = "root"
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    BELOW = "below"
    """Its parent does not stand, so it was never looked at."""
    UNREACHED = "unreached"
    """An earlier sibling was accepted before its turn came."""
    DUPLICATE = "duplicate"
    """The token stands, but as another node: siblings proposed it twice."""
    CUT = "cut"
    """The text ended above it."""
    LATE = "late"
    """Drafted after the target's forward began, and the very token the target added."""
    PROBE = "probe"
    """A row of the forward that is never a candidate."""


@dataclass(frozen=True)
class Node:
    """One node of a draft. Probabilities are None where nothing is known: ``q`` of a node that was chosen and not
    drawn, ``p`` and ``model_p`` where the target's answer at the parent was not recorded."""

    token: int
    text: str
    parent: int
    depth: int
    origin: str
    fate: Fate
    reason: str
    """Why it does not stand, in words; empty for the root and for accepted nodes."""
    role: str = "candidate"
    drawn: str = "point"
    """How it was proposed: "point" is chosen, not drawn (look-up, argmax, top-k)."""
    q: float | None = None
    """Probability of the token in the law it was drawn from."""
    p: float | None = None
    """Probability of the token under the target's law at the parent, sampling parameters applied."""
    model_p: float | None = None
    """The same as the model gives it, at temperature 1 and with nothing applied."""
    wanted: int | None = None
    """The token that the target chose at the parent."""
    wanted_text: str = ""
    chance: float | None = None
    """With which probability the rule would accept it, where it was tested by a coin."""
    coin: float | None = None
    """The number in [0, 1) that decided; accepted below ``chance``."""


@dataclass(frozen=True)
class Bonus:
    """The token that the target added behind the accepted path."""

    token: int
    text: str
    p: float | None = None
    model_p: float | None = None


@dataclass(frozen=True)
class Plan:
    """What the policy decided before and after drafting."""

    depth: int
    nodes: int
    width: int
    skipped: bool = False
    """The policy sent this step down the plain path."""
    proposed: int | None = None
    """Drafted nodes before the policy reviewed them; None: no review."""


@dataclass(frozen=True)
class Step:
    """One call of the target. ``nodes[0]`` is the root, parents stand before their children. ``path`` are the
    accepted nodes that were emitted, the root left out; ``bonus`` is None where the text ended inside the draft."""

    index: int
    position: int
    """Tokens of the answer before this step."""
    nodes: tuple[Node, ...]
    path: tuple[int, ...]
    bonus: Bonus | None
    pieces: tuple[str, ...] = ()
    """What each emitted token adds to the text: nothing for an unfinished character, or a token that is not shown."""
    plan: Plan | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def drafted(self) -> int:
        return len(self.nodes) - 1

    @property
    def silence(self) -> str:
        """Why there is no draft; empty where there is one."""
        if self.drafted:
            return ""
        if self.plan is not None and self.plan.proposed:
            return "draft dropped by the policy"
        if self.plan is not None and (self.plan.skipped or min(self.plan.depth, self.plan.nodes) <= 0):
            return "no draft planned"
        return "no draft"

    @property
    def emitted(self) -> list[int]:
        """Token ids that this step added to the answer."""
        return [self.nodes[n].token for n in self.path] + ([] if self.bonus is None else [self.bonus.token])

    @property
    def origins(self) -> list[str]:
        """The drafters that proposed something, in order of appearance."""
        return list(dict.fromkeys(node.origin for node in self.nodes[1:]))

    def children(self) -> list[list[int]]:
        """Per node its children, in order."""
        table: list[list[int]] = [[] for _ in self.nodes]
        for index, node in enumerate(self.nodes):
            if index:
                table[node.parent].append(index)
        return table


@dataclass(frozen=True)
class Emitted:
    """One token of the answer and where it came from; ``node`` is 0 for the target's own, ``piece`` what it adds to
    the text."""

    token: int
    text: str
    piece: str
    origin: str
    depth: int
    step: int
    node: int


@dataclass(frozen=True)
class Explanation:
    """One answer, explained. ``text`` is the answer as it was shown: decoded together, without special tokens."""

    model: str
    preset: str
    drafters: str
    guarantee: str
    prompt: tuple[int, ...]
    prompt_text: str
    params: Mapping[str, Any]
    seed: int
    steps: tuple[Step, ...]
    text: str
    finish_reason: str | None
    stop_reason: int | str | None
    stats: Stats
    target: str = "target"
    replayed: bool = False
    """Whether the target's answers came from a trace."""
    provenance: Mapping[str, Any] | None = None

    def tokens(self) -> Iterator[Emitted]:
        """The tokens of the answer in order."""
        for step in self.steps:
            pieces = iter(step.pieces)
            for index in step.path:
                node = step.nodes[index]
                yield Emitted(node.token, node.text, next(pieces), node.origin, node.depth, step.index, index)
            if step.bonus is not None:
                yield Emitted(step.bonus.token, step.bonus.text, next(pieces), self.target, 0, step.index, 0)

    @property
    def greedy(self) -> bool:
        return self.params.get("temperature", 0.0) == 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, the summary included."""
        from outrider.explain.summary import summarise

        names = ("model", "preset", "drafters", "guarantee", "prompt", "prompt_text", "params", "seed", "replayed")
        record: dict[str, Any] = {"format": "outrider-explanation", "version": VERSION}
        record |= {name: getattr(self, name) for name in names}
        record["answer"] = {
            "text": self.text,
            "finish_reason": self.finish_reason,
            "stop_reason": self.stop_reason,
            "tokens": [asdict(token) for token in self.tokens()],
        }
        record["steps"] = [asdict(step) for step in self.steps]
        record["summary"] = asdict(summarise(self))
        record["stats"] = self.stats.as_dict()
        record["provenance"] = self.provenance
        return record
