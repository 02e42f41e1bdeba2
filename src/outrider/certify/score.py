"""What the target itself says along a text, worked out apart from any method: one plain forward over all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from outrider.certify.decode import Ask, Decoder
from outrider.certify.identity import floor
from outrider.model.base import Block
from outrider.params import SamplingParams
from outrider.parts import Law
from outrider.run.scheduler import row_sampling
from outrider.sampling import warp
from outrider.types import DraftTree

_PREFILL = 1024
_CELLS = 1 << 24
_SHORT = 320
"""Every continuation keeps its own copy of the text before it: long ones cost memory and time."""


@dataclass(frozen=True)
class Along:
    """The target along one greedy text of T tokens: per token its own best two choices, the gap between their logits,
    how far the text's token lies behind the best, and how uncertain the target is (1 - the largest probability at the
    sampling temperature). ``rounding``: logits nearer than this are equal as far as the dtype can tell."""

    best: list[int]
    second: list[int]
    gap: list[float]
    behind: list[float]
    unsure: list[float]
    rounding: float


class Scorer:
    """Scores texts by the target of ``decoder`` under ``law``."""

    def __init__(self, decoder: Decoder, law: Law | None = None) -> None:
        self.decoder, self.law = decoder, law

    def along(self, ask: Ask, text: Sequence[int], params: SamplingParams, temperature: float) -> Along:
        """See ``Along``; ``params`` are those the greedy text was made with."""
        open_ = replace(params, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, typical_p=1.0)
        logits, tree = self._forward(ask, [text])
        logs = self._law(ask, [text], open_, logits, tree)[0].log()
        top = logs.topk(2, -1)
        said = logs.gather(-1, torch.tensor(text, device=logs.device)[:, None])[:, 0]
        hot = torch.softmax(logs / max(temperature, 0.05), -1)
        return Along(
            best=top.indices[:, 0].tolist(),
            second=top.indices[:, 1].tolist(),
            gap=(top.values[:, 0] - top.values[:, 1]).tolist(),
            behind=(top.values[:, 0] - said).tolist(),
            unsure=(1 - hot.amax(-1)).tolist(),
            rounding=floor(self.decoder.target.dtype, logits),
        )

    def laws(self, ask: Ask, texts: Sequence[Sequence[int]], params: SamplingParams) -> list[Tensor]:
        """Per text f[T,V]: the laws that ``params`` give its T tokens, each after those before it. The texts are
        continuations of one prompt, none of them empty, and few enough for memory."""
        return self._law(ask, texts, params, *self._forward(ask, texts))

    def laws_behind(self, ask: Ask, starts: Sequence[Sequence[int]], params: SamplingParams) -> list[Tensor]:
        """Per start f[V]: the law of the token behind the prompt and that text."""
        few = self._few(max(map(len, starts), default=0) + 1)
        texts = [[*start, 0] for start in starts]
        parts = [self.laws(ask, texts[first : first + few], params) for first in range(0, len(texts), few)]
        return [law[-1] for part in parts for law in part]

    def _few(self, length: int) -> int:
        """How many texts of ``length`` tokens are scored at once."""
        return max(1, _CELLS // (self.decoder.target.vocab_size * length))

    def _forward(self, ask: Ask, texts: Sequence[Sequence[int]]) -> tuple[Tensor, DraftTree]:
        """f[R,T,V] logits behind the prompt's last token and all but the last of each text, and the chains they are."""
        target, prefix = self.decoder.target, list(ask.tokens)
        store = target.new_store(len(texts), len(prefix) + max(map(len, texts)))
        store.add()
        for start in range(0, len(prefix) - 1, _PREFILL):
            chunk = prefix[start : min(start + _PREFILL, len(prefix) - 1)]
            target.forward(Block.of_lists([chunk], target.device), store, logits="none")
            store.extend(0, [len(chunk)])
        for _ in texts[1:]:
            store.fork(0)
        block = Block.of_lists([[prefix[-1], *text[:-1]] for text in texts], target.device)
        logits, tree = target.forward(block, store).logits, block.as_tree()
        return (logits if self.law is None else self.law(logits, tree)), tree

    def _law(
        self, ask: Ask, texts: Sequence[Sequence[int]], params: SamplingParams, logits: Tensor, tree: DraftTree
    ) -> list[Tensor]:
        decoder = self.decoder
        row = row_sampling(params, ask.tokens, decoder.target.vocab_size, decoder.stop_tokens, decoder.tokenizer)
        probs = warp(logits, [row.fork() for _ in texts], tree).probs
        return [each[: len(text)] for each, text in zip(probs, texts, strict=True)]

    def places(
        self, ask: Ask, texts: Sequence[Sequence[int]], params: SamplingParams, lots: Tensor
    ) -> list[list[float]]:
        """Where each token of each text falls in [0,1): tokens laid out from the likeliest to the least likely,
        ``lots`` f64[R,L] in [0,1) saying where within the token's own stretch. Uniform and independent exactly when
        the texts are draws from the target's law (Rosenblatt 1952)."""
        few = self._few(max(map(len, texts), default=1))
        found: list[list[float]] = []
        for first in range(0, len(texts), few):
            part = texts[first : first + few]
            for probs, text, lot in zip(self.laws(ask, part, params), part, lots[first:], strict=False):
                token = torch.tensor(list(text), device=probs.device)[:, None]
                own = probs.gather(-1, token)
                ids = torch.arange(probs.shape[-1], device=probs.device)
                before = (probs > own) | ((probs == own) & (ids < token))
                start = (probs * before).sum(-1, dtype=torch.float64)
                place = start + lot[: len(text)].to(probs.device) * own[:, 0].double()
                found.append(place.clamp(0, 1 - 1e-12).tolist())
        return found


def contexts(
    asks: Sequence[Ask], texts: Sequence[Sequence[int]], along: Sequence[Along], count: int, ahead: int
) -> list[tuple[int, int]]:
    """(prompt, tokens of its answer) of the ``count`` places from which sampling is worth most: where the next
    ``ahead`` tokens are both uncertain and announced by an earlier occurrence of the two tokens before them, so that
    there is something to draft and something to get wrong. One place for each prompt; short texts before long ones."""
    ranked: list[tuple[bool, float, int, int]] = []
    for index, (ask, text, scored) in enumerate(zip(asks, texts, along, strict=True)):
        whole = [*ask.tokens, *text]
        seen: set[tuple[int, int]] = set()
        repeats: list[bool] = []
        for at in range(1, len(whole)):
            pair = (whole[at - 1], whole[at])
            if at >= len(ask.tokens) - 1:
                repeats.append(pair in seen)
            seen.add(pair)
        worth = [unsure * (1.0 if again else 0.1) for unsure, again in zip(scored.unsure, repeats, strict=False)]
        windows = [sum(worth[at : at + ahead]) for at in range(max(1, len(worth) - ahead + 1))]
        at = max(range(len(windows)), key=lambda k: windows[k])
        ranked.append((len(ask.tokens) > _SHORT, -windows[at], index, at))
    return [(index, at) for _, _, index, at in sorted(ranked)[:count]]
