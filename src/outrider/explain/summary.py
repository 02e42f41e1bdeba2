"""Figures over all steps of one answer, and the facts that follow from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from outrider.explain.record import Explanation, Fate, Node, Step
from outrider.explain.words import count

_IDLE = (Fate.ROOT, Fate.PROBE)


@dataclass(frozen=True)
class Level:
    """Depth ``depth`` of all drafts: steps that had a candidate there whose parent stands, and how many went on."""

    depth: int
    tested: int
    accepted: int


@dataclass(frozen=True)
class Source:
    """A drafter: nodes it proposed, those that stand, and the steps in which it proposed something."""

    origin: str
    nodes: int
    accepted: int
    steps: int


@dataclass(frozen=True)
class Miss:
    """A token that was proposed first where the target wanted one that nobody proposed, and how often."""

    drafted: str
    wanted: str
    times: int


@dataclass(frozen=True)
class Summary:
    """``fates`` counts drafted nodes; ``misses`` are the most frequent ones, ``facts`` sentences."""

    steps: int
    tokens: int
    drafted: int
    accepted: int
    tokens_per_step: float
    levels: tuple[Level, ...]
    sources: tuple[Source, ...]
    fates: dict[str, int]
    misses: tuple[Miss, ...]
    facts: tuple[str, ...]


def summarise(explanation: Explanation, misses: int = 5) -> Summary:
    """The figures of ``explanation``; ``misses`` bounds the list of frequent ones."""
    steps = explanation.steps
    nodes = [node for step in steps for node in step.nodes if node.fate not in _IDLE]
    tokens = sum(len(step.emitted) for step in steps)
    fates = Counter(str(node.fate) for node in nodes)
    pairs = Counter((node.text, node.wanted_text) for node in _missed(steps))
    return Summary(
        steps=len(steps),
        tokens=tokens,
        drafted=len(nodes),
        accepted=fates[Fate.ACCEPTED],
        tokens_per_step=tokens / len(steps) if steps else 0.0,
        levels=_levels(steps),
        sources=_sources(steps, nodes),
        fates=dict(fates.most_common()),
        misses=tuple(Miss(*pair, times) for pair, times in pairs.most_common(misses) if times > 1),
        facts=tuple(_facts(steps, nodes)),
    )


def _missed(steps: Sequence[Step]) -> Iterator[Node]:
    """The first proposal where a draft ended: rejected, and no sibling of it stands."""
    for step in steps:
        end = step.path[-1] if step.path else 0
        first = next((node for node in step.nodes[1:] if node.parent == end), None)
        if first is not None and first.fate is Fate.REJECTED and first.wanted not in (None, first.token):
            yield first


def _levels(steps: Sequence[Step]) -> tuple[Level, ...]:
    tested: Counter[int] = Counter()
    accepted: Counter[int] = Counter()
    for step in steps:
        looked_at = (Fate.ACCEPTED, Fate.REJECTED, Fate.DUPLICATE, Fate.UNREACHED)
        tested.update({node.depth for node in step.nodes if node.fate in looked_at})
        accepted.update(range(1, len(step.path) + 1))
    return tuple(Level(depth, tested[depth], accepted[depth]) for depth in sorted(tested))


def _sources(steps: Sequence[Step], nodes: Sequence[Node]) -> tuple[Source, ...]:
    drafted = Counter(node.origin for node in nodes)
    accepted = Counter(node.origin for node in nodes if node.fate is Fate.ACCEPTED)
    taking_part = Counter(origin for step in steps for origin in step.origins)
    return tuple(Source(name, drafted[name], accepted[name], taking_part[name]) for name, _ in drafted.most_common())


def _facts(steps: Sequence[Step], nodes: Sequence[Node]) -> list[str]:
    """Only what the record shows; each is left out where there is nothing to say."""
    facts: list[str] = []
    if not steps:
        return facts
    kinds = Counter(step.silence for step in steps)
    drafted = [step for step in steps if step.drafted]
    for why in kinds:
        if why:
            facts.append(f"{_share(kinds[why], len(steps), 'step')} gave one token: {why}.")
    cut = sum(step.plan is not None and (step.plan.proposed or 0) > step.drafted for step in drafted)
    if cut:
        facts.append(f"The policy shortened {_share(cut, len(drafted), 'draft')}.")
    if not drafted:
        return facts
    stood = sum(len(step.path) for step in drafted)
    per_step = f"{sum(step.drafted for step in drafted) / len(drafted):.1f} tokens were drafted"
    facts.append(f"In the steps with a draft {per_step} and {stood / len(drafted):.2f} stood, on average.")
    wrong = sum(not step.path for step in drafted)
    whole = sum(_whole(step) for step in drafted)
    if wrong:
        facts.append(f"In {_share(wrong, len(drafted), 'draft')} no first token was right.")
    if whole:
        told = "stood to the last level: deeper ones could have gone on"
        facts.append(f"{_share(whole, len(drafted), 'draft')} {told}.")
    below = sum(node.fate is Fate.BELOW for node in nodes)
    if below:
        facts.append(f"{_share(below, len(nodes), 'node')} stood below a token that was wrong already.")
    missed = [node for node in _missed(steps) if node.model_p is not None]
    close = sum((node.model_p or 0.0) >= 0.2 for node in missed)
    if close:
        where = f"Where a draft ended, {_share(close, len(missed), 'first proposal')} had a probability"
        facts.append(f"{where} of 0.2 or more: near misses.")
    return facts


def _whole(step: Step) -> bool:
    """Whether the deepest level of the draft was reached (and the text went on)."""
    return bool(step.path) and step.bonus is not None and len(step.path) == max(node.depth for node in step.nodes)


def _share(part: int, whole: int, what: str) -> str:
    """``3 of 12 steps (25 %)``."""
    return f"{part} of {count(whole, what)} ({100 * part / whole:.0f} %)"
