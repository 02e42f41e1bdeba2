"""The harness: every preset answers every prompt, prompt by prompt, in rotating order, over weights loaded once.

>>> from outrider import LLM, SamplingParams
>>> from outrider.bench import bench
>>> from outrider.testing.tiny import tiny_model, tiny_tokenizer
>>> llm = LLM(tiny_model(), tokenizer=tiny_tokenizer())  # or any other: LLM("smollm2-135m")
>>> result = bench(llm, ["count: one two three", "abcabcabc"], "pld,sam", SamplingParams(max_tokens=16))
>>> [(each.name, each.identical) for each in result.presets]
[('plain', 1.0), ('pld', 1.0), ('sam', 1.0)]
>>> result.preset("sam").speedup > 0, result.preset("sam").tokens_per_second > 0
(True, True)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from outrider.bench.assemble import Measured, assemble
from outrider.bench.choose import ALL, choose, split
from outrider.bench.journal import Entry, Journal
from outrider.bench.observe import Memory
from outrider.bench.paired import LEVEL, RESAMPLES
from outrider.bench.records import compared, jsonable, make_record, promised
from outrider.bench.result import BASELINE, BenchResult, LeftOut, Settings
from outrider.bench.runners import WARM_UP, Answer, Conversation, PresetRunner, Runner
from outrider.bench.suite import Suite, SuitePrompt
from outrider.errors import CacheFull, ConfigError, RequestError, check_number
from outrider.params import SamplingParams
from outrider.provenance import Provenance, provenance

if TYPE_CHECKING:
    from outrider.bench.peers import PeerRunner
    from outrider.run.llm import LLM

ORDER = "rotated by one from turn to turn, and reversed every other round"
_FOR_PEERS = {"max_tokens", "temperature", "seed", "ignore_eos"}
_UNSERVED = (RequestError, CacheFull)
_SEED = 0
"""Where something is drawn and no seed was given: two results of one command should be of the same texts."""


@dataclass(frozen=True)
class Options:
    """How to measure. ``repeats``: passes over all prompts, each with new engines, as if it were the only one.
    ``fresh``: new engines for every prompt, so that nothing learnt carries over."""

    repeats: int = 1
    fresh: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.repeats, int):
            check_number("repeats", self.repeats, 1)
        else:
            raise ConfigError(f"repeats={self.repeats!r}", hint="Give a whole number of at least 1.")


@dataclass(frozen=True)
class Step:
    """Progress: ``done`` of ``total`` answers are there, and ``who`` is about to answer ``prompt``."""

    done: int
    total: int
    prompt: str
    who: str


Tell = Callable[[Step], None]


def bench(
    llm: LLM,
    prompts: Suite | Sequence[str],
    presets: str | Sequence[str] = ALL,
    params: SamplingParams | None = None,
    options: Options | None = None,
) -> BenchResult:
    """Measure ``presets`` on ``prompts`` with the model that ``llm`` holds, beside plain decoding.

    ``prompts`` is a suite (``load_suite``) or texts, each one user message. ``presets`` are names, combinations or
    ``"all"``. ``params`` default to the suite's own length at temperature 0. The preset of ``llm`` plays no part.
    Raises ``ConfigError`` (unknown preset, nothing to measure) and ``IncompatibleParts`` before anything is measured.
    """
    harness = Harness(llm, prompts, presets, params, options)
    harness.run()
    return harness.result()


class Harness:
    """What ``bench`` does, in pieces: build (which refuses what cannot be run), ``run``, ``result``.

    ``run`` may be interrupted at any moment; ``result`` is then that of the prompts which are complete. ``peers`` are
    other programs (``bench.peers``), ready to run. ``left_out`` may be added to.
    """

    def __init__(
        self,
        llm: LLM,
        prompts: Suite | Sequence[str],
        presets: str | Sequence[str] = ALL,
        params: SamplingParams | None = None,
        options: Options | None = None,
        *,
        limit: int | None = None,
        peers: Sequence[PeerRunner] = (),
    ) -> None:
        self.llm, self.options, self.limit = llm, options or Options(), limit
        self.suite = prompts if isinstance(prompts, Suite) else as_suite(prompts)
        self.params = seeded(params or SamplingParams(max_tokens=self.suite.max_tokens))
        if self.params.n != 1:
            raise ConfigError(f"n is {self.params.n}", why="one answer per prompt is measured", hint="Leave n out.")
        built: dict[str, PresetRunner] = {}

        def build(spec: str) -> None:
            built[spec] = PresetRunner(llm, spec)

        specs = split(presets) if isinstance(presets, str) else list(presets)
        self.chosen = choose(specs, draft_model=llm.draft is not None, try_out=build)
        if BASELINE not in built:
            build(BASELINE)
        self.presets = [built[spec] for spec in self.chosen.presets]
        self._baseline = built[BASELINE].llm
        self.peers = list(peers)
        self.left_out = list(self.chosen.left_out)
        if self.peers:
            check_params_for_peers(self.params)
        self._measured = Measured({runner.name: [] for runner in self.runners})
        self._memory = Memory(llm.language_model.device)

    @property
    def runners(self) -> list[Runner]:
        """Everybody who answers, the baseline first."""
        return [*self.presets, *self.peers]

    @property
    def settings(self) -> Settings:
        """How it is measured, as the result will say."""
        given = {f.name: getattr(self.params, f.name) for f in fields(self.params) if f.name != "max_tokens"}
        defaults = SamplingParams()
        limits, options = self.llm.limits, self.options
        return Settings(
            model=self.llm.language_model.name,
            draft_model=None if self.llm.draft is None else self.llm.draft.model.name,
            presets=[runner.name for runner in self.presets],
            peers=[runner.name for runner in self.peers],
            max_tokens=self.params.max_tokens,
            params={name: jsonable(value) for name, value in given.items() if value != getattr(defaults, name)},
            temperature=self.params.temperature,
            seed=self.params.seed,
            threads=torch.get_num_threads(),
            max_context=limits.max_context,
            batch_size=1,
            repeats=options.repeats,
            fresh=options.fresh,
            order=ORDER,
            warm_up=f"{WARM_UP} tokens of the last prompt, with engines that are thrown away",
            level=LEVEL,
            resamples=RESAMPLES,
        )

    def journal(self, path: str | Path, facts: Provenance, restart: bool = False) -> Journal:
        """The file in which an interrupted run keeps its results; ``facts`` are those of ``facts()``. Raises
        ``ConfigError`` if it holds results of another measurement."""
        settings = self.settings.model_dump(mode="json")
        settings |= {
            "suite": f"{self.suite.name} {self.suite.version}",
            "suite sha256": self.suite.sha256,
            "prompts": hashlib.sha256(json.dumps([prompt.id for prompt in self.suite.prompts]).encode()).hexdigest(),
            "outrider": facts.outrider,
            "machine": [facts.machine[name] for name in ("cpu", "cores", "gpu")],
        }
        for role, model in facts.models.items():
            settings |= {f"{role} {name}": getattr(model, name) for name in ("sha256", "dtype", "device")}
        for peer in (runner.peer for runner in self.peers):
            settings[peer.name] = f"{peer.library} {peer.version}"
        about = {"commit": facts.commit, "made_at": facts.made_at}
        return Journal.open(path, settings, about, restart)

    def facts(self) -> Provenance:
        """Machine, libraries, models (reads all weights once for their hashes)."""
        draft = None if self.llm.draft is None else self.llm.draft.model
        return provenance(target=self.llm.language_model, draft=draft)

    @property
    def prompts_done(self) -> int:
        """Prompts that are complete, those of every pass counted."""
        return len(self._measured.prompts)

    @property
    def prompts_total(self) -> int:
        return self.options.repeats * len(self.suite.prompts)

    # -- measuring ------------------------------------------------------------------------------------------

    def run(self, journal: Journal | None = None, tell: Tell | None = None) -> None:
        """Measure what ``journal`` does not hold yet, adding each prompt to it; ``tell`` hears of every answer before
        it is begun. Raises ``ConfigError`` if no prompt can be answered at all."""
        done = set()
        for entry in journal.entries if journal is not None else ():
            self._measured.add(entry)
            done.add((entry.run, entry.prompt))
        if journal is not None and journal.resumed_from is not None:
            self._measured.resumed(len(done), journal.resumed_from)
        cost = {prompt.id: len(prompt.turns) * len(self.runners) for prompt in self.suite.prompts}
        progress = _Progress(tell, self.options.repeats * sum(cost.values()), sum(cost[prompt] for _, prompt in done))
        if len(done) < self.prompts_total:
            self._warm_up()
        for run in range(self.options.repeats):
            for index, prompt in enumerate(self.suite.prompts):
                if index == 0 or self.options.fresh:
                    self._renew()
                if (run, prompt.id) in done:
                    continue
                entry = self._prompt(run, index, prompt, progress)
                self._measured.add(entry)
                if journal is not None:
                    journal.append(entry)
                progress.finished(cost[prompt.id])
        if not self._measured.records[BASELINE]:
            reasons = "; ".join(f"{failure.name}: {failure.reason}" for failure in self._measured.failures[:3])
            raise ConfigError("no prompt could be answered", why=reasons)

    def _renew(self) -> None:
        for runner in self.runners:
            runner.renew()

    def _warm_up(self) -> None:
        """Everybody answers a few tokens, untimed, with engines that the first pass replaces."""
        params = SamplingParams(max_tokens=WARM_UP, ignore_eos=True)
        try:
            prompt = Conversation(self.llm, self.suite.prompts[-1]).ids(0)
            for runner in self.runners:
                runner.answer(prompt, params)
        except _UNSERVED:
            pass  # this prompt will be met again, and reported

    def _prompt(self, run: int, index: int, prompt: SuitePrompt, progress: _Progress) -> Entry:
        """All turns of one prompt, everybody reading the same tokens: the answers of the baseline are fed back."""
        conversation = Conversation(self.llm, prompt)
        entry = Entry(run=run, prompt=prompt.id, records={runner.name: [] for runner in self.runners})
        for turn in range(len(prompt.turns)):
            name = prompt.id if len(prompt.turns) == 1 else f"{prompt.id}, turn {turn + 1}"
            try:
                ids = conversation.ids(turn)
                answers = self._turn(ids, rotated(self.runners, index + turn + run), name, progress, entry)
            except _UNSERVED as error:
                entry.failures.append(LeftOut(name=name, reason=str(error)))
                break
            _, plain = answers[BASELINE]
            for runner in self.runners:
                if runner.name not in answers:
                    continue
                place, answer = answers[runner.name]
                record = make_record(prompt, (turn, run, place), ids, answer)
                if promised(runner.guarantee, self.params):
                    record = compared(record, ids, plain, self._baseline, self.params, runner.guarantee)
                else:
                    record = record.model_copy(update={"compared": False})
                entry.records[runner.name].append(record)
            conversation.feed(plain.text)
        return entry

    def _turn(
        self, ids: list[int], order: Sequence[Runner], name: str, progress: _Progress, entry: Entry
    ) -> dict[str, tuple[int, Answer]]:
        """(place, answer) by name. A peer that fails is left out of this turn; a preset that fails ends the prompt."""
        answers: dict[str, tuple[int, Answer]] = {}
        for place, runner in enumerate(order):
            progress.now(name, runner.name)
            self._memory.reset()
            try:
                answers[runner.name] = (place, runner.answer(ids, self.params))
            except _UNSERVED as error:
                if runner not in self.peers:
                    raise RequestError(f"{runner.name}: {error}") from None
                entry.failures.append(LeftOut(name=f"{name}, {runner.name}", reason=str(error)))
                continue
            peak = self._memory.peak()
            if peak is not None:
                entry.peaks[runner.name] = max(peak, entry.peaks.get(runner.name) or 0)
        return answers

    def result(self, facts: Provenance | None = None) -> BenchResult:
        """Of what has been measured so far. Raises ``ConfigError`` if that is nothing."""
        if not self._measured.records[BASELINE]:
            raise ConfigError("nothing was measured", hint="Run it first.")
        return assemble(self, self._measured, facts or self.facts())


class _Progress:
    """Counts answers; a prompt that ends early still counts in full."""

    def __init__(self, tell: Tell | None, total: int, done: int) -> None:
        self._tell, self._total, self._done, self._begun = tell, total, done, 0

    def now(self, prompt: str, who: str) -> None:
        if self._tell is not None:
            self._tell(Step(self._done + self._begun, self._total, prompt, who))
        self._begun += 1

    def finished(self, answers: int) -> None:
        self._done, self._begun = self._done + answers, 0


def rotated(runners: Sequence[Runner], turn: int) -> list[Runner]:
    """The order of turn number ``turn``: everybody is at every place equally often, behind each neighbour as well."""
    shift = turn % len(runners)
    order = [*runners[shift:], *runners[:shift]]
    return order[::-1] if turn // len(runners) % 2 else order


def as_suite(prompts: Sequence[str], name: str = "prompts") -> Suite:
    """Texts as a suite, each one user message."""
    if isinstance(prompts, str) or not prompts or not all(isinstance(text, str) and text.strip() for text in prompts):
        raise ConfigError("prompts must be a list of texts", hint='Give ["one", "two"], or a suite: load_suite(...).')
    return Suite(
        name=name,
        version="0",
        sha256=hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest(),
        about=f"{len(prompts)} texts",
        max_tokens=SamplingParams().max_tokens,
        prompts=tuple(
            SuitePrompt(id=str(number), category=name, group=name, turns=(text,))
            for number, text in enumerate(prompts, 1)
        ),
    )


def seeded(params: SamplingParams) -> SamplingParams:
    """The same with a seed, so that everybody draws alike."""
    return params if params.greedy or params.seed is not None else replace(params, seed=_SEED)


def check_params_for_peers(params: SamplingParams) -> None:
    """Raise ``ConfigError`` for sampling that other programs do not do the same way."""
    default = SamplingParams()
    asked = [
        f.name
        for f in fields(params)
        if f.name not in _FOR_PEERS and getattr(params, f.name) != getattr(default, f.name)
    ]
    if asked or not params.greedy:
        what = ", ".join(asked) or f"temperature={params.temperature:g}"
        raise ConfigError(f"peers with {what}", why="they are measured at temperature 0", hint="Leave one of them out.")
