"""From an answer to its record: figures as they are, identity where it is promised."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from outrider.bench.result import FirstDifference, Record
from outrider.types import Guarantee

if TYPE_CHECKING:
    from outrider.bench.runners import Answer
    from outrider.bench.suite import SuitePrompt
    from outrider.params import SamplingParams
    from outrider.run.llm import LLM


def make_record(prompt: SuitePrompt, where: tuple[int, int, int], ids: Sequence[int], answer: Answer) -> Record:
    """``where`` is turn, run and place; ``ids`` are the tokens that were read."""
    turn, run, place = where
    measured = {f.name: getattr(answer, f.name) for f in fields(answer) if f.name != "text"}
    return Record(
        prompt=prompt.id,
        category=prompt.category,
        group=prompt.group,
        turn=turn,
        run=run,
        place=place,
        prompt_tokens=len(ids),
        **measured,
    )


def promised(guarantee: Guarantee, params: SamplingParams) -> bool:
    """Whether an answer with this guarantee must be, token for token, the plain one."""
    return guarantee is Guarantee.IDENTICAL or (params.greedy and guarantee is Guarantee.EXACT)


def compared(
    record: Record, prompt: list[int], plain: Answer, baseline: LLM, params: SamplingParams, guarantee: Guarantee
) -> Record:
    """With the first difference from the ``plain`` answer, told apart; ``baseline`` decodes plainly."""
    if record.token_ids == plain.token_ids:
        return record
    from outrider.certify import identity

    found = identity.classify(baseline, prompt, record.token_ids, plain.token_ids, params, guarantee)
    if found is None:
        return record

    def text(token: int | None) -> str:
        known = token is not None and baseline.tokenizer is not None
        return str(baseline.tokenizer.decode([token])) if known else ""

    difference = FirstDifference(
        position=found.position,
        found=found.found,
        wanted=found.wanted,
        gap=_finite(found.gap),
        tolerance=_finite(found.tolerance),
        kind=found.kind,
        variation=_finite(found.variation),
        reason=found.reason,
        found_text=text(found.found),
        wanted_text=text(found.wanted),
    )
    return record.model_copy(update={"difference": difference})


def jsonable(value: Any) -> Any:
    """As JSON will bring it back; objects and infinite numbers by their names."""
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, dict):
        return {str(key): jsonable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(each) for each in value]
    return value if isinstance(value, str | int | float | bool | None) else repr(value)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
