"""Engines whose acceptance and seconds are scripted: what a policy decides there is repeatable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from outrider import Engine, SamplingParams
from outrider.draft.base import Drafter
from outrider.parts import Parts
from outrider.policy.base import Policy
from outrider.rng import Draws
from outrider.run.row import Row
from outrider.run.scheduler import Limits
from outrider.types import Budget, DraftTree, Outcome
from outrider.verify.match import Match

from .script_model import ScriptModel

VOCAB, PROMPT = 1000, 4
SCRIPT = np.random.default_rng(0).integers(0, VOCAB, 3000).tolist()

Alpha = Callable[[int], float]
"""Acceptance of each next token, by how many tokens the row has emitted."""
Price = Callable[[int, int, int], float]
"""Seconds of a step: rows, nodes per row (the root included), number of the step."""


class Chance(Drafter):
    """A chain of the right tokens up to the first that chance makes wrong: each stands with probability ``alpha``.
    ``lists`` False leaves the tree without lists, as a drafter on a device does."""

    def __init__(self, alpha: Alpha, lists: bool = True, name: str = "chance") -> None:
        self.alpha, self.lists, self.name = alpha, lists, name

    def propose(self, rows: Sequence[Row], budget: Budget, draws: Draws) -> DraftTree:
        depth, chains = min(budget.depth, budget.nodes), []
        for row in rows:
            rng = np.random.default_rng([row.id, len(row.tokens)])
            right = SCRIPT[len(row.tokens) : len(row.tokens) + depth]
            stand = np.cumprod(rng.random(depth) < self.alpha(row.output_length))
            wrong = [(token + 1) % VOCAB for token in right]
            chain = [t if ok else w for t, w, ok in zip(right, wrong, stand, strict=True)]
            chains.append(([row.tokens[-1], *chain], list(range(-1, depth))))
        tree = DraftTree.build(chains, origin=self.name)
        return tree if self.lists else replace(tree, host=None)


class Priced(Policy):
    """``policy``, to which every step seems to take what ``price`` says, and each drafted level ``level`` seconds."""

    def __init__(self, policy: Policy, price: Price, level: float = 0.0) -> None:
        self.policy, self.price, self.level, self.steps = policy, price, level, 0
        self.levels = 0

    def plan(self, rows: Sequence[Row]) -> Budget:
        budget = self.policy.plan(rows)
        self.levels = 0 if all(row.id in budget.skip for row in rows) else budget.depth
        return budget

    def review(self, rows: Sequence[Row], tree: DraftTree) -> list[int] | None:
        return self.policy.review(rows, tree)

    def observe(self, outcome: Outcome) -> None:
        target = self.price(len(outcome.rows), outcome.tree.shape[1], self.steps)
        self.steps += 1
        self.policy.observe(replace(outcome, seconds={"draft": self.level * self.levels, "target": target}))


@dataclass
class Run:
    """What happened: per step the drafted nodes per row, the tokens all rows emitted, and the seconds it took."""

    nodes: list[int] = field(default_factory=list)
    levels: list[int] = field(default_factory=list)
    emitted: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def speedup(self, plain: float, rows: int = 1) -> float:
        """Over plain steps of ``plain`` seconds."""
        return sum(self.emitted) / rows * plain / sum(self.seconds)


def simulate(
    policy: Policy,
    alpha: Alpha,
    price: Price,
    *,
    rows: int = 1,
    tokens: int = 400,
    level: float = 0.0,
    lists: bool = True,
    requests: int = 1,
) -> Run:
    """Let ``rows`` rows of ``tokens`` tokens decode together, ``requests`` times one after the other."""
    priced, run = Priced(policy, price, level), Run()
    parts = Parts(drafter=Chance(alpha, lists), policy=priced, verifier=Match())
    engine = Engine(ScriptModel(SCRIPT, VOCAB), parts, limits=Limits(max_rows=rows, max_nodes=1 << 16))

    def look(outcome: Outcome) -> None:
        nodes = outcome.tree.shape[1]
        run.nodes.append(nodes - 1)
        run.levels.append(priced.levels)
        run.emitted.append(sum(map(len, outcome.emitted)))
        run.seconds.append(price(len(outcome.rows), nodes, priced.steps - 1) + level * priced.levels)

    engine.listen(look)
    for _ in range(requests):
        for _ in range(rows):
            engine.submit(SCRIPT[:PROMPT], SamplingParams(max_tokens=tokens), stream=False)
        while not engine.idle:
            engine.step()
    return run
