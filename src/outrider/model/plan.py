"""The memory a model will take, computed from its configuration before anything is loaded.

The model is built on torch's ``meta`` device, which has shapes and no data. One token through it tells what
each layer stores, for any architecture; where that is not possible a formula stands in.
"""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from outrider.cache.slots import LayerShapes
from outrider.model.families import context_limit, is_recurrent, refuse_by_name, text_config
from outrider.model.load import resolve_device, resolve_dtype

_SNAPSHOTS = 2
"""Copies of a recurrent state per row: the running one and the one before the block."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by purpose. ``tree`` is the masks of one forward, ``logits`` the scores of its nodes and their
    probabilities, ``drafter`` weights and cache of a draft model. ``available`` is what the device has free
    now (0: unknown, which counts as fitting)."""

    weights: int
    cache: int
    tree: int
    logits: int
    drafter: int
    available: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.tree + self.logits + self.drafter

    @property
    def fits(self) -> bool:
        return not self.available or self.total <= self.available

    def rows(self) -> list[tuple[str, str]]:
        """(purpose, size) lines for printing, the total and what is available last."""
        parts = [(part.name, _human(getattr(self, part.name))) for part in fields(self)[:-1]]
        available = _human(self.available) if self.available else "unknown"
        return [*parts, ("total", _human(self.total)), ("available", available)]

    def as_dict(self) -> dict[str, int | bool]:
        """All figures as JSON values."""
        return {
            **{part.name: getattr(self, part.name) for part in fields(self)},
            "total": self.total,
            "fits": self.fits,
        }


@dataclass(frozen=True)
class Footprint:
    """What one model needs, in bytes: ``weights``, ``per_token`` of cache, ``per_row`` of running state."""

    weights: int
    per_token: int
    per_row: int
    vocab: int
    groups: int


def plan(
    model: Any,
    *,
    context: int | None = None,
    rows: int = 1,
    nodes: int = 32,
    draft_model: Any = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    available: int | None = None,
) -> MemoryPlan:
    """Memory to decode ``rows`` requests of up to ``context`` tokens with trees of ``nodes`` nodes.

    ``model`` and ``draft_model`` are configurations, transformers models, folders, or names that are here or
    on the hub (only the configuration is read). ``context`` defaults to the model's limit, at most 4,096.
    Raises ``ModelError`` for a family that is refused and for a model that cannot be found.
    """
    place = resolve_device(device)
    number = resolve_dtype(dtype, place)
    target, config, number = _footprint_of(model, number)
    if context is None:
        context = min(context_limit(config) or 4096, 4096)
    slots = context + nodes
    masks = rows * nodes * slots * (number.itemsize * (1 + (target.groups if target.groups > 1 else 0)) + 1)
    logits = rows * nodes * target.vocab * (number.itemsize + torch.float32.itemsize)
    drafter = 0
    if draft_model is not None:
        draft, _, _ = _footprint_of(draft_model, number)
        drafter = draft.weights + _cache_bytes(draft, rows, slots)
    return MemoryPlan(
        weights=target.weights,
        cache=_cache_bytes(target, rows, slots),
        tree=masks if nodes > 1 else 0,
        logits=logits,
        drafter=drafter,
        available=available_bytes(place) if available is None else available,
    )


def _cache_bytes(footprint: Footprint, rows: int, slots: int) -> int:
    return rows * (slots * footprint.per_token + _SNAPSHOTS * footprint.per_row)


def _footprint_of(model: Any, dtype: torch.dtype) -> tuple[Footprint, Any, torch.dtype]:
    """(footprint, configuration, dtype) of a configuration, model object, folder or name."""
    if isinstance(model, nn.Module):  # here already: count it as it is
        weights = sum({id(t): t.numel() * t.element_size() for t in _tensors(model)}.values())
        config, number = model.config, model.dtype
        refuse_by_name(config)
        found = footprint(config, number)  # type: ignore[arg-type]
        replaced = Footprint(weights, found.per_token, found.per_row, found.vocab, found.groups)
        return replaced, config, number  # type: ignore[return-value]
    stored = 0
    if isinstance(model, str | Path):
        model, stored = _read_config(str(model))
    refuse_by_name(model)
    found = footprint(model, dtype)
    if stored:
        found = Footprint(stored, found.per_token, found.per_row, found.vocab, found.groups)
    return found, model, dtype


def _read_config(name: str) -> tuple[Any, int]:
    """(configuration, bytes of the weight files if they are quantised else 0)."""
    from transformers import AutoConfig

    from outrider import pull
    from outrider.model import files

    found = pull.locate(name)
    folder = Path(found)
    if folder.is_dir() and files.is_adapter(folder):
        folder = files.base_of(folder)
        found = str(folder)
    config = AutoConfig.from_pretrained(found, trust_remote_code=False)
    quantised = getattr(config, "quantization_config", None)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors")) if quantised else 0
    return config, size


def footprint(config: Any, dtype: torch.dtype) -> Footprint:
    """What a model of ``config`` needs in ``dtype``; nothing is loaded and ``config`` is not changed."""
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(config)
    text = text_config(config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    weights = sum({id(t): t.numel() * t.element_size() for t in _tensors(model)}.values())
    for module in model.modules():
        if type(module).__name__.endswith("Experts"):  # which experts run depends on data; the cache does not
            module.forward = _same
    try:
        per_token, per_row = _recurrent_cache(model) if is_recurrent(config) else _attention_cache(model)
    except Exception:  # an operation without a meta kernel: take the textbook sizes
        per_token, per_row = formula(config, dtype), 0
    heads = int(getattr(text, "num_attention_heads", 1) or 1)
    groups = heads // int(getattr(text, "num_key_value_heads", heads) or heads)
    return Footprint(weights, per_token, per_row, int(text.vocab_size), groups)


def _attention_cache(model: Any) -> tuple[int, int]:
    from outrider.model.hf import HFModel

    shapes: LayerShapes = HFModel(model).shapes
    return sum(plane.bytes_per_token for pair in shapes.values() for plane in pair), 0


def _recurrent_cache(model: Any) -> tuple[int, int]:
    from outrider.model.recurrent import cache_argument

    cache = DynamicCache(config=model.config)
    tokens = torch.zeros(1, 1, dtype=torch.int64, device="meta")
    with torch.inference_mode():
        model(input_ids=tokens, use_cache=True, **{cache_argument(model): cache})
    per_token = per_row = 0
    for layer in cache.layers:
        for name, value in vars(layer).items():
            if isinstance(value, torch.Tensor) and name in {"keys", "values"}:
                per_token += value.numel() * value.element_size()
            elif isinstance(value, dict):
                states = [state for state in value.values() if isinstance(state, torch.Tensor)]
                per_row += sum(state.numel() * state.element_size() for state in states)
    return per_token, per_row


def formula(config: Any, dtype: torch.dtype) -> int:
    """Bytes per token of keys and values by the textbook: layers x heads x width x 2."""
    text = text_config(config)
    heads = int(text.num_attention_heads)
    kv_heads = int(getattr(text, "num_key_value_heads", None) or heads)
    width = int(getattr(text, "head_dim", None) or text.hidden_size // heads)
    return int(text.num_hidden_layers) * 2 * kv_heads * width * dtype.itemsize


def _same(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    return hidden_states


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def available_bytes(device: torch.device) -> int:
    """Free memory of ``device`` in bytes, 0 where it cannot be told."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return 0


def _human(count: int) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024  # type: ignore[assignment]
    raise AssertionError
