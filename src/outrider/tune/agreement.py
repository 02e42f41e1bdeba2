"""Chains of a draft model, of every length at once, from one reading of the recorded texts.

A greedy chain drafts its second token behind its first. Where the first is the text's own next token, the second is
what the draft model chooses one position further on in the text, and so on: the draft that starts at a position stands
exactly as far as the draft model's choices go on being the text. One forward over a text therefore tells what chains of
all lengths do, at temperature 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from outrider.draft.model import DraftModel
from outrider.model.base import Block
from outrider.policy.cost import DraftCost
from outrider.policy.fixed import Fixed
from outrider.tree.grow import Chain
from outrider.tune.predict import draft_cost
from outrider.tune.timing import Deadline
from outrider.tune.trial import Record, Step, Trial, replay, replayable

if TYPE_CHECKING:
    from outrider.model.base import LanguageModel
    from outrider.params import SamplingParams
    from outrider.parts import Parts
    from outrider.run.llm import LLM

_CHUNK = 2048
"""Tokens of a prompt that are read in one forward."""
_PROBE = "spec-decode(depth=2)"
"""What a level costs is measured with this preset, run for real on the first texts."""


@dataclass(frozen=True)
class Agreement:
    """``hits[i]``: token i of the record's output is what the draft model would have drafted there."""

    record: Record
    hits: tuple[bool, ...]


def depth_of(parts: Parts, params: SamplingParams) -> int | None:
    """The length of the chains that these parts draft with the second model; None where they do anything else."""
    drafter, policy = parts.drafter, parts.policy
    if not isinstance(drafter, DraftModel) or drafter.model is not None or not isinstance(drafter.structure, Chain):
        return None
    if not isinstance(policy, Fixed) or not params.greedy or not replayable(parts, params):
        return None
    return policy.plan([]).depth


def level_cost(llm: LLM, records: Sequence[Record], params: SamplingParams, deadline: Deadline) -> DraftCost:
    """What the draft model takes per drafted level and per token that it reads."""
    return draft_cost(replay(llm, _PROBE, records, params, deadline), by_level=True)


def agreements(draft: LanguageModel, records: Sequence[Record], vocab: int, deadline: Deadline) -> list[Agreement]:
    """Read ``records`` with the draft model, as many as there is time for. ``vocab`` is the target's."""
    found: list[Agreement] = []
    for one in records:
        tokens = [token if token < draft.vocab_size else 0 for token in (*one.prompt.tokens, *one.output)]
        if found and not deadline.left:
            break
        if draft.max_positions is not None and len(tokens) > draft.max_positions:
            continue
        found.append(Agreement(one, _hits(draft, one, tokens, vocab)))
    return found


def _hits(draft: LanguageModel, one: Record, tokens: list[int], vocab: int) -> tuple[bool, ...]:
    first = len(one.prompt.tokens) - 1
    store = draft.new_store(1, len(tokens))
    store.add()
    for start in range(0, first, _CHUNK):
        block = Block.of_lists([tokens[start : min(first, start + _CHUNK)]], draft.device)
        draft.forward(block, store, logits="none")
        store.extend(0, block.counts)
    logits = draft.forward(Block.of_lists([tokens[first:-1]], draft.device), store).logits
    chosen = logits[0, :, :vocab].argmax(-1).tolist()
    return tuple(choice == token for choice, token in zip(chosen, one.output, strict=True))


def chains(name: str, depth: int, found: Sequence[Agreement], cost: DraftCost, max_tokens: int) -> Trial:
    """The steps of chains of ``depth`` tokens over the texts that were read."""
    steps = tuple(tuple(_steps(one, depth, cost, max_tokens)) for one in found)
    return Trial(name, tuple(one.record.prompt for one in found), steps)


def _steps(one: Agreement, depth: int, cost: DraftCost, max_tokens: int) -> list[Step]:
    prompt, length = len(one.record.prompt.tokens), len(one.hits)
    steps: list[Step] = []
    at = 0
    while at < length:
        drafted = min(depth, max_tokens - at - 1)
        run = next((i for i in range(drafted) if at + i >= length or not one.hits[at + i]), drafted)
        emitted = min(run + 1, length - at)
        seconds = cost.seconds(drafted, 0 if steps else prompt) if drafted else 0.0
        steps.append(Step(1 + drafted, prompt - 1 + at, emitted, seconds, drafted))
        at += emitted
    return steps
