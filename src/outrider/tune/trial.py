"""How much of each candidate's drafts is accepted: recorded texts, replays over them, and short live runs.

The text of plain decoding is recorded once. Where a drafter needs nothing of the target but its text, and what is
accepted is decided by that text alone (any exact verifier at temperature 0, ``Match`` at every temperature), its steps
follow without the target: the draft's longest path along the text, and one token more. Other drafters are run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from outrider.draft.base import DraftContext
from outrider.params import SamplingParams
from outrider.registry import preset
from outrider.rng import Draws
from outrider.run.engine import Engine
from outrider.run.row import Row
from outrider.run.scheduler import Limits
from outrider.sampling import RowSampling
from outrider.tune.timing import Deadline, Timed
from outrider.types import DraftTree, Guarantee, Outcome, Verdict

if TYPE_CHECKING:
    from outrider.parts import Parts
    from outrider.run.llm import LLM
    from outrider.run.request import Request

_MAX_NODES = Limits().max_nodes


@dataclass(frozen=True)
class Prompt:
    """A prompt in token ids; ``group`` is the kind of work it stands for."""

    id: str
    group: str
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Record:
    """What plain decoding made of a prompt. It may be cut short: every beginning of a text is one."""

    prompt: Prompt
    output: tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """One step of a row: ``nodes`` in the target's forward (root included) behind ``context`` stored tokens, tokens
    ``emitted``, seconds of the ``draft`` (proposing and observing), and ``levels`` drafted."""

    nodes: int
    context: int
    emitted: int
    draft: float = 0.0
    levels: int = 0


@dataclass(frozen=True)
class Trial:
    """The steps of one candidate, prompt by prompt."""

    name: str
    prompts: tuple[Prompt, ...]
    steps: tuple[tuple[Step, ...], ...]
    live: bool = False
    reads_along: bool = True
    """Whether the first step reads the end of the prompt, where the target can."""

    @property
    def tokens(self) -> int:
        return sum(step.emitted for steps in self.steps for step in steps)

    @property
    def calls(self) -> int:
        return sum(len(steps) for steps in self.steps)

    def beside(self, plain: Trial) -> Trial:
        """``plain`` on the prompts of this trial, each as far as this one came."""
        index = {prompt.id: i for i, prompt in enumerate(plain.prompts)}
        steps = []
        for prompt, mine in zip(self.prompts, self.steps, strict=True):
            count = sum(step.emitted for step in mine)
            steps.append(plain.steps[index[prompt.id]][:count])
        return replace(plain, prompts=self.prompts, steps=tuple(steps))


def record(
    llm: LLM,
    prompts: Sequence[Prompt],
    params: SamplingParams,
    deadline: Deadline,
    rows: int = 8,
    tell: Callable[[float], None] = lambda done: None,
) -> list[Record]:
    """Decode ``prompts`` plainly, ``rows`` of them side by side, as many as there is time for. A wave is cut short by
    the deadline and kept; further waves start only if they will probably end in time."""
    records: list[Record] = []
    engine = _engine(llm, preset("plain"), rows)
    last = 0.0
    while len(records) < len(prompts) and (not records or deadline.left >= last):
        began = deadline.clock()
        before, wave = len(records), prompts[len(records) : len(records) + rows]

        def part(done: float, before: int = before, size: int = len(wave)) -> None:
            tell((before + done * size) / len(prompts))

        records += _wave(engine, wave, params, deadline, part)
        last = deadline.clock() - began
    return [one for one in records if one.output]


def _wave(
    engine: Engine,
    prompts: Sequence[Prompt],
    params: SamplingParams,
    deadline: Deadline,
    tell: Callable[[float], None],
) -> list[Record]:
    """Records of ``prompts``, side by side. They are read one by one, so that none is padded to the longest; reading
    takes at most half of the time, and who is not read by then has an empty record."""
    requests: list[Request] = []

    def step() -> None:
        engine.step()
        done = sum(len(choice.token_ids) for request in requests for choice in request.choices)
        tell(done / (params.max_tokens * len(prompts)))

    reading = deadline.part(0.5)
    for prompt in prompts:
        if requests and not reading.left:
            break
        requests.append(engine.submit(prompt.tokens, params, stream=False))
        step()
    while deadline.left and not all(request.finished for request in requests):
        step()
    tell(1.0)
    for request in requests:
        engine.cancel(request)
    outputs = [tuple(request.choices[0].token_ids) for request in requests]
    return [Record(prompt, outputs[i] if i < len(outputs) else ()) for i, prompt in enumerate(prompts)]


def plain_steps(records: Sequence[Record]) -> Trial:
    """Plain decoding of the recorded texts: a step per token."""
    steps = [tuple(Step(1, len(one.prompt.tokens) - 1 + i, 1) for i in range(len(one.output))) for one in records]
    return Trial("plain", tuple(one.prompt for one in records), tuple(steps))


def replayable(parts: Parts, params: SamplingParams) -> bool:
    """Whether recorded texts alone decide what these parts do."""
    if parts.drafter is None or parts.law is not None:
        return False
    needs = parts.needs
    blind = not (needs.logits or needs.prefill_logits or needs.hidden)
    settled = parts.guarantee is Guarantee.IDENTICAL or (params.greedy and parts.guarantee is Guarantee.EXACT)
    return blind and settled


def replay(llm: LLM, name: str, records: Sequence[Record], params: SamplingParams, deadline: Deadline) -> Trial:
    """The steps of a candidate over recorded texts. Ends early, with the prompts it came to, at the deadline."""
    parts = preset(name)
    assert parts.drafter is not None
    drafter = Timed(parts.drafter, deadline.clock)
    context = DraftContext(
        target=llm.language_model,
        vocab_size=llm.language_model.vocab_size,
        device=llm.language_model.device,
        max_rows=1,
        max_context=llm.engine.max_context,
        tokenizer=llm.tokenizer,
        stop_tokens=llm.engine.stop_tokens,
        draft_model=None if llm.draft is None else llm.draft.model,
        sources=drafter.sources,
    )
    drafter.bind(context)
    parts.policy.bind(context)
    done: list[tuple[Step, ...]] = []
    for number, one in enumerate(records):
        if done and not deadline.left:
            break
        done.append(tuple(_replay_one(parts.with_(drafter=drafter), one, params, context, (number, deadline))))
    return Trial(name, tuple(one.prompt for one in records[: len(done)]), tuple(done), reads_along=_reads_along(parts))


def _reads_along(parts: Parts) -> bool:
    return not (parts.needs.prefill_logits or parts.needs.hidden)


def _replay_one(
    parts: Parts, one: Record, params: SamplingParams, context: DraftContext, turn: tuple[int, Deadline]
) -> list[Step]:
    """Steps over one text, as row number ``turn[0]``, cut short by the deadline ``turn[1]``."""
    number, deadline = turn
    drafter, policy = parts.drafter, parts.policy
    assert isinstance(drafter, Timed)
    prompt = list(one.prompt.tokens)
    sampling = RowSampling(params, context.vocab_size, prompt)
    row = Row(number, prompt, len(prompt), params, sampling, seed=params.seed or 0)
    drafter.admit(row)
    stream = Draws.of(torch.tensor([row.seed]), torch.tensor([0]), torch.tensor([0])).stream.tolist()
    steps: list[Step] = []
    at = 0
    while at < len(one.output) and (deadline.left or not steps):
        stored = len(row.tokens) - 1
        plan = policy.plan([row])
        room = params.max_tokens - at - 1
        budget = replace(plan, depth=min(plan.depth, room), nodes=min(plan.nodes, _MAX_NODES - 1))
        tree = DraftTree.roots([row.tokens[-1]])
        drafter.take()
        if not budget.empty and row.id not in budget.skip:
            draws = Draws(stream, [row.root_position], context.device)
            tree = drafter.propose([row], budget, draws).to("cpu")
            keep = policy.review([row], tree) if parts.prunable and tree.shape[1] > 1 else None
            tree = tree if keep is None else tree.first(keep)
        path = follow(tree, one.output[at:])
        emitted = list(one.output[at : at + len(path)])
        row.tokens += emitted
        sampling.advance(emitted)
        at += len(emitted)
        verdict = Verdict(torch.tensor([path]), torch.tensor([len(path)]), torch.tensor(emitted[-1:]))
        outcome = Outcome([row], tree, verdict, [emitted])
        drafter.observe(outcome)
        policy.observe(outcome)
        steps.append(Step(_count(tree)[0], stored, len(emitted), drafter.take(), tree.depth_bound))
    drafter.drop(row)
    return steps


def follow(tree: DraftTree, text: Sequence[int]) -> list[int]:
    """Nodes of row 0, from the root down, that spell the beginning of ``text``, which has at least one token. The
    deepest such path; the first of equals. One token of the text is always left for the target."""
    tokens, parents = tree.host[0] if tree.host is not None else (tree.tokens[0].tolist(), tree.parents[0].tolist())
    depth = [0] + [-1] * (len(tokens) - 1)
    end = 0
    for node in range(1, len(tokens)):
        above = parents[node]
        if above < 0 or depth[above] < 0 or depth[above] + 1 >= len(text):
            continue
        if tokens[node] == text[depth[above]]:
            depth[node] = depth[above] + 1
            if depth[node] > depth[end]:
                end = node
    path = [end]
    while path[-1]:
        path.append(parents[path[-1]])
    return path[::-1]


def live(llm: LLM, name: str, records: Sequence[Record], params: SamplingParams, deadline: Deadline) -> Trial:
    """The steps of a candidate run for real on recorded prompts, one after the other, until the deadline. Only what was
    drafted and accepted, and the drafter's own time, are taken from it."""
    parts = preset(name)
    assert parts.drafter is not None
    drafter = Timed(parts.drafter, deadline.clock)
    engine = _engine(llm, parts.with_(drafter=drafter), 1)
    steps: list[Step] = []

    def note(outcome: Outcome) -> None:
        if outcome.verdict is not None:
            stored = len(outcome.rows[0].tokens) - len(outcome.emitted[0]) - 1
            count = _count(outcome.tree)[0]
            steps.append(Step(count, stored, len(outcome.emitted[0]), levels=outcome.tree.depth_bound))

    engine.listen(note)
    done: list[tuple[Step, ...]] = []
    for one in records:
        if done and not deadline.left:
            break
        request = engine.submit(one.prompt.tokens, replace(params, max_tokens=len(one.output)), stream=False)
        drafter.take()
        while not request.finished and (deadline.left or not steps):
            engine.step()
            steps[-1] = replace(steps[-1], draft=drafter.take())
        engine.cancel(request)
        done.append(tuple(steps))
        steps.clear()
    prompts = tuple(one.prompt for one in records[: len(done)])
    return Trial(name, prompts, tuple(done), True, _reads_along(parts))


def _count(tree: DraftTree) -> list[int]:
    """Nodes per row, the root included."""
    if tree.host is not None:
        return [len(tokens) for tokens, _ in tree.host]
    return [1] * tree.shape[0] if tree.shape[1] == 1 else tree.real.sum(1).tolist()


def _engine(llm: LLM, parts: Parts, rows: int) -> Engine:
    return Engine(
        llm.language_model,
        parts,
        tokenizer=llm.tokenizer,
        stop_tokens=llm.engine.stop_tokens,
        limits=replace(llm.limits, max_rows=rows, prefix_entries=0),
        draft_model=None if llm.draft is None else llm.draft.model,
    )
