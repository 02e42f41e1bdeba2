"""Any transformers causal language model, unmodified, behind ``LanguageModel``.

Three stock seams carry everything: a 4-D mask (or our attention function, which reads the same facts from a keyword
argument), explicit position ids, and a foreign cache object. What a family does with them is not taken on trust:
``HFModel`` counts attention calls and windows once when it is built, and families that are not on the proven list
are compared numerically with themselves (``model/check.py``) before they may serve.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from outrider.cache.slots import LayerShapes, PlaneShape, SlotStore
from outrider.errors import ModelError
from outrider.model import attention
from outrider.model.base import Block, LanguageModel, ModelOutput
from outrider.model.capture import Capture
from outrider.model.families import context_limit, expected_windows, text_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from outrider.cache.base import KVStore


class StoreCache(Cache):
    """What stock attention modules see: ``update`` writes into our store and returns the rows so far."""

    def __init__(self, store: SlotStore) -> None:
        super().__init__(layers=[])
        self.store = store

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        return self.store.write(layer_idx, key_states, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return max(self.store.lengths, default=0)

    def get_mask_sizes(self, query_length: Any, layer_idx: int = 0) -> tuple[int, int]:
        return self.get_seq_length() + int(query_length), 0


class _ShapeRecorder(Cache):
    """Notes what each layer writes; the first token of a model's life goes through it."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.shapes: LayerShapes = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        def shape(x: Tensor) -> PlaneShape:
            return PlaneShape(x.shape[1], x.shape[3], x.dtype)

        self.shapes[layer_idx] = (shape(key_states), shape(value_states))
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: Any, layer_idx: int = 0) -> tuple[int, int]:
        return int(query_length), 0


class HFModel(LanguageModel):
    """A transformers ``...ForCausalLM`` whose layers are all attention. Use ``model.load`` or ``model.wrap``."""

    branching = True

    def __init__(self, hf: PreTrainedModel, name: str = "") -> None:
        self.hf = hf.eval()
        config = text_config(hf.config)
        self.name = name or getattr(hf.config, "name_or_path", "") or type(hf).__name__
        self.family = str(config.model_type)
        self.device = hf.device
        self.dtype = hf.dtype
        head = hf.get_output_embeddings()
        self.vocab_size = int(head.weight.shape[0]) if head is not None else int(config.vocab_size)
        self.max_positions = context_limit(config)
        self.scores_last = "logits_to_keep" in inspect.signature(hf.forward).parameters
        self._capture = Capture(hf)
        self._stand_in = torch.empty(1, 1, 1, 1, dtype=torch.bool, device=self.device)
        self._native = self._use_own_attention()
        self.shapes = self._probe()

    # -- building -----------------------------------------------------------------------------------------

    def _use_own_attention(self) -> bool:
        """Switch the model to our attention where it goes through transformers' attention interface."""
        attention.register()
        can_set = getattr(self.hf, "_can_set_attn_implementation", None)
        if can_set is None or not can_set():
            return False
        attention.implementation(self.hf, attention.NAME)
        return True

    def _probe(self) -> LayerShapes:
        """Run one token: learn the cache's shapes, and check that our attention is really the one that runs."""
        recorder = _ShapeRecorder()
        block = Block.of_lists([[0]], self.device)
        store = SlotStore({}, self.device, max_rows=1, max_slots=1)
        store.add()
        plan = attention.AttentionPlan(block, store, 0, self.device)
        with torch.inference_mode():
            self._call(self.hf, block.tokens, torch.zeros_like(block.tokens), recorder, plan)
        if not recorder.shapes:
            raise ModelError(
                f"{self.name} ({self.family}) does not use a cache that can be replaced",
                why="No layer handed its keys and values over",
                hint="Use a causal language model of transformers whose layers call past_key_values.update.",
            )
        if self._native and len(plan.windows) != len(recorder.shapes):
            self._native = False  # keyword arguments do not reach the attention function in this family
            attention.implementation(self.hf, "eager")
        windows = expected_windows(self.hf.config)
        seen = [w is not None for w in plan.windows] if self._native else [False] * len(recorder.shapes)
        wanted = [w is not None for w in windows] if windows else [False] * len(seen)
        if seen != wanted:
            raise ModelError(
                f"{self.name} ({self.family}) has {sum(wanted)} sliding-window layers, "
                f"but {sum(seen)} of its layers hand a window to the attention function",
                why="Driving it would silently attend to the wrong tokens beyond the window",
                hint="Please report the family; until then use a model without sliding windows.",
            )
        return recorder.shapes

    # -- LanguageModel ------------------------------------------------------------------------------------

    def new_store(self, max_rows: int, max_slots: int) -> SlotStore:
        return SlotStore(self.shapes, self.device, max_rows, max_slots)

    def forward(
        self,
        block: Block,
        store: KVStore,
        *,
        first_row: int = 0,
        capture: tuple[int, ...] = (),
        logits: Literal["all", "none"] | int = "all",
    ) -> ModelOutput:
        assert isinstance(store, SlotStore)
        block = block.to(self.device)
        b, n = block.shape
        store.reserve(first_row, b, n, block.offset)
        plan = attention.AttentionPlan(block, store, first_row, self.device)
        positions = self._positions(block, store.next_positions[first_row : first_row + b])
        target = self.hf.get_decoder() if logits == "none" else self.hf
        keep = {"logits_to_keep": logits} if isinstance(logits, int) else {}
        with torch.inference_mode(), self._capture.layers(capture) as captured:
            out = self._call(target, block.tokens, positions, StoreCache(store), plan, keep)
        scores = torch.empty(b, 0, self.vocab_size, device=self.device) if logits == "none" else out.logits
        return ModelOutput(scores, captured.stacked() if capture else None)

    def _positions(self, block: Block, first: list[int]) -> Tensor:
        """i64[B,N]. Nodes beyond the end of the context are drafted in vain; learned tables stay in range."""
        b, n = block.shape
        last = (1 << 62) if self.max_positions is None else self.max_positions - 1
        if block.depth is None and b * n <= 64:  # one tensor call instead of four
            start = block.offset
            return torch.tensor([[min(f + start + i, last) for i in range(n)] for f in first], device=self.device)
        depth = torch.arange(block.offset, block.offset + n, device=self.device) if block.depth is None else block.depth
        return (torch.tensor(first, device=self.device)[:, None] + depth).clamp(max=last)

    def _call(
        self,
        target: Any,
        tokens: Tensor,
        positions: Tensor,
        cache: Cache,
        plan: attention.AttentionPlan,
        options: dict[str, Any] | None = None,
    ) -> Any:
        if self._native:
            # The plan carries the mask; a 4-D stand-in keeps stock code from building one of its own.
            extra: dict[str, Any] = {"attention_mask": self._stand_in, "plan": plan}
        else:
            mask = plan.additive(None, self.dtype)
            if mask is None:
                mask = torch.zeros(tokens.shape[0], 1, 1, plan.slots, dtype=self.dtype, device=self.device)
            extra = {"attention_mask": mask}
        return target(
            input_ids=tokens,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            return_dict=True,
            **extra,
            **(options or {}),
        )
