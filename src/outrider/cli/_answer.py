"""One request from prompt to last token, which Ctrl-C may end early without losing what is there."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from outrider.params import SamplingParams
    from outrider.run.llm import LLM
    from outrider.run.request import Choice, Emission, Request, Stats


@dataclass
class Answer:
    """What was decoded. ``interrupted``: Ctrl-C ended it. ``broken``: inside a step, so that the engine must go."""

    request: Request
    max_context: int
    interrupted: bool = False
    broken: bool = False

    @property
    def choice(self) -> Choice | None:
        """None when it was interrupted before the prompt was read."""
        return self.request.choices[0] if self.request.choices else None

    @property
    def text(self) -> str:
        return self.choice.text if self.choice else ""

    @property
    def token_ids(self) -> list[int]:
        return self.choice.token_ids if self.choice else []

    @property
    def finish_reason(self) -> str | None:
        return "cancelled" if self.interrupted else self.choice.finish_reason if self.choice else None

    @property
    def stats(self) -> Stats:
        from outrider.run.request import Stats

        return self.choice.stats if self.choice else Stats(prompt_tokens=len(self.request.prompt))

    @property
    def context_full(self) -> bool:
        """Whether the context ended the answer, and not ``max_tokens``."""
        return self.finish_reason == "length" and len(self.token_ids) < self.request.params.max_tokens

    def ending(self) -> str:
        """Why it ended, in words."""
        if self.interrupted:
            return "interrupted"
        if self.context_full:
            return f"the context of {self.max_context} tokens is full"
        if self.finish_reason == "length":
            return f"cut at {self.request.params.max_tokens} tokens (--max-tokens)"
        cause = self.choice.stop_reason if self.choice else None
        return f"stopped at {cause!r}" if isinstance(cause, str) else "ended by the model"


class Interrupts:
    """Within it, the first Ctrl-C sets ``asked`` and lets the step finish; the second one interrupts at once."""

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def decode(
    llm: LLM,
    tokens: Sequence[int],
    params: SamplingParams,
    show: Callable[[Emission], None] | None = None,
) -> Answer:
    """Run one request to its end or to Ctrl-C; ``show`` gets every piece. Raises ``RequestError``."""
    engine = llm.engine
    answer = Answer(engine.submit(tokens, params), engine.max_context)
    request = answer.request
    try:
        with Interrupts() as interrupts:
            while not request.finished and not interrupts.asked:
                for emission in engine.step():
                    if emission.request is request and show is not None:
                        show(emission)
    except KeyboardInterrupt:
        answer.interrupted = answer.broken = True
        return answer
    if not request.finished:
        engine.cancel(request)
        answer.interrupted = True
    if answer.choice is not None and answer.choice.error is not None:
        raise answer.choice.error
    return answer
