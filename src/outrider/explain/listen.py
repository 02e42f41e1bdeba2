"""From outcomes to records: a listener that works out, for every drafted node, what became of it and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from outrider.explain.fates import Sight, judge, unknown
from outrider.explain.record import Bonus, Plan, Step
from outrider.explain.words import Pieces
from outrider.policy.base import Policy
from outrider.rng import Draws, Purpose
from outrider.types import PADDING, Budget, DraftTree, Drawn, Guarantee, Needs, Outcome, Role

if TYPE_CHECKING:
    from outrider.draft.base import DraftContext
    from outrider.run.engine import Engine
    from outrider.run.row import Row
    from outrider.sampling import Warped


class Planned(Policy):
    """The policy ``inner``, with its last decisions kept: what it planned, and how many nodes it reviewed."""

    def __init__(self, inner: Policy) -> None:
        self.inner = inner
        self.budget: Budget | None = None
        self.reviewed: DraftTree | None = None

    def bind(self, context: DraftContext) -> None:
        self.inner.bind(context)

    def plan(self, rows: Sequence[Row]) -> Budget:
        self.reviewed = None
        self.budget = self.inner.plan(rows)
        return self.budget

    def review(self, rows: Sequence[Row], tree: DraftTree) -> list[int] | None:
        keep = self.inner.review(rows, tree)
        self.reviewed = None if keep is None else tree
        return keep

    def observe(self, outcome: Outcome) -> None:
        self.inner.observe(outcome)

    def last(self, row: Row, place: int) -> Plan | None:
        """The decisions about ``row``, which is row ``place`` of the batch; None before the first."""
        if self.budget is None:
            return None
        proposed = None
        if self.reviewed is not None:
            proposed = int((self.reviewed.parents[place] != PADDING).sum()) - 1
        return Plan(self.budget.depth, self.budget.nodes, self.budget.width, row.id in self.budget.skip, proposed)


class Recorder:
    """Listens to one engine and keeps the steps of one row: the first one it sees after ``start``.

    ``texts`` turns a token into text, ``pieces`` starts a new answer. Where a rule flips coins, the target's choice is
    known along the accepted path only; with ``Match``, and at temperature 0, it is known at every node.
    """

    needs = Needs(logits=True)

    def __init__(self, engine: Engine, texts: Callable[[int], str], pieces: Callable[[], Pieces]) -> None:
        self.engine, self.texts, self._new_pieces = engine, texts, pieces
        self.planned = Planned(engine.parts.policy)
        engine.parts = engine.parts.with_(policy=self.planned)
        engine.listen(self, self.needs)
        self.start()

    def start(self) -> None:
        """Forget everything: the next row is the one to record."""
        self.steps: list[Step] = []
        self._row: int | None = None
        self._position = 0
        self._pieces = self._new_pieces()

    def __call__(self, outcome: Outcome) -> None:
        if outcome.verdict is None:  # a chunk of the prompt
            return
        if self._row is None:
            self._row = outcome.rows[0].id
        for place, row in enumerate(outcome.rows):
            if row.id == self._row:
                self.steps.append(self._step(outcome, row, place))
                self._position += len(outcome.emitted[place])

    def _step(self, outcome: Outcome, row: Row, place: int) -> Step:
        sight = _look(outcome, row, place, self.engine.parts.guarantee)
        bonus = None
        if sight.kept > len(sight.path):
            end = sight.end
            bonus = Bonus(
                sight.bonus, self.texts(sight.bonus), p=sight.chosen_p[end], model_p=sight.chosen_model_p[end]
            )
        return Step(
            index=len(self.steps),
            position=self._position,
            nodes=tuple(judge(sight, self.texts)),
            path=tuple(sight.path[: sight.kept]),
            bonus=bonus,
            pieces=tuple(self._pieces.take(outcome.emitted[place])),
            plan=self.planned.last(row, place),
            seconds=dict(outcome.seconds),
        )


def _look(outcome: Outcome, row: Row, place: int, guarantee: Guarantee) -> Sight:
    """Row ``place`` of ``outcome`` as plain numbers, padding left out."""
    assert outcome.verdict is not None
    assert outcome.p is not None
    tree = outcome.tree
    real = (tree.parents[place] != PADDING).nonzero()[:, 0]
    index = {node: i for i, node in enumerate(real.tolist())} | {-1: -1}

    def pick(field: Tensor) -> list:
        return field[place, real].tolist()

    def names(field: Tensor | None, kind: type[Role] | type[Drawn]) -> list[str]:
        return [kind(value).name.lower() for value in ([0] * len(real) if field is None else pick(field))]

    count, bonus, *path = outcome.verdict.lines()[place]
    kept = len(outcome.emitted[place])
    sight = Sight(
        tokens=pick(tree.tokens),
        parents=[index[parent] for parent in pick(tree.parents)],
        depth=pick(tree.depth),
        origins=[tree.origins[i] for i in pick(tree.origin_of())],
        roles=names(tree.role, Role),
        drawn=names(tree.drawn, Drawn),
        path=[index[node] for node in path[1:count]],
        bonus=bonus,
        kept=kept,
        greedy=row.params.greedy,
        matched=row.params.greedy or guarantee is Guarantee.IDENTICAL,
        chosen=[None] * len(real),
    )
    keys = (row.seed, row.sample, row.root_position - kept)
    draws = Draws.of(*(torch.tensor([key], device=real.device) for key in keys))
    p = outcome.p if len(outcome.rows) == 1 else outcome.p.rows([place])
    if sight.matched:
        choices = p.choose(None if sight.greedy else draws.text(tree.depth[place : place + 1]))[0, real]
        sight.chosen = [token if token >= 0 else None for token in choices.tolist()]
    for node, token in zip([0, *sight.path], [*(sight.tokens[n] for n in sight.path), bonus], strict=True):
        sight.chosen[node] = token if token >= 0 else None
    _weigh(sight, p, outcome, place, real)
    sight.chance = sight.coin = unknown(len(real))
    if not sight.matched and outcome.verdict.why is not None:
        sight.chance = _known(outcome.verdict.why[place, real])
        sight.coin = draws.uniform(Purpose.ACCEPT, real[None])[0].tolist()
    return sight


def _weigh(sight: Sight, p: Warped, outcome: Outcome, place: int, real: Tensor) -> None:
    """Probabilities: q of every node; of every node and every choice what the target gives it, as decoding sees it
    and as the model says it."""
    assert outcome.logits is not None
    tree, kids = outcome.tree, sight.kids
    width = max(map(len, kids))
    # Per node: its children's tokens, then the choice behind it; -1 asks nothing.
    table = [[sight.tokens[kid] for kid in some] + [-1] * (width - len(some)) for some in kids]
    lines = [[*line, -1 if token is None else token] for line, token in zip(table, sight.chosen, strict=True)]
    asked = torch.tensor(lines, device=real.device)
    spread = asked.new_full((1, tree.shape[1], width + 1), -1)
    spread[0, real] = asked
    logits = outcome.logits[place, real].float()
    scale = logits.logsumexp(-1, keepdim=True)
    blank = (asked < 0) | ~scale.isfinite()  # a node whose answer is not known has no finite logit
    law = p.prob_of(spread)[0, real].float().masked_fill(blank, torch.nan)
    own = (logits.gather(-1, asked.clamp(min=0)) - scale).exp().masked_fill(blank, torch.nan)
    laws, owns = [_known(line) for line in law], [_known(line) for line in own]
    sight.chosen_p, sight.chosen_model_p = [line[-1] for line in laws], [line[-1] for line in owns]
    sight.p, sight.model_p, sight.q = unknown(len(lines)), unknown(len(lines)), unknown(len(lines))
    for parent, some in enumerate(kids):
        for place_of, kid in enumerate(some):
            sight.p[kid], sight.model_p[kid] = laws[parent][place_of], owns[parent][place_of]
    if tree.laws is not None and tree.law is not None:
        rows = tree.law[place, real]
        q = tree.laws[place, rows.clamp(min=0), tree.tokens[place, real]].float()
        point = [kind == "point" for kind in sight.drawn]
        sight.q = _known(q.masked_fill((rows < 0) | torch.tensor(point, device=q.device), torch.nan))


def _known(values: Tensor) -> list[float | None]:
    """Numbers on the host, None for NaN."""
    return [None if value != value else value for value in values.tolist()]
