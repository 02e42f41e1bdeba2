"""The view in a terminal: a block per step, the summary below."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from rich.text import Text
from rich.tree import Tree

from outrider.cli._paint import Palette
from outrider.explain.record import Explanation, Fate, Node, Step
from outrider.explain.summary import Summary
from outrider.explain.words import chance, count, visible

if TYPE_CHECKING:
    from rich.console import Console

    from outrider.explain.sweep import Trial

_SIBLINGS = 6
"""So many rejected siblings are listed on their one line; the others are counted."""
_LEVELS = 11
WORDS = {
    Fate.REJECTED: "rejected",
    Fate.BELOW: "below a token that does not stand",
    Fate.UNREACHED: "not reached",
    Fate.DUPLICATE: "duplicate",
    Fate.CUT: "behind the end of the text",
    Fate.LATE: "late",
    Fate.PROBE: "probe",
}


@dataclass(frozen=True)
class View:
    """How to show it. ``full``: every node on a line of its own."""

    console: Console
    palette: Palette
    greedy: bool = True
    full: bool = False

    @property
    def ascii(self) -> bool:
        return not self.console.encoding.lower().startswith("utf")

    def sign(self, fancy: str, simple: str) -> str:
        return simple if self.ascii else fancy

    def word(self, text: str) -> str:
        return visible(text, self.ascii)

    def plain(self, text: str) -> str:
        """Our own prose for this terminal."""
        return text.translate({0x201C: '"', 0x201D: '"', 0xB7: "-"}) if self.ascii else text


def show(view: View, explanation: Explanation, steps: Sequence[Step]) -> None:
    """Print ``steps`` of ``explanation``. Steps without a draft share a line unless ``view.full``."""
    for silent, group in groupby(steps, lambda step: step.silence):
        some = list(group)
        if silent and not view.full and len(some) > 1:
            view.console.print(_silent(view, some, silent))
        else:
            for step in some:
                view.console.print(_block(view, step))
    if not steps:
        view.console.print(Text("no step in that range", "dim"))


def _silent(view: View, steps: Sequence[Step], why: str) -> Text:
    line = Text()
    line.append(f"steps {steps[0].index}-{steps[-1].index}", "bold")
    line.append(f"  {why}  ", "dim")
    for step in steps:
        if step.bonus is not None:
            line.append(view.word(step.bonus.text))
            line.append(f" {chance(_p(view, step.bonus))}  ", "dim")
    return line


def _block(view: View, step: Step) -> Tree:
    tree = Tree(_head(view, step), guide_style="dim")
    (_every if view.full else _spine)(view, step, 0, tree, step.children())
    return tree


def _head(view: View, step: Step) -> Text:
    """Which step, its root, who drafted how much, and how long it took."""
    line = Text()
    line.append(f"step {step.index}", "bold")
    line.append(f" after {view.word(step.nodes[0].text)}  ", "dim")
    drafted = Counter(node.origin for node in step.nodes[1:])
    for name, number in drafted.items():
        line.append(f"{name} {number}  ", view.palette.style(name))
    if not drafted:
        line.append(f"{step.silence}  ", "dim")
    elif step.plan is not None and (step.plan.proposed or 0) > step.drafted:
        line.append(f"shortened from {step.plan.proposed} by the policy  ", "yellow")
    line.append(f"{len(step.path)} of {step.drafted} stand  " if drafted else "", "dim")
    times = [f"{name} {1000 * step.seconds[name]:.1f}" for name in ("draft", "target") if name in step.seconds]
    line.append(", ".join(times) + " ms" if times else "", "dim")
    return line


def _spine(view: View, step: Step, node: int, above: Tree, kids: list[list[int]]) -> None:
    """What hangs under ``node``: the accepted child with all below it, the others on a line per fate, the bonus."""
    stand = [kid for kid in kids[node] if step.nodes[kid].fate is Fate.ACCEPTED]
    for kid in stand:
        line = _accepted(view, step.nodes[kid])
        while len(kids[kid]) == 1 and step.nodes[kids[kid][0]].fate is Fate.ACCEPTED:  # a run without branches
            kid = kids[kid][0]
            line.append("  ").append_text(_accepted(view, step.nodes[kid]))
        _spine(view, step, kid, above.add(line), kids)
    others = [kid for kid in kids[node] if kid not in stand]
    for fate in dict.fromkeys(step.nodes[kid].fate for kid in others):
        some = [kid for kid in others if step.nodes[kid].fate is fate]
        below = sum(1 for _ in _below(some, kids))
        above.add(_group(view, step, [step.nodes[kid] for kid in some], below, bool(stand)))
    _bonus(view, step, node, above)


def _every(view: View, step: Step, node: int, above: Tree, kids: list[list[int]]) -> None:
    """All of it, with the level in front: an only child stands below its parent without moving in."""
    while True:
        for kid in kids[node]:
            found = step.nodes[kid]
            line = Text(f"{found.depth} ", "dim")
            line.append_text((_accepted if found.fate is Fate.ACCEPTED else _fallen)(view, found))
            line.append(f"  {found.origin}", view.palette.style(found.origin))
            if found.reason:
                line.append(f"  {view.plain(found.reason)}", "dim")
            branch = above.add(line)
            if len(kids[node]) > 1:
                _every(view, step, kid, branch, kids)
        _bonus(view, step, node, above)
        if len(kids[node]) != 1:
            return
        node = kids[node][0]


def _bonus(view: View, step: Step, node: int, above: Tree) -> None:
    end = step.path[-1] if step.path else 0
    if step.bonus is not None and node == end:
        line = Text("+ ", "bold")
        line.append(view.word(step.bonus.text), "bold")
        line.append(f" {chance(_p(view, step.bonus))}  target", "dim")
        above.add(line)


def _accepted(view: View, node: Node) -> Text:
    line = Text(view.word(node.text), f"{view.palette.style(node.origin)} bold")
    return line.append_text(_odds(view, node))


def _fallen(view: View, node: Node) -> Text:
    line = Text(view.sign("✗ ", "x "), "red") if node.fate is Fate.REJECTED else Text(view.sign("– ", "- "), "dim")
    line.append(view.word(node.text), f"{view.palette.style(node.origin)} dim")
    return line.append_text(_odds(view, node))


def _group(view: View, step: Step, nodes: Sequence[Node], below: int, beaten: bool) -> Text:
    """Siblings of one fate. Where one of them stands, the others need no reason."""
    line = Text()
    for number, node in enumerate(nodes[:_SIBLINGS]):
        line.append("  " if number else "").append_text(_fallen(view, node))
    if len(nodes) > _SIBLINGS:
        line.append(f"  and {len(nodes) - _SIBLINGS} more", "dim")
    first = nodes[0]
    if first.fate is not Fate.REJECTED:
        line.append(f"  {first.reason if len(nodes) == 1 else WORDS[first.fate]}", "dim")
    elif len(nodes) == 1:
        line.append("" if beaten and first.coin is None else f"  {view.plain(first.reason)}", "dim")
    elif not beaten and first.wanted is not None:
        line.append(f"  the target took {view.word(first.wanted_text)}", "dim")
    if below:
        line.append(f"  ({below} below)", "dim")
    return line


def _odds(view: View, node: Node) -> Text:
    q = "" if node.q is None else f"/{chance(node.q)}"
    return Text(f" {chance(_p(view, node))}{q}", "dim")


def _p(view: View, what: object) -> float | None:
    """At temperature 0 the law is one-hot and says nothing: the model's own probability does."""
    return getattr(what, "model_p" if view.greedy else "p", None)


