"""A trace: one file with everything that decoding the same prompt again, without the target, can need.

It holds the prompt, the emitted tokens and, for each of them, the whole row of logits it was chosen from, in the
target's own type: whoever looks at an accepted path then sees the target's very numbers. 256 tokens of a model with
49,152 tokens in bfloat16 are 25 MB, of one with 151,936 tokens 78 MB; ``MOST_BYTES`` is the limit. What the target
said behind tokens that were drafted and rejected is not in it: another draft would have asked about other tokens.

The file is in the safetensors format (no code in it can run), with a JSON header under the key ``outrider-trace``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from outrider.errors import ConfigError, IncompatibleParts
from outrider.params import SamplingParams
from outrider.run.text import bad_word_ids
from outrider.types import Guarantee, Needs, Outcome

if TYPE_CHECKING:
    from outrider.explain.record import Explanation
    from outrider.explain.words import Texts
    from outrider.parts import Parts
    from outrider.run.engine import Engine

KEY = "outrider-trace"
VERSION: Literal[1] = 1
MOST_BYTES = 2 << 30
_LEFT_OUT = ("n", "seed", "stop", "logprobs", "logits_processors")
"""Parameters that a replay does not need (the text is known) or that no file can hold."""


class Header(BaseModel):
    """What a trace says besides numbers. ``texts`` are the tokens of prompt and answer, ``pieces`` what each token of
    the answer adds to its text; ``calls`` is how many tokens
    each recorded call of the target gave; ``params`` are sampling parameters without those that only ended the text."""

    model_config = ConfigDict(extra="forbid")

    version: Literal[1]
    model: str
    preset: str
    drafters: str
    guarantee: str
    vocab_size: int = Field(ge=1)
    branching: bool
    max_context: int = Field(ge=2)
    max_nodes: int = Field(ge=1)
    device: str
    dtype: str
    stop_tokens: list[int]
    params: dict[str, Any]
    seed: int
    text: str
    finish_reason: str | None
    stop_reason: int | str | None
    calls: list[int]
    texts: dict[int, str]
    pieces: list[str]
    provenance: dict[str, Any] | None = None


@dataclass(frozen=True, eq=False)
class Trace:
    """``logits`` f[T,V]: row i is the target's answer from which ``tokens[i]`` was chosen, before ``warp``."""

    header: Header
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    logits: Tensor

    @property
    def params(self) -> SamplingParams:
        """As recorded, with the seed that was used."""
        return SamplingParams.from_dict({**self.header.params, "seed": self.header.seed})

    def save(self, path: str | Path) -> None:
        """Write the file, whole or not at all. Raises ``ConfigError`` where that cannot be done."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        target = Path(path).expanduser()
        part = target.with_name(f"{target.name}.part")
        ids = {"prompt": torch.tensor(self.prompt), "tokens": torch.tensor(self.tokens, dtype=torch.int64)}
        try:
            save_file({**ids, "logits": self.logits.contiguous()}, part, {KEY: json.dumps(self.header.model_dump())})
            os.replace(part, target)
        except (OSError, SafetensorError) as error:
            part.unlink(missing_ok=True)
            why = getattr(error, "strerror", None) or str(error)
            raise ConfigError(f"trace {str(path)!r} cannot be written", why=why) from None

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Read and check a file. Raises ``ConfigError`` saying what is wrong with it."""
        from safetensors import SafetensorError, safe_open

        name = f"trace {str(path)!r}"
        file = Path(path).expanduser()
        try:
            with file.open("rb") as start:
                ours = KEY.encode() in start.read(1 << 16)
        except OSError as error:
            raise ConfigError(f"{name} cannot be read: {error.strerror or error}") from None
        if not ours:
            raise ConfigError(f"{name} is not a trace of outrider", hint="Record one with --trace FILE.")
        try:
            with safe_open(file, "pt") as content:
                header = _header(name, (content.metadata() or {}).get(KEY, ""))
                prompt, tokens, logits = (content.get_tensor(part) for part in ("prompt", "tokens", "logits"))
        except SafetensorError as error:
            raise ConfigError(f"{name} is damaged or cut off", why=str(error), hint="Record it again.") from None
        trace = cls(header, tuple(prompt.tolist()), tuple(tokens.tolist()), logits)
        trace.check(name)
        return trace

    def check(self, name: str) -> None:
        """Raise ``ConfigError`` unless the numbers fit together."""
        vocab, wide = self.header.vocab_size, self.logits.shape
        wrong = ""
        if not self.prompt or not all(0 <= token < vocab for token in (*self.prompt, *self.tokens)):
            wrong = f"tokens outside the vocabulary of {vocab}, or no prompt"
        elif tuple(wide) != (len(self.tokens), vocab) or not self.logits.is_floating_point():
            wrong = f"{len(self.tokens)} tokens of {vocab} with logits of shape {tuple(wide)}"
        elif sum(self.header.calls) != len(self.tokens):
            wrong = f"calls that gave {sum(self.header.calls)} tokens, but {len(self.tokens)} tokens"
        elif len(self.header.pieces) != len(self.tokens):
            wrong = f"{len(self.header.pieces)} pieces of text for {len(self.tokens)} tokens"
        if wrong:
            raise ConfigError(f"{name} has {wrong}", why="It was changed or damaged", hint="Record it again.")
        try:
            self.params  # noqa: B018  checked when it is built
        except ValueError as error:
            raise ConfigError(f"{name} has wrong sampling parameters", why=str(error)) from None


