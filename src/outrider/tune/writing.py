"""From what was found to a profile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from outrider import __version__
from outrider.policy.cost import DraftCost
from outrider.provenance import facts, provenance
from outrider.registry import preset
from outrider.tune import profile
from outrider.tune.predict import Check, Prediction, Ranked, choose, draft_cost

if TYPE_CHECKING:
    from outrider.run.llm import LLM
    from outrider.tune.candidates import Candidate, Dropped
    from outrider.tune.curve import Costs
    from outrider.tune.trial import Record, Trial
    from outrider.tune.tuner import Task


@dataclass(frozen=True)
class Findings:
    """Everything that one run of the tuner found."""

    ranking: Sequence[Ranked]
    costs: Costs
    records: Sequence[Record]
    checks: Sequence[Check]
    trials: dict[str, Trial]
    tried: Sequence[Candidate]
    dropped: Sequence[Dropped]
    seconds: float


def as_profile(found: Findings, llm: LLM, task: Task, names: tuple[str, str | None]) -> profile.Profile:
    """The profile; ``names`` are those of the target and of the draft model. One whose choice does not use the draft
    model holds without it as well."""
    chosen = choose(found.ranking)
    target, draft = llm.language_model, None if llm.draft is None else llm.draft.model
    used = draft if any(one.name == chosen.name and one.uses_draft_model for one in found.tried) else None
    known = facts(target)
    return profile.Profile(
        key=profile.key_of(target, used),
        model=names[0],
        draft_model=None if used is None else names[1],
        family=known.family,
        parameters=known.parameters,
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        outrider=__version__,
        preset=chosen.name,
        speedup=chosen.speedup,
        why=why(chosen, found.ranking),
        cost=replace(found.costs.step, drafts=draft_costs(found)).as_dict(),
        host_per_node=found.costs.host_per_node,
        prompt_token=found.costs.prompt_token,
        unrest=found.costs.unrest,
        ranking=[_place(one) for one in found.ranking],
        left_out=[profile.LeftOut(preset=one.name, reason=one.reason) for one in found.dropped],
        workload=profile.Workload(
            source=task.suite.name if task.suite.version == "0" else f"{task.suite.name} {task.suite.version}",
            recorded=len(found.records),
            checked=found.checks[0].prompts if found.checks else 0,
            tokens=sum(len(one.output) for one in found.records),
            max_tokens=task.max_tokens,
            temperature=task.temperature,
        ),
        seconds=found.seconds,
        provenance=provenance(target=target, draft=draft).as_dict(),
    )


def draft_costs(found: Findings) -> dict[str, DraftCost]:
    """Per drafter that was tried alone, the cost of the setting that did best."""
    costs: dict[str, DraftCost] = {}
    by_name = {one.name: one for one in found.tried}
    for one in found.ranking:
        candidate = by_name.get(one.name)
        if candidate is None or candidate.combined or "+" in one.name:
            continue
        drafter = preset(one.name).drafter
        if drafter is not None and drafter.name not in costs:
            costs[drafter.name] = draft_cost(found.trials[one.name], candidate.uses_draft_model)
    return costs


def why(chosen: Ranked, ranking: Sequence[Ranked]) -> str:
    """The choice in one sentence."""
    if chosen.name == "plain":
        best = next((one for one in ranking if one.name != "plain"), None)
        tail = "" if best is None else f"; the nearest is {best.name} with {best.speedup:.2f} times its speed"
        return f"no candidate is worth it: plain decoding is the fastest here{tail}"
    if chosen.check is None:
        return f"predicted to be {chosen.speedup:.2f} times as fast as plain decoding; it was not checked"
    return (
        f"believed to be {chosen.speedup:.2f} times as fast as plain decoding: "
        f"predicted {chosen.predicted.speedup:.2f}, measured {chosen.check.speedup:.2f}"
    )


def _place(one: Ranked) -> profile.Place:
    check = one.check
    measured = None
    if check is not None:
        measured = profile.Measured(
            tokens_per_second=check.tokens_per_second,
            speedup=check.speedup,
            prompts=check.prompts,
            predicted=_forecast(check.predicted),
            error=check.error,
            speedup_error=check.speedup_error,
        )
    return profile.Place(preset=one.name, speedup=one.speedup, predicted=_forecast(one.predicted), measured=measured)


def _forecast(one: Prediction) -> profile.Forecast:
    return profile.Forecast(
        tokens_per_second=one.tokens_per_second,
        speedup=one.speedup,
        mean_accepted_length=one.mean_accepted_length,
        mean_nodes=one.mean_nodes,
        seconds=one.seconds,
        prompts=one.prompts,
        source="run" if one.live else "replay",
    )
