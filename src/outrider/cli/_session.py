"""What ``outrider chat`` keeps and does: the messages, the commands, one answer at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from outrider.cli._answer import Answer, decode
from outrider.cli._common import Screens, print_json, suggest
from outrider.cli._open import Opened
from outrider.cli._paint import Palette, Runs, Writer
from outrider.errors import ConfigError, RequestError, SpecError

if TYPE_CHECKING:
    from outrider.params import SamplingParams
    from outrider.run.request import Stats

HELP = {
    "/help": "this list",
    "/reset": "forget the conversation",
    "/stats": "speed and acceptance so far",
    "/preset NAME": "decode with another preset from here on",
    "/save FILE": "write the conversation as JSON",
    "/exit": "leave (or Ctrl-D)",
}


class Session:
    """A conversation with one model. The last answer's keys and values stay, so that only what is new is read."""

    def __init__(
        self,
        opened: Opened,
        params: SamplingParams,
        screens: Screens,
        system: str | None = None,
        as_json: bool = False,
    ) -> None:
        self.opened, self.params, self.screens, self.as_json = opened, params, screens, as_json
        self.palette = Palette(opened.drafter)
        self._start = [] if system is None else [{"role": "system", "content": system}]
        self.messages = list(self._start)
        self.answered: list[Stats] = []

    def check(self) -> None:
        """Refuse what a conversation cannot do."""
        if not getattr(self.opened.llm.tokenizer, "chat_template", None):
            raise ConfigError(
                f"model {self.opened.model!r} has no chat template",
                why="it was not made for conversations",
                hint="Use outrider run --raw, or a model with a template.",
            )
        if self.params.logprobs is not None:
            raise ConfigError("logprobs are not shown in a conversation", hint="Use outrider run --json.")

    # -- messages -----------------------------------------------------------------------------------------

    def say(self, text: str) -> Answer | None:
        """Answer one message. A request that cannot be served is explained and leaves the conversation as it was."""
        messages = [*self.messages, {"role": "user", "content": text}]
        try:
            tokens = self.opened.llm.encode(messages)
            answer, runs = self._decode(tokens)
        except RequestError as error:
            self.screens.note(f"error: {error}", "red")
            if len(self.messages) > len(self._start):
                self.screens.note("The message was not added. /reset forgets the conversation and makes room.")
            return None
        self.messages = [*messages, {"role": "assistant", "content": answer.text}]
        self.answered.append(answer.stats)
        self._report(answer, runs)
        if answer.broken:
            self._renew(self.opened.preset)
        return answer

    def _decode(self, tokens: list[int]) -> tuple[Answer, Runs]:
        runs = Runs(self.opened.llm.tokenizer)
        if self.as_json:
            return decode(self.opened.llm, tokens, self.params), runs
        writer = Writer(self.screens.out, self.palette)
        answer = decode(self.opened.llm, tokens, self.params, lambda emission: writer.write(runs.take(emission)))
        writer.end()
        return answer, runs

    def _report(self, answer: Answer, runs: Runs) -> None:
        stats = answer.stats
        if self.as_json:
            fields = {"text": answer.text, "token_ids": answer.token_ids, "finish_reason": answer.finish_reason}
            print_json({**fields, "stats": stats.as_dict(), "preset": self.opened.preset, "model": self.opened.model})
        else:
            from outrider.cli._report import legend

            self.screens.out.file.flush()
            line = legend(runs.counts, self.palette)
            line.append(("   " if line else "") + _line(stats), "dim")
            self.screens.err.print(line)
        if answer.interrupted:
            self.screens.note("interrupted; the conversation goes on from here", "yellow")
        elif answer.context_full:
            self.screens.note(f"{answer.ending()}: /reset forgets the conversation and makes room", "yellow")
        elif answer.finish_reason == "length":
            self.screens.note(answer.ending())

    # -- commands -----------------------------------------------------------------------------------------

    def command(self, text: str) -> bool:
        """Do what a line like ``/save talk.json`` says; False to leave."""
        word, _, rest = text.partition(" ")
        actions: dict[str, Callable[[str], None]] = {
            "/help": self._help,
            "/reset": self._reset,
            "/stats": self._stats,
            "/preset": self._preset,
            "/save": self._save,
        }
        if word in ("/exit", "/quit", "/bye"):
            return False
        if word not in actions:
            self.screens.note(f"no command {word}: {suggest(word, [*actions, '/exit'])}", "red")
            return True
        try:
            actions[word](rest.strip())
        except SpecError as error:
            self.screens.note(f"error: {error}", "red")
        return True

    def _help(self, _: str) -> None:
        for command, what in HELP.items():
            self.screens.note(f"{command:<14}{what}", "none")
        self.screens.note('Several lines: paste them, or write """ before the first and after the last.')

    def _reset(self, _: str) -> None:
        self.messages = list(self._start)
        self.screens.note("the conversation is forgotten")

    def _stats(self, _: str) -> None:
        from outrider.run.request import Stats

        if not self.answered:
            self.screens.note("nothing was answered yet")
            return
        whole = Stats.total(self.answered)
        whole.prompt_tokens = sum(stats.prompt_tokens for stats in self.answered)
        whole.reused_tokens = sum(stats.reused_tokens for stats in self.answered)
        self.screens.note(f"{len(self.answered)} answers, {whole.emitted_tokens} tokens: {_line(whole)}", "none")
        from outrider.cli._report import histogram, split

        if whole.accepted_tokens:
            histogram(self.screens.err, whole.acceptance_histogram)
        self.screens.note(f"time      {split(whole)}", "none")

    def _preset(self, name: str) -> None:
        if not name:
            self.screens.note(f"the preset is {self.opened.preset}; /preset NAME changes it", "none")
            return
        self._renew(name)
        self.screens.note(f"from here on with {self.opened.preset}")

    def _renew(self, preset: str) -> None:
        """A fresh engine over the same weights."""
        with self.screens.err.status("starting") if not self.as_json else nullcontext():
            self.opened = replace(self.opened, llm=self.opened.again(preset), preset=preset)

    def _save(self, name: str) -> None:
        if not name:
            raise ConfigError("/save needs the name of a file", hint="Write /save talk.json.")
        path = Path(name).expanduser()
        record = {"model": self.opened.model, "preset": self.opened.preset, "messages": self.messages}
        try:
            with path.open("x", encoding="utf-8") as file:
                json.dump(record, file, indent=2, ensure_ascii=False)
                file.write("\n")
        except FileExistsError:
            raise ConfigError(f"{name} exists", hint="Choose another name.") from None
        except OSError as error:
            raise ConfigError(f"{name} cannot be written: {error.strerror or error}") from None
        self.screens.note(f"saved {len(self.messages)} messages to {name}")


def _line(stats: Stats) -> str:
    """The figures of one answer on one line."""
    read = f"prompt {stats.prompt_tokens} ({stats.reused_tokens} reused)"
    return f"{stats.tokens_per_second:.1f} tokens/s · {stats.mean_accepted_length:.2f} per call · {read}"
