"""From what was measured to a ``BenchResult``."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from outrider.bench import metrics
from outrider.bench.choose import needs
from outrider.bench.journal import Entry
from outrider.bench.result import BASELINE, BenchResult, LeftOut, PeerResult, PresetResult, Record, SuiteFacts
from outrider.bench.runners import PresetRunner, has_template

if TYPE_CHECKING:
    from outrider.bench.harness import Harness
    from outrider.bench.peers import PeerRunner
    from outrider.bench.suite import Suite
    from outrider.provenance import Provenance


@dataclass
class Measured:
    """What is there so far: answers by preset or peer, prompts that failed, the highest memory."""

    records: dict[str, list[Record]]
    failures: list[LeftOut] = field(default_factory=list)
    peaks: dict[str, int] = field(default_factory=dict)
    prompts: set[tuple[int, str]] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    def add(self, entry: Entry) -> None:
        """One more prompt."""
        for name, records in entry.records.items():
            self.records[name] += records
        self.failures += entry.failures
        self.prompts.add((entry.run, entry.prompt))
        for name, peak in entry.peaks.items():
            if peak is not None:
                self.peaks[name] = max(peak, self.peaks.get(name, 0))

    def resumed(self, prompts: int, about: dict[str, Any]) -> None:
        """Say that ``prompts`` of them come from an earlier attempt."""
        self.notes.append(
            f"Interrupted and resumed: {prompts} prompts were measured from {about['made_at']} on, at commit "
            f"{about['commit'] or 'unknown'}; drafters that learn began anew behind them."
        )


def assemble(harness: Harness, measured: Measured, facts: Provenance) -> BenchResult:
    """The result of everything in ``measured``."""
    notes = _notes(harness) + measured.notes
    if harness.prompts_done < harness.prompts_total:
        notes.append(f"Incomplete: {harness.prompts_done} of {harness.prompts_total} prompts were measured.")
    return BenchResult(
        provenance=facts.as_dict(),
        suite=_suite_facts(harness.suite, harness.limit),
        settings=harness.settings,
        presets=[_preset_result(harness, runner, measured) for runner in harness.presets],
        peers=[_peer_result(runner, measured) for runner in harness.peers],
        left_out=harness.left_out,
        failures=measured.failures,
        notes=notes,
    )


def _preset_result(harness: Harness, runner: PresetRunner, measured: Measured) -> PresetResult:
    records, base = measured.records[runner.name], measured.records[BASELINE]
    return PresetResult(
        **metrics.totals(records, base, BASELINE),
        name=runner.name,
        baseline=BASELINE,
        groups=metrics.grouped(records, base, BASELINE, lambda record: record.group),
        categories=metrics.grouped(records, base, BASELINE, lambda record: record.category),
        peak_memory_bytes=measured.peaks.get(runner.name),
        records=records,
        spec=runner.spec,
        parts=runner.llm.parts.name,
        guarantee=str(runner.guarantee),
        uses_draft_model="draft_model" in needs(runner.spec),
    )


def _peer_result(runner: PeerRunner, measured: Measured) -> PeerResult:
    peer, records = runner.peer, measured.records[runner.name]
    base = measured.records[peer.baseline]
    return PeerResult(
        **metrics.totals(records, base, peer.baseline),
        name=runner.name,
        baseline=peer.baseline,
        groups=metrics.grouped(records, base, peer.baseline, lambda record: record.group),
        categories=metrics.grouped(records, base, peer.baseline, lambda record: record.category),
        peak_memory_bytes=measured.peaks.get(runner.name),
        records=records,
        library=peer.library,
        version=peer.version,
        method=peer.method,
        over_plain=metrics.speedup(records, measured.records[BASELINE], BASELINE),
        notes=peer.notes,
    )


def _suite_facts(suite: Suite, limit: int | None) -> SuiteFacts:
    return SuiteFacts(
        name=suite.name,
        version=suite.version,
        sha256=suite.sha256,
        about=suite.about,
        limit=limit,
        prompts=len(suite.prompts),
        groups=dict(Counter(prompt.group for prompt in suite.prompts)),
    )


def _notes(harness: Harness) -> list[str]:
    """What a reader must know to judge the figures."""
    llm, params = harness.llm, harness.params
    notes = ["One request at a time; every answer reads its whole prompt (nothing is kept of earlier ones)."]
    if harness.options.fresh:
        notes.append("Every prompt got a new engine: drafters that learn began anew each time.")
    else:
        notes.append("One engine per preset served all prompts of a pass: drafters that learn kept what they learnt.")
    if any(len(prompt.turns) > 1 for prompt in harness.suite.prompts):
        notes.append("Between turns the answer of plain decoding was fed back, to every preset alike.")
    if not has_template(llm) and not all(prompt.raw for prompt in harness.suite.prompts):
        notes.append("The model has no chat template: it continued the prompts as they are.")
    if not params.greedy:
        notes.append(
            f"Temperature {params.temperature:g}: `identical` is claimed only for presets that promise it, and with "
            "other presets the texts, hence the prompts of later turns, are other draws from the same distribution."
        )
    if len(harness.suite.prompts) < metrics.FEWEST:
        notes.append(f"Fewer than {metrics.FEWEST} prompts give no interval.")
    if llm.language_model.device.type == "cuda":
        notes.append("On a GPU the parts of the time follow the host: work shows up where the host waits for it.")
    return notes
