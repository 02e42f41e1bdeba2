"""``LLM``: a model, a preset, and text out."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outrider.draft.vocab import check_same_vocabulary
from outrider.errors import ConfigError, RequestError, nearest
from outrider.params import SamplingParams
from outrider.parts import Parts
from outrider.registry import preset as build_preset
from outrider.run.engine import Engine
from outrider.run.request import Emission, Origin, Request, RequestOutput, Stats
from outrider.run.scheduler import Limits

if TYPE_CHECKING:
    from outrider.tune.lookup import Tuned
    from outrider.types import Needs, Outcome

AUTO = "auto"
"""The preset that a tuned profile stands behind, where one fits."""

Message = dict[str, Any]
Prompt = str | Sequence[int] | Sequence[Message]


@dataclass(frozen=True)
class StreamEvent:
    """A piece of a streamed answer. ``text`` may be empty while a character or a stop string is unfinished;
    the last event of a choice has ``finish_reason`` and ``stats``."""

    text: str
    token_ids: list[int]
    origins: list[Origin] = field(default_factory=list)
    choice: int = 0
    finish_reason: str | None = None
    stats: Stats | None = None
    error: RequestError | None = None


class LLM:
    """A language model that decodes speculatively.

    ``model`` and ``draft_model`` are a known name, a hub id, a local folder, a ``.gguf`` file, or a transformers
    model object (used as it is, in its dtype). ``preset`` is a name, a combination like ``"sam|token-recycling"``,
    or ``Parts``; "auto" takes what ``outrider tune`` chose for this model on this machine, where it has. Unless given,
    the first device found (cuda, mps, cpu) is used, and half precision where its hardware multiplies it, float32
    elsewhere. ``limits`` bounds rows and context; ``adapter`` puts a LoRA folder on the target; ``trust_remote_code``
    and ``allow_pickle`` allow what is refused otherwise.

    Raises ``ConfigError`` and ``IncompatibleParts`` for settings that cannot work, ``ModelError`` for models.

    >>> llm = LLM("smollm2-135m")                                            # doctest: +SKIP
    >>> llm.generate("The capital of France is", SamplingParams(max_tokens=8))[0].text  # doctest: +SKIP
    """

    def __init__(
        self,
        model: Any = "smollm2-135m",
        *,
        preset: str | Parts = "auto",
        draft_model: Any = None,
        tokenizer: Any = None,
        device: str | None = None,
        dtype: Any = None,
        limits: Limits | None = None,
        **load_options: Any,
    ) -> None:
        from outrider.model.base import LanguageModel
        from outrider.model.load import Loaded, load

        known = inspect.signature(load).parameters
        for name in load_options:
            if name not in known:
                raise ConfigError(
                    f"LLM has no option {name!r}", hint=nearest(name, {*known, "preset", "draft_model", "limits"})
                )
        if isinstance(model, LanguageModel):
            for name, value in {"device": device, "dtype": dtype, **load_options}.items():
                if value is not None:
                    raise ConfigError(f"{name} was given for a model that is loaded already", hint="Leave it out.")

        def open_(source: Any, tokenizer: Any, device: Any, **options: Any) -> Any:
            if isinstance(source, LanguageModel):
                return Loaded(source, tokenizer)
            return load(source, device=device, dtype=dtype, tokenizer=tokenizer, **options)

        self.parts = build_preset(preset) if isinstance(preset, str) else preset
        if isinstance(model, str | Path) and isinstance(draft_model, str | Path):
            compare_vocabularies(model, draft_model, **load_options)  # before gigabytes of weights are read
        loaded = open_(model, tokenizer, device, **load_options)
        self.language_model = loaded.model
        self.tokenizer = loaded.tokenizer
        draft = None
        if draft_model is not None:
            draft_options = {name: value for name, value in load_options.items() if name != "adapter"}
            place = loaded.model.device if isinstance(draft_model, str | Path) else device
            draft = open_(draft_model, None, place, **draft_options)
            check_same_vocabulary(loaded.tokenizer, draft.tokenizer, loaded.model.name, draft.model.name)
        self.draft = draft
        self.tuned: Tuned | None = None
        """What ``outrider tune`` left for ``preset="auto"``; None for other presets."""
        if preset == AUTO:
            from outrider.tune.lookup import tuned

            self.tuned = tuned(loaded.model, None if draft is None else draft.model)
            self.parts = self.tuned.parts or self.parts
        self.limits = limits or Limits()
        self._pieces: dict[int, deque[Emission]] = {}  # of running streams, by request
        self.engine = Engine(
            self.language_model,
            self.parts,
            tokenizer=self.tokenizer,
            stop_tokens=stop_tokens(loaded),
            limits=self.limits,
            draft_model=None if draft is None else draft.model,
        )

    @property
    def model(self) -> Any:
        """The transformers model underneath, unchanged and usable by itself."""
        return getattr(self.language_model, "hf", self.language_model)

    def listen(self, listener: Callable[[Outcome], None], needs: Needs | None = None) -> None:
        """Call ``listener(outcome)`` after every step; see ``Engine.listen`` and ``types.Outcome``."""
        self.engine.listen(listener, needs)

    # -- prompts ------------------------------------------------------------------------------------------

    def encode(self, prompt: Prompt, *, chat_template: bool | None = None) -> list[int]:
        """Token ids of a prompt: ids as they are, text raw, messages through the chat template.

        ``chat_template=True`` wraps text as one user message first.
        """
        if isinstance(prompt, str):
            if chat_template:
                return self.encode([{"role": "user", "content": prompt}])
            return list(self._need_tokenizer().encode(prompt)) if prompt else self._begin()
        items: list[Any] = list(prompt)
        if items and isinstance(items[0], dict):
            if any(not isinstance(item, dict) or "role" not in item for item in items):
                raise RequestError(
                    "a message without a role", hint='Give messages as {"role": "user", "content": "..."}.'
                )
            tokenizer = self._need_tokenizer()
            if not getattr(tokenizer, "chat_template", None):
                raise RequestError(
                    "messages were given, but the model's tokenizer has no chat template",
                    hint="Give the prompt as text, or set tokenizer.chat_template.",
                )
            text = tokenizer.apply_chat_template(items, tokenize=False, add_generation_prompt=True)
            return list(tokenizer.encode(text, add_special_tokens=False))
        if any(not isinstance(token, int) or isinstance(token, bool) for token in items):
            raise RequestError(
                f"a prompt of type {type(prompt).__name__} with {type(items[0]).__name__} inside",
                hint="Give text, a list of messages, or a list of token ids.",
            )
        return items if items else self._begin()

    def _begin(self) -> list[int]:
        """An empty prompt starts from the begin-of-text token, where the model has one."""
        token = getattr(self.tokenizer, "bos_token_id", None)
        if token is None:
            token = getattr(getattr(self.model, "config", None), "bos_token_id", None)
        return [] if token is None else [int(token)]

    def _need_tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise ConfigError(
                "the model came without a tokenizer",
                hint="Give LLM(..., tokenizer=...) or prompts of token ids.",
            )
        return self.tokenizer

    def _prompts(self, prompts: Any) -> list[Prompt]:
        """One prompt or a list of them: a list of ids or of messages is one prompt."""
        if isinstance(prompts, str):
            return [prompts]
        if not isinstance(prompts, Sequence) or isinstance(prompts, bytes):
            raise RequestError(
                f"a prompt of type {type(prompts).__name__}", hint="Give text, messages, token ids, or a list of these."
            )
        items = list(prompts)
        if items and isinstance(items[0], (int, dict)):
            return [items]
        return items

    # -- running ------------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Any,
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = False,
    ) -> list[RequestOutput]:
        """Decode all prompts together. ``params`` is one for all or one per prompt.

        Raises ``RequestError`` before anything runs if some prompt cannot be served. A choice that fails while it runs
        has finish_reason "error" and its ``error``; only if all of them fail is it raised.
        """
        batch = self._prompts(prompts)
        each = list(params) if isinstance(params, Sequence) else [params or SamplingParams()] * len(batch)
        if len(each) != len(batch):
            raise RequestError(
                f"{len(each)} sampling parameters for {len(batch)} prompts", hint="Give one, or one per prompt."
            )
        requests = self._submit_all(batch, each)
        try:
            self._drain(requests, progress)
        except BaseException:
            for request in requests:
                self.engine.cancel(request)
            raise
        errors = [choice.error for request in requests for choice in request.choices]
        if errors and all(error is not None for error in errors):
            raise next(error for error in errors if error is not None)
        return [RequestOutput(request.prompt, request.choices) for request in requests]

    def _submit_all(self, batch: list[Prompt], each: list[SamplingParams]) -> list[Request]:
        requests: list[Request] = []
        try:
            for prompt, params in zip(batch, each, strict=True):
                requests.append(self.engine.submit(self.encode(prompt), params, stream=False))
        except Exception:
            for request in requests:
                self.engine.cancel(request)
            raise
        return requests

    def _drain(self, requests: list[Request], progress: bool) -> None:
        if not progress:
            while not all(request.finished for request in requests):
                self._step()
            return
        from rich.progress import Progress

        with Progress(transient=True) as bar:
            task = bar.add_task("Generating", total=len(requests))
            while not all(request.finished for request in requests):
                self._step()
                bar.update(task, completed=sum(request.finished for request in requests))

    def stream(
        self, prompt: Any, params: SamplingParams | None = None, *, chat_template: bool | None = None
    ) -> Iterator[StreamEvent]:
        """Decode one prompt, yielding pieces as they are accepted. Closing the iterator cancels the request."""
        request = self.engine.submit(self.encode(prompt, chat_template=chat_template), params or SamplingParams())
        mine = self._pieces[request.id] = deque()
        try:
            while mine or not request.finished:
                if not mine:
                    self._step()
                while mine:
                    yield _event(mine.popleft())
        finally:
            del self._pieces[request.id]
            if not request.finished:
                self.engine.cancel(request)

    def _step(self) -> None:
        """One step of the engine, which serves all requests: streams find their pieces in their own queues."""
        for emission in self.engine.step():
            if emission.request.id in self._pieces:
                self._pieces[emission.request.id].append(emission)

    def chat(
        self, messages: Sequence[Message] | str, params: SamplingParams | None = None, **options: Any
    ) -> RequestOutput:
        """Answer a conversation: ``generate`` on messages, a string being one user message."""
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        return self.generate([list(messages)], params, **options)[0]


def _event(emission: Emission) -> StreamEvent:
    choice = emission.choice
    done = choice.finish_reason is not None
    return StreamEvent(
        text=emission.text,
        token_ids=emission.token_ids,
        origins=emission.origins,
        choice=choice.index,
        finish_reason=choice.finish_reason,
        stats=choice.stats if done else None,
        error=choice.error,
    )


def compare_vocabularies(
    model: str | Path, draft_model: str | Path, allow_pickle: bool = False, trust_remote_code: bool = False, **_: Any
) -> None:
    """``check_same_vocabulary`` from the tokenizer files of two models alone."""
    from outrider.model import files

    def tokenizer(name: str) -> Any:
        folder = files.find(name, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code)
        return files.tokenizer(folder, trust_remote_code)

    target, draft = str(model), str(draft_model)
    check_same_vocabulary(tokenizer(target), tokenizer(draft), target, draft)


def stop_tokens(loaded: Any) -> frozenset[int]:
    """End-of-text ids: those of the generation config, the model config and the tokenizer."""
    hf = getattr(loaded.model, "hf", None)
    found: set[int] = set()
    sources = (getattr(hf, "generation_config", None), getattr(hf, "config", None), loaded.tokenizer)
    for source in sources:
        ids = getattr(source, "eos_token_id", None)
        if ids is not None:
            found |= {ids} if isinstance(ids, int) else set(ids)
    return frozenset(int(token) for token in found if token < loaded.model.vocab_size)
