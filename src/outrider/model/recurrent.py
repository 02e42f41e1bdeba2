"""Recurrent and hybrid models: state-space layers, gated delta nets, short convolutions.

They decode chains. Whether stock code continues from a saved state with several tokens at once is found out
numerically when the model is built, since some published mixers silently use the state only for a single
token (Mamba, Falcon-Mamba and Jamba do; Mamba-2, Bamba, Falcon-H1, Granite-4, LFM2, Qwen3-Next and Qwen3.5 carry
on). The former run token by token, which gives a snapshot per token and makes replays free. Another sequence runs
in between, so that a family that keeps its state in its modules is found out too.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from transformers import DynamicCache

from outrider.cache.recurrent import RecurrentRow, RecurrentStore, snapshot
from outrider.errors import IncompatibleParts, ModelError
from outrider.model.base import Block, LanguageModel, ModelOutput
from outrider.model.capture import Capture
from outrider.model.families import context_limit, text_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from outrider.cache.base import KVStore

_FLUSH = 16
"""Pending tokens beyond which a replay is worth a forward of its own."""

_PROBE_TOKENS = 11


def cache_argument(hf: PreTrainedModel) -> str:
    """The name under which ``hf.forward`` takes its cache."""
    return "past_key_values" if "past_key_values" in inspect.signature(hf.forward).parameters else "cache_params"


class RecurrentModel(LanguageModel):
    """A transformers ``...ForCausalLM`` with layers that keep a running state. Use ``load`` or ``wrap``.

    Raises ``ModelError`` when not even one token at a time reproduces the model's own full forward.
    """

    branching = False

    def __init__(self, hf: PreTrainedModel, name: str = "") -> None:
        self.hf = hf.eval()
        config = text_config(hf.config)
        self.name = name or getattr(hf.config, "name_or_path", "") or type(hf).__name__
        self.family = str(config.model_type)
        self.device, self.dtype = hf.device, hf.dtype
        head = hf.get_output_embeddings()
        self.vocab_size = int(head.weight.shape[0]) if head is not None else int(config.vocab_size)
        self.max_positions = context_limit(config)
        self._capture = Capture(hf)
        accepted = inspect.signature(hf.forward).parameters
        self._cache_name = cache_argument(hf)
        self._takes_positions = "position_ids" in accepted
        self._takes_keep = "logits_to_keep" in accepted
        self.block_exact = False
        self.block_exact = self._continues_with_blocks()

    # -- building -----------------------------------------------------------------------------------------

    def _continues_with_blocks(self) -> bool:
        """Compare blocks and single steps from a saved state with a full forward of random tokens."""
        from outrider.model.check import relative_difference, tolerance

        source = torch.Generator().manual_seed(0)
        tokens = torch.randint(self.vocab_size, (_PROBE_TOKENS,), generator=source).tolist()
        with torch.inference_mode():
            ids = torch.tensor([tokens], device=self.device)
            expected = self.hf(input_ids=ids, use_cache=False, return_dict=True).logits[0]
        limit = tolerance(self.dtype)

        failures: list[Exception] = []

        def worst(chunks: list[int]) -> float:
            cache, other, logits, start = self._new_cache(), self._new_cache(), [], 0
            try:
                for size in chunks:
                    logits.append(self._run(cache, tokens[start : start + size], start, size, True))
                    self._run(other, tokens[::-1][start : start + size], start, size, True)
                    start += size
            except Exception as error:  # whatever it is, this family cannot be driven so
                failures.append(error)
                return float("inf")
            return relative_difference(torch.cat(logits), expected)

        if max(worst([5, 4, 1, 1]), worst([2, 3, 1, 5])) <= limit:
            return True
        single = max(worst([1] * _PROBE_TOKENS), worst([5] + [1] * (_PROBE_TOKENS - 5)))
        if single > limit:
            why = f"Token by token, its logits differ from a full forward by {single:.2g} of their spread"
            if single == float("inf") and failures:
                why = f"It failed with {type(failures[-1]).__name__}: {failures[-1]}"
            raise ModelError(
                f"{self.name} ({self.family}) does not continue from a saved state",
                why=why,
                hint="Update transformers, or use a model of another family.",
            ) from (failures[-1] if failures else None)
        return False

    def _new_cache(self) -> DynamicCache:
        return DynamicCache(config=self.hf.config)

    # -- LanguageModel ------------------------------------------------------------------------------------

    def new_store(self, max_rows: int, max_slots: int) -> RecurrentStore:
        return RecurrentStore(self._new_cache, max_rows, max_slots)

    def forward(
        self,
        block: Block,
        store: KVStore,
        *,
        first_row: int = 0,
        capture: tuple[int, ...] = (),
        logits: Literal["all", "none"] | int = "all",
    ) -> ModelOutput:
        """See ``LanguageModel.forward``; logits of padding are zero. ``IncompatibleParts`` for a tree."""
        assert isinstance(store, RecurrentStore)
        if block.ancestors is not None:
            raise IncompatibleParts(
                f"{self.name} ({self.family}) cannot score a tree that branches",
                why="its recurrent layers keep one running state per row",
                hint="Use a preset that drafts chains, for example with structure chain and width 1.",
            )
        b, n = block.shape
        store.reserve(first_row, b, n, block.offset)
        scores = torch.zeros(b, n if logits == "all" else 0, self.vocab_size, device=self.device, dtype=self.dtype)
        hidden: list[Tensor] = []
        tokens = block.tokens.tolist()
        for index, count in enumerate(block.counts):
            row = store.states[first_row + index]
            row.settle(0)  # an uncommitted block is forgotten
            start = store.next_positions[first_row + index] - len(row.pending)
            with self._capture.layers(capture) as captured:
                out, states = self._row(
                    row, tokens[index][:count], start, logits == "all", captured if capture else None
                )
            if out is not None:
                scores[index, :count] = out
            if capture:
                width = text_config(self.hf.config).hidden_size
                full = torch.cat(states)[-count:] if count else scores.new_zeros(0, len(capture), width)
                hidden.append(torch.nn.functional.pad(full, (0, 0, 0, 0, 0, n - count)))
        return ModelOutput(scores, torch.stack(hidden) if capture else None)

    def _row(
        self, row: RecurrentRow, tokens: list[int], start: int, head: bool, captured: Any
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Feed one row's pending tokens and block; returns (logits f[count,V] or None, captured states)."""
        if not tokens:  # a row whose prompt is done while others still prefill
            row.block = []
            return None, []
        many = len(tokens) > 1
        if self.block_exact and len(row.pending) > _FLUSH:
            self._run(row.cache, row.pending, start, 0, False)
            start, row.pending = start + len(row.pending), []
        row.block = list(tokens)
        fed = row.pending + row.block
        if many:
            row.marks[0] = snapshot(row.cache)
        first_chunk = self.block_exact or (start == 0 and not row.pending and not head and captured is None)
        if first_chunk:  # the whole block at once; from an empty state every family can
            out = self._run(row.cache, fed, start, len(tokens), head)
            return (out if head else None), [captured.stacked()[0]] if captured is not None else []
        logits, states = [], []
        for index, token in enumerate(fed):
            out = self._run(row.cache, [token], start + index, 1, head)
            if captured is not None:
                states.append(captured.stacked()[0])
            if index >= len(row.pending):
                logits.append(out)
                if index + 1 < len(fed) and head:
                    row.marks[index + 1] = snapshot(row.cache)
        return (torch.cat(logits) if head else None), states

    def _run(self, cache: DynamicCache, tokens: list[int], start: int, keep: int, head: bool) -> Tensor:
        """One stock forward of ``tokens`` behind ``start`` others; logits f[keep,V] of the last ``keep``."""
        extra: dict[str, Any] = {self._cache_name: cache}
        ids = torch.tensor([tokens], device=self.device)
        if self._takes_positions:
            extra["position_ids"] = torch.arange(start, start + len(tokens), device=self.device)[None]
        if head and self._takes_keep:
            extra["logits_to_keep"] = keep
        target = self.hf if head else self.hf.get_decoder()
        with torch.inference_mode():
            out = target(input_ids=ids, use_cache=True, return_dict=True, **extra)
        return out.logits[0, -keep:] if head else out.last_hidden_state[0, :0]
