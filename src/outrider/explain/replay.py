"""Decoding a recorded prompt again, with other drafters and policies, without the target.

``RecordedModel`` stands in for the target, so that the engine, the verifier and the listeners are the very ones that
decode live; there is no second loop. Why the result is what a live run gives:

* Let the text be w, of which the root of a draft is token i. ``Match`` accepts a node only if it and all its ancestors
  are the target's choices at their parents, and the choice behind a prefix of w is a function of that prefix and of
  the position's draw alone: it is the next token of w. So an accepted node spells out w from the root on, by
  induction over its depth, and the target's answer behind it is one of the recorded rows. The token behind the
  accepted path comes from such a row as well.
* A node that leaves w at some ancestor (or itself) is never accepted, whatever the target would have said there. Its
  row is -inf throughout: no law, from which ``Warped`` chooses the token -1, which equals no drafted one. Should a
  walk ever reach such a row, the engine would end the request with an error rather than invent a token.
* Drafters and policies see tokens, trees, verdicts, and the law along the accepted path, all of it as in the live run.
  Those that ask for more (``Needs``: logits of all nodes, rejected ones included; hidden states; a draft model that is
  not there) are refused by name.

With a rule that flips coins the first point fails at temperatures above 0, and such presets are refused there; at
temperature 0 these rules are ``Match``. Policies that adapt to what steps cost would see what the stand-in costs, and
are refused too. "Live" means the target whose answers were recorded: in half precision a real forward of another shape
may break a tie between two logits the other way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from outrider.cache.base import KVStore
from outrider.draft.base import Drafter
from outrider.draft.mix import leaves
from outrider.errors import CacheFull, IncompatibleParts, ModelError
from outrider.explain.record import Explanation
from outrider.explain.trace import Trace, check_rule
from outrider.explain.watch import Explainer, Labels
from outrider.explain.words import Texts
from outrider.model.base import Block, LanguageModel, ModelOutput
from outrider.parts import Parts
from outrider.registry import needs as needs_of
from outrider.registry import preset as build_preset
from outrider.run.engine import Engine
from outrider.run.request import Request
from outrider.run.scheduler import Limits


class RecordedStore(KVStore):
    """Remembers how many tokens each row has, which is all that a recorded target asks."""

    branching = True

    def __init__(self, max_rows: int, max_slots: int) -> None:
        self.max_rows, self.max_slots = max_rows, max_slots
        self.rows = 0
        self.lengths: list[int] = []

    @property
    def next_positions(self) -> list[int]:  # type: ignore[override]
        return self.lengths

    def add(self, count: int = 1) -> int:
        if self.rows + count > self.max_rows:
            raise CacheFull(f"{self.rows + count} rows in a store of {self.max_rows}", hint="Submit fewer requests.")
        first, self.rows = self.rows, self.rows + count
        self.lengths += [0] * count
        return first

    def reserve(self, first_row: int, batch: int, n: int, offset: int = 0) -> None:
        need = max(self.lengths[first_row : first_row + batch]) + offset + n
        if need > self.max_slots:
            raise CacheFull(f"{need} tokens in a store of {self.max_slots} slots per row", hint="Draft less.")

    def extend(self, first_row: int, counts: Sequence[int]) -> None:
        for row, count in enumerate(counts, start=first_row):
            self.lengths[row] += int(count)

    def commit(self, path: Tensor, counts: Sequence[int]) -> None:
        self.extend(0, counts)

    def rewind(self, lengths: Sequence[int]) -> None:
        self.lengths = [min(pair) for pair in zip(self.lengths, lengths, strict=True)]

    def fork(self, row: int) -> int:
        clone = self.add()
        self.lengths[clone] = self.lengths[row]
        return clone

    def free(self, row: int) -> None:
        self.rows -= 1
        last = self.lengths.pop()
        if row < self.rows:
            self.lengths[row] = last


class RecordedModel(LanguageModel):
    """Answers what was recorded where a node continues the recorded text, and nothing (-inf) elsewhere."""

    def __init__(self, trace: Trace) -> None:
        header = trace.header
        self.trace = trace
        self.name = f"{header.model} (recorded)"
        self.vocab_size, self.branching = header.vocab_size, header.branching
        self.max_positions: int | None = header.max_context
        self.device, self.dtype = torch.device("cpu"), getattr(torch, header.dtype, trace.logits.dtype)
        self._text = torch.tensor([*trace.prompt, *trace.tokens, -1])  # nothing continues the last token
        self._offset = len(trace.prompt) - 1
        self._silence = torch.full((1, 1, self.vocab_size), -torch.inf, dtype=trace.logits.dtype)

    def new_store(self, max_rows: int, max_slots: int) -> RecordedStore:
        return RecordedStore(max_rows, max_slots)

    def forward(
        self,
        block: Block,
        store: KVStore,
        *,
        first_row: int = 0,
        capture: tuple[int, ...] = (),
        logits: Literal["all", "none"] | int = "all",
    ) -> ModelOutput:
        """See ``LanguageModel``. Nothing can be captured."""
        (b, n), vocab = block.shape, self.vocab_size
        store.reserve(first_row, b, n, block.offset)
        if logits == "none":
            return ModelOutput(self._silence[:, :0].expand(b, 0, vocab))
        answers = [self._row(block, row, store.lengths[first_row + row]) for row in range(b)]
        found = answers[0] if b == 1 else torch.cat(answers)
        return ModelOutput(found if logits == "all" else found[:, -logits:])

    def _row(self, block: Block, row: int, past: int) -> Tensor:
        """f[1,N,V]: the recorded answers behind the nodes of one row."""
        n = block.shape[1]
        depth = torch.arange(n) if block.depth is None else block.depth[row]
        at = past + depth
        inside = at < len(self._text) - 1
        same = inside & (block.tokens[row] == self._text[at.clamp(max=len(self._text) - 1)])
        if block.ancestors is None:
            on_path = same.cumprod(0).bool()
        else:
            on_path = ~(block.ancestors[row] & ~same).any(-1)
        answer = at - self._offset
        known = on_path & (answer >= 0) & (answer < len(self.trace.tokens))
        if n == 1 and bool(known[0]):
            return self.trace.logits[None, answer]
        out = self._silence.repeat(1, n, 1)
        out[0, known] = self.trace.logits[answer[known]]
        return out


def replay_parts(trace: Trace, preset: str, draft_model: LanguageModel | None = None) -> Parts:
    """Fresh parts of ``preset``. Raises ``IncompatibleParts`` naming the part and what the trace does not hold."""
    parts = build_preset(preset)
    check_rule(parts, trace.params)
    for part in [*leaves(parts.drafter)] if parts.drafter is not None else []:
        _check_part(part)
    if parts.policy.core() is not parts.policy:
        name = type(parts.policy).__name__
        raise _refused(
            parts.name,
            f"the target's own times, which its policy {name} follows",
            hint=f"Replay what {name} would choose from, for example 'sam', or run it live.",
        )
    needs = parts.verifier.needs
    if needs.hidden:
        raise _refused(type(parts.verifier).__name__, "hidden states of the target, which a trace does not hold")
    if draft_model is None:
        _check_gifts(preset)
    return parts


def _check_part(part: Drafter) -> None:
    needs = part.needs
    if needs.hidden:
        raise _refused(part.name, f"hidden states of the target (layers {needs.hidden}), which a trace does not hold")
    if needs.prefill_logits:
        raise _refused(part.name, "the target's logits at every token of the prompt, which a trace does not hold")
    if needs.logits:
        raise _refused(
            part.name,
            "the target's logits behind rejected tokens, too",
            "A trace holds them along the emitted text only, since other drafts ask about other tokens",
        )


def _check_gifts(preset: str) -> None:
    """Refuse presets that need a second model, which a trace is not."""
    for need, name in needs_of(preset).items():
        what = need.replace("_", " ")
        raise _refused(name, f"a {what}, which a trace does not hold", hint=f"Give --{need.replace('_', '-')}.")


def _refused(name: str, needs: str, why: str = "", hint: str = "") -> IncompatibleParts:
    return IncompatibleParts(
        f"{name!r} cannot be replayed: it needs {needs}",
        why=why,
        hint=hint or "Run it live, or replay a drafter that reads the text alone, like 'pld' or 'sam'.",
    )


class Replay:
    """One preset over one trace: ``run`` decodes to the end of the recorded text. Raises what ``replay_parts`` does."""

    def __init__(self, trace: Trace, preset: str, draft_model: LanguageModel | None = None) -> None:
        header = trace.header
        self.trace, self.preset = trace, preset
        parts = replay_parts(trace, preset, draft_model)
        self.engine = Engine(
            RecordedModel(trace),
            parts,
            stop_tokens=header.stop_tokens,
            limits=Limits(max_rows=1, max_context=header.max_context, max_nodes=header.max_nodes),
            draft_model=draft_model,
        )

    def run(self) -> Request:
        """Step until the recorded text is there. Raises ``ModelError`` should it ever come out differently."""
        wanted = list(self.trace.tokens)
        request = self.engine.submit(self.trace.prompt, self.trace.params, stream=False)
        while len(self._tokens(request)) < len(wanted) and not request.finished:
            self.engine.step()
        if not request.finished:  # the recording ended by a stop string, or was interrupted
            self.engine.cancel(request)
        if self._tokens(request) != wanted:
            raise ModelError(
                f"{self.preset!r} does not reproduce the recorded text",
                why="The trace's tokens and logits do not belong together",
                hint="Record it again.",
            )
        return request

    @staticmethod
    def _tokens(request: Request) -> list[int]:
        return request.choices[0].token_ids if request.choices else []


def replay(trace: Trace, preset: str, draft_model: LanguageModel | None = None, tokenizer: Any = None) -> Explanation:
    """What ``preset`` would have done on the recorded prompt, step by step. ``tokenizer`` is asked for the text of
    tokens that are not in prompt or answer (only a draft model drafts such)."""
    header = trace.header
    run = Replay(trace, preset, draft_model)
    labels = Labels(header.model, preset, header.provenance, replayed=True)
    explainer = Explainer(run.engine, labels, Texts(tokenizer, header.texts), header.pieces)
    found = explainer.result(run.run())
    # What the stand-in took says nothing about the target.
    steps = tuple(replace(step, seconds={"draft": step.seconds["draft"]}) for step in found.steps)
    text, reason = header.text, header.finish_reason
    return replace(found, steps=steps, text=text, finish_reason=reason, stop_reason=header.stop_reason)