def _header(name: str, text: str) -> Header:
    try:
        found = json.loads(text)
        version = found["version"]
    except (ValueError, TypeError, KeyError):
        raise ConfigError(f"{name} has a header that cannot be read", hint="Record it again.") from None
    if version != VERSION:
        raise ConfigError(
            f"{name} has version {version!r}, and this outrider reads version {VERSION}",
            hint="Record it again, or use the outrider that wrote it.",
        )
    try:
        return Header.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{name} has a wrong header: {where}: {first['msg']}", hint="Record it again.") from None


class TraceRecorder:
    """Listens to one engine and keeps what a trace needs of the one row that it runs.

    Raises ``IncompatibleParts`` or ``ConfigError`` for what could not be replayed, before anything runs.
    """

    def __init__(self, engine: Engine, params: SamplingParams) -> None:
        check_recordable(engine.parts, params)
        self.engine, self.params = engine, params
        self.tokens: list[int] = []
        self.calls: list[int] = []
        self._rows: list[Tensor] = []
        target = engine.target
        size = params.max_tokens * target.vocab_size * target.dtype.itemsize
        if size > MOST_BYTES:
            most = MOST_BYTES // (target.vocab_size * target.dtype.itemsize)
            raise ConfigError(
                f"a trace of {params.max_tokens} tokens could take {size / 2**30:.1f} GiB",
                why="It keeps the target's whole answer for each of them",
                hint=f"Give --max-tokens {most} or less.",
            )
        engine.listen(self, Needs(logits=True))

    def __call__(self, outcome: Outcome) -> None:
        if outcome.verdict is None:
            return
        assert outcome.logits is not None
        kept = len(outcome.emitted[0])
        count, _, *path = outcome.verdict.lines()[0]
        nodes = path[:count][:kept]  # token i was chosen behind node i of the path, the root being node 0 of it
        self._rows.append(outcome.logits[0, nodes].to("cpu", copy=True))
        self.tokens += outcome.emitted[0]
        self.calls.append(kept)

    def trace(self, explanation: Explanation, texts: Texts) -> Trace:
        """What was recorded by now; ``explanation`` is of the same request."""
        engine, target = self.engine, self.engine.target
        empty = torch.empty(0, target.vocab_size, dtype=target.dtype)
        header = Header(
            version=VERSION,
            model=explanation.model,
            preset=explanation.preset,
            drafters=explanation.drafters,
            guarantee=explanation.guarantee,
            vocab_size=target.vocab_size,
            branching=target.branching,
            max_context=engine.max_context,
            max_nodes=engine.limits.max_nodes,
            device=target.device.type,
            dtype=str(target.dtype).removeprefix("torch."),
            stop_tokens=sorted(engine.stop_tokens),
            params=_recorded(self.params, engine.tokenizer),
            seed=explanation.seed,
            text=explanation.text,
            finish_reason=explanation.finish_reason,
            stop_reason=explanation.stop_reason,
            calls=self.calls,
            texts={token: texts(token) for token in (*explanation.prompt, *self.tokens)},
            pieces=[piece for step in explanation.steps for piece in step.pieces],
            provenance=None if explanation.provenance is None else dict(explanation.provenance),
        )
        return Trace(header, explanation.prompt, tuple(self.tokens), torch.cat(self._rows or [empty]))


def check_recordable(parts: Parts, params: SamplingParams) -> None:
    """Raise ``IncompatibleParts`` for what a replay could not decode again from tokens and logits."""
    if params.logits_processors:
        raise IncompatibleParts("a trace cannot hold logits_processors", hint="Record without them.")
    if params.n != 1:
        raise IncompatibleParts(f"a trace holds one answer, not n={params.n}", hint="Record them one by one.")
    check_rule(parts, params)


def check_rule(parts: Parts, params: SamplingParams) -> None:
    """Raise ``IncompatibleParts`` unless the text is a function of the target's answers on the emitted text."""
    if parts.law is not None:
        raise IncompatibleParts(f"{parts.name!r} decodes a law of its own, which a trace does not hold")
    if parts.guarantee is Guarantee.IDENTICAL or (parts.guarantee is Guarantee.EXACT and params.greedy):
        return
    rule = type(parts.verifier).__name__
    raise IncompatibleParts(
        f"{parts.name!r} cannot be traced or replayed at temperature {params.temperature:g}",
        why=f"Its rule {rule} flips coins that depend on the draft, so that another draft gives another text",
        hint="Use temperature 0, or a preset that verifies with Match.",
    )


def _recorded(params: SamplingParams, tokenizer: Any) -> dict[str, Any]:
    """Parameters that a replay applies, words as token ids."""
    default = SamplingParams()
    values = {f.name: getattr(params, f.name) for f in fields(params) if f.name not in _LEFT_OUT}
    values["bad_words"] = tuple(map(tuple, bad_word_ids(params.bad_words, tokenizer)))
    found = {name: value for name, value in values.items() if value != getattr(default, name)}
    return {name: list(value) if isinstance(value, Sequence) else value for name, value in found.items()}
