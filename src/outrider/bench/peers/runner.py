"""Peers as the harness drives them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

from outrider.bench.peers.base import Peer, PeerSetup
from outrider.bench.peers.hf import Assisted, Generate, Weights
from outrider.bench.peers.hf import Lookup as GenerateLookup
from outrider.bench.peers.llama_cpp import Llama
from outrider.bench.peers.llama_cpp import Lookup as LlamaLookup
from outrider.bench.peers.openvino import Drafted, Pipeline
from outrider.bench.peers.openvino import Lookup as PipelineLookup
from outrider.bench.result import LeftOut
from outrider.bench.runners import Answer
from outrider.errors import ConfigError, RequestError, SpecError, nearest
from outrider.params import SamplingParams
from outrider.types import Guarantee

_HONOURED = {"max_tokens", "temperature", "seed", "ignore_eos"}


def list_peers(setup: PeerSetup, names: Iterable[str] | None = None) -> list[Peer]:
    """All peers, or those of ``names`` with their baselines; whether one can run, ``available`` says.

    Raises ``ConfigError`` for a name that is none.
    """
    weights, draft = Weights(setup, setup.folder), Weights(setup, setup.draft_folder)
    every: list[Peer] = [
        Generate(weights),
        GenerateLookup(weights),
        Assisted(weights, draft),
        Llama(setup),
        LlamaLookup(setup),
        Pipeline(setup),
        PipelineLookup(setup),
        Drafted(setup),
    ]
    if names is None:
        return every
    known = {peer.name: peer for peer in every}
    wanted: set[str] = set()
    for name in names:
        if name not in known:
            raise ConfigError(f"unknown peer {name!r}", hint=nearest(name, known))
        wanted |= {name, known[name].baseline}
    return [peer for peer in every if peer.name in wanted]


def open_peers(peers: Iterable[Peer]) -> tuple[list[Peer], list[LeftOut]]:
    """(those that are loaded and ready, the others with the reason). One whose baseline is not there is left out."""
    ready: list[Peer] = []
    left_out: list[LeftOut] = []
    for peer in peers:
        why = peer.available()
        if why is None and peer.baseline != peer.name and peer.baseline not in {other.name for other in ready}:
            why = f"its baseline {peer.baseline!r} cannot run"
        if why is None:
            try:
                peer.open()
                ready.append(peer)
                continue
            except Exception as error:  # another program's start may fail in any way
                why = str(error) if isinstance(error, SpecError) else f"{type(error).__name__}: {error}"
        left_out.append(LeftOut(name=peer.name, reason=why))
    return ready, left_out


class PeerRunner:
    """A peer as a ``runners.Runner``. ``tokenizer`` writes its answers, ``stop`` are the model's end tokens.

    A peer that computes the same numbers is compared with plain decoding token by token. One with numerics of its own
    (another quantisation, other kernels) promises nothing about our text, so that no difference is called wrong.
    """

    def __init__(self, peer: Peer, tokenizer: Any, stop: Iterable[int]) -> None:
        self.peer, self.name = peer, peer.name
        self._tokenizer, self._stop = tokenizer, frozenset(stop)

    @property
    def guarantee(self) -> Guarantee:
        return Guarantee.EXACT if self.peer.comparable else Guarantee.RELAXED

    def renew(self) -> None:
        """Peers keep nothing between answers."""

    def answer(self, prompt: Sequence[int], params: SamplingParams) -> Answer:
        """See ``Runner``. Raises ``RequestError`` where ``params`` ask for more than greedy decoding."""
        default = SamplingParams()
        asked = [
            field.name
            for field in fields(params)
            if field.name not in _HONOURED and getattr(params, field.name) != getattr(default, field.name)
        ]
        if asked or not params.greedy:
            what = ", ".join(asked) or f"temperature={params.temperature:g}"
            raise RequestError(f"{self.name} is measured at temperature 0 only, not with {what}")
        stop = frozenset() if params.ignore_eos else self._stop
        run = self.peer.generate(prompt, params.max_tokens, stop)
        return Answer(
            token_ids=run.token_ids,
            text="" if self._tokenizer is None else self._tokenizer.decode(run.token_ids, skip_special_tokens=True),
            finish_reason="stop" if run.token_ids and run.token_ids[-1] in stop else "length",
            seconds=_seconds(run.seconds_prefill, run.seconds_total),
            prefill_measured=run.seconds_prefill is not None,
            target_calls=run.target_calls,
            draft_tokens=run.draft_tokens,
            accepted_tokens=None if run.target_calls is None else max(0, len(run.token_ids) - run.target_calls),
        )


def _seconds(prefill: float | None, total: float) -> dict[str, float]:
    """Parts of the time; a peer does not say how decoding divides."""
    return {"target": total} if prefill is None else {"prefill": prefill, "target": total - prefill}
