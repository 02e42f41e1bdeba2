"""What ``outrider bench`` does between its options and its table: check, load, measure, keep, write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outrider.cli._common import Screens, sampling
from outrider.cli._open import Opened, Source, find_model, open_model
from outrider.errors import ConfigError, check_number

if TYPE_CHECKING:
    from outrider.bench.harness import Harness, Options
    from outrider.bench.journal import Journal
    from outrider.bench.peers import Exports, PeerRunner
    from outrider.bench.result import LeftOut
    from outrider.bench.suite import Suite
    from outrider.cli._bench import Files
    from outrider.params import SamplingParams

_LENGTHS = ("max_tokens", "max_new_tokens", "max_completion_tokens")


@dataclass(frozen=True)
class Task:
    """What is to be measured; everything that can be refused without a model has been."""

    presets: list[str]
    suite: Suite
    limit: int | None
    params: SamplingParams
    options: Options
    exports: Exports | None = None
    """Of the model, in the formats of peers; None: no peers."""

    @classmethod
    def read(
        cls,
        presets: str,
        prompts: tuple[str, Path | None, int | None],
        params: tuple[dict[str, Any], Sequence[str] | None],
        passes: tuple[int, bool],
        draft_model: bool,
    ) -> Task:
        """From the options: presets; suite, data and limit; sampling options and ``--param``; repeats and fresh."""
        name, data, limit = prompts
        given, pairs = params
        for option, value in (("--limit", limit), ("--max-tokens", given["max_tokens"]), ("--repeats", passes[0])):
            check_number(option, 1 if value is None else value, 1)
        wanted = sampling(given, pairs)
        from outrider.bench.choose import choose, split
        from outrider.bench.harness import Options
        from outrider.bench.suite import load_suite

        specs = split(presets)
        choose(specs, draft_model=draft_model)
        suite = load_suite(name, data=data, limit=limit)
        named = {pair.partition("=")[0].strip().replace("-", "_") for pair in pairs or ()}
        if given["max_tokens"] is None and not named & set(_LENGTHS):
            wanted = replace(wanted, max_tokens=suite.max_tokens)
        return cls(specs, suite, limit, wanted, Options(*passes))

    def beside(self, exports: Exports | None) -> Task:
        """The same with peers, if there are ``exports``. Raises ``ConfigError`` for what peers cannot do."""
        from outrider.bench.harness import check_params_for_peers

        if exports is not None:
            check_params_for_peers(self.params)
        return replace(self, exports=exports)


def measure(task: Task, source: Source, files: Files, screens: Screens, restart: bool) -> bool:
    """Run, show and write; whether it was interrupted."""
    from outrider.bench.harness import Harness
    from outrider.cli._bench import progress, show

    opened = open_model(source, screens)
    peers, left_out = ([], []) if task.exports is None else _open_peers(opened, source, task.exports, screens)
    settings = (task.presets, task.params, task.options)
    harness = Harness(opened.llm, task.suite, *settings, limit=task.limit, peers=peers)
    harness.left_out += left_out
    with screens.err.status("reading the weights once more, for their hash"):
        facts = harness.facts()
    screens.note(facts.line())
    journal = None
    if files.partial is not None:
        journal = harness.journal(files.partial, facts, restart)
        if journal.entries:
            screens.note(f"{files.partial} holds {len(journal.entries)} prompts: going on from there", "yellow")
    interrupted = False
    try:
        with progress(screens) as tell:
            harness.run(journal, tell)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        for runner in peers:
            runner.peer.close()
    if interrupted and not harness.prompts_done:
        screens.note("interrupted before the first prompt was complete", "yellow")
        return True
    result = harness.result(facts)
    show(screens.err if files.to_stdout or interrupted else screens.out, screens, result)
    if interrupted:
        _say_what_is_kept(harness, journal, screens)
        return True
    files.write(result)
    if journal is not None:
        journal.remove()
    return False


def find_exports(given: dict[str, Path | None], wanted: bool) -> Exports | None:
    """Where peers find the model, from the options; None where no peers are ``wanted``."""
    from outrider.bench.peers import Exports

    for name, path in given.items():
        option = f"--{name.replace('_', '-')}"
        if path is not None and not wanted:
            raise ConfigError(f"{option} without --peers", hint="Add --peers, or leave it out.")
        if path is not None and not path.exists():
            raise ConfigError(f"{option} {str(path)!r} does not exist")
    return Exports(**given) if wanted else None


def _open_peers(
    opened: Opened, source: Source, exports: Exports, screens: Screens
) -> tuple[list[PeerRunner], list[LeftOut]]:
    """Those that can run, with their weights loaded, and the others with the reason."""
    from outrider.bench.peers import PeerRunner, PeerSetup, list_peers, open_peers

    names = (source.model, source.draft_model)
    paths = [None if name is None else Path(find_model(name, source.catalog, screens)) for name in names]
    folders = [path if path is not None and path.is_dir() else None for path in paths]
    with screens.err.status("loading the peers"):
        ready, left_out = open_peers(list_peers(PeerSetup.of(opened.llm, folders[0], folders[1], exports)))
    engine = opened.llm.engine
    return [PeerRunner(peer, opened.llm.tokenizer, engine.stop_tokens) for peer in ready], left_out


def _say_what_is_kept(harness: Harness, journal: Journal | None, screens: Screens) -> None:
    done = f"interrupted after {harness.prompts_done} of {harness.prompts_total} prompts"
    if journal is None:
        screens.note(f"{done}; give --json FILE to be able to go on after an interruption", "yellow")
    else:
        screens.note(f"{done}, which are kept in {journal.path}: the same command goes on from there", "yellow")