def _below(nodes: Sequence[int], kids: list[list[int]]) -> Iterator[int]:
    """All descendants of ``nodes``."""
    for node in nodes:
        yield from kids[node]
        yield from _below(kids[node], kids)


def show_summary(view: View, explanation: Explanation, found: Summary) -> None:
    """Acceptance by depth and by origin, reasons, facts."""
    console = view.console
    console.rule(style="dim", characters=view.sign("─", "-"))
    told = (
        f"{found.tokens_per_step:.2f} tokens per call: {count(found.tokens, 'token')} in {count(found.steps, 'call')}"
    )
    _row(view, "accepted", Text(f"{told}, {found.drafted} drafted, {found.accepted} stand"))
    if found.levels:
        _row(view, "by depth", Text("  ".join(f"{level.depth:>4}" for level in found.levels[:_LEVELS]), "dim"))
        shares = [f"{100 * level.accepted / level.tested:>3.0f}%" for level in found.levels[:_LEVELS]]
        _row(view, "stand", Text("  ".join(shares), "green"))
    for number, source in enumerate(found.sources):
        line = Text(source.origin, view.palette.style(source.origin))
        share = 100 * source.accepted / source.nodes
        line.append(
            f" drafted {source.nodes} in {count(source.steps, 'step')}, {source.accepted} stand ({share:.0f} %)"
        )
        _row(view, "" if number else "by origin", line)
    lost = [f"{WORDS[Fate(fate)]} {number}" for fate, number in found.fates.items() if Fate(fate) in WORDS]
    if lost:
        _row(view, "lost", Text(", ".join(lost)))
    for number, miss in enumerate(found.misses):
        pair = f"“{view.word(miss.drafted)}” where the target took “{view.word(miss.wanted)}”, {miss.times} times"
        _row(view, "" if number else "missed", Text(view.plain(pair)))
    for number, fact in enumerate(found.facts):
        _row(view, "" if number else "facts", Text(view.plain(fact)))
    if explanation.finish_reason == "cancelled":
        _row(view, "end", Text("interrupted: this is what there was", "yellow"))


def _row(view: View, name: str, text: Text) -> None:
    from rich.table import Table

    grid = Table.grid()
    grid.add_column(width=10, style="dim")
    grid.add_column()
    grid.add_row(name, text)
    view.console.print(grid)


def show_trials(console: Console, trials: Sequence[Trial]) -> None:
    """A ranked table of settings, best first; below it those that were refused, with the reason."""
    from rich import box
    from rich.table import Table

    done = [trial for trial in trials if not trial.refused]
    priced = any(trial.speedup is not None for trial in done)
    table = Table(box=box.SIMPLE_HEAD if console.encoding.lower().startswith("utf") else box.ASCII, header_style="dim")
    widest = max((len(trial.preset) for trial in done), default=0)
    table.add_column("setting", overflow="fold", min_width=min(widest, max(20, console.width - 54)))
    for name in [*(["speed-up"] if priced else []), "tokens/call", "calls", "drafted", "per accepted"]:
        table.add_column(name, justify="right")
    for trial in done:
        gain = [] if not priced else ["" if trial.speedup is None else f"{trial.speedup:.2f}"]
        ratio = "-" if trial.drafted_per_accepted is None else f"{trial.drafted_per_accepted:.2f}"
        figures = [f"{trial.tokens_per_call:.2f}", str(trial.calls), str(trial.drafted), ratio]
        table.add_row(Text(trial.preset), *gain, *figures)
    if done:
        console.print(table)
    for trial in trials:
        if trial.refused:
            console.print(Text.assemble(f"{trial.preset}  ", (f"not replayed: {trial.refused}", "dim")))
