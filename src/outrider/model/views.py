"""Sub-models that share weights and stored keys and values with a model: a choice of its layers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn

from outrider.errors import ConfigError
from outrider.model.capture import decoder_layers
from outrider.model.families import text_config
from outrider.model.hf import HFModel

_PER_LAYER = ("layer_types", "layers_block_type", "no_rope_layers", "mlp_layer_types")
"""Settings of a configuration that list one entry per layer and are read during the forward."""


def view(model: HFModel, layers: Sequence[int]) -> HFModel:
    """``model`` with only ``layers`` (0-based, ascending), sharing its weights.

    A forward of the view with a store of ``model`` reads and writes the planes of those layers alone; they
    keep their numbers. ``model``, its configuration and its modules stay as they are; the view has copies of
    them around the same parameters. Raises ``ConfigError`` for layers that do not exist or are out of order.
    """
    chosen = list(layers)
    count = int(text_config(model.hf.config).num_hidden_layers)
    if not chosen or chosen != sorted(set(chosen)) or not 0 <= chosen[0] <= chosen[-1] < count:
        raise ConfigError(
            f"layers {chosen} cannot be a view of {model.name}",
            why=f"They must be ascending and within 0 to {count - 1}, at least one",
            hint="For example range(0, n) for an early exit, or a list without the skipped layers.",
        )
    hf = shared_copy(model.hf)
    _keep_layers(hf, chosen)
    part = HFModel(hf, f"{model.name}[{len(chosen)} of {count} layers]")
    part.weights_version = model.weights_version
    return part


def shared_copy(hf: Any) -> Any:
    """A copy of the modules and configurations of ``hf`` around the same parameters and buffers."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*hf.parameters(), *hf.buffers())}
    return copy.deepcopy(hf, memo)


def _keep_layers(hf: Any, chosen: list[int]) -> None:
    """Drop all other decoder layers, and the entries of the configurations that describe them."""
    layers = decoder_layers(hf)
    count = len(layers)
    for module in list(hf.modules()):
        for name, child in module.named_children():
            if child is layers:
                setattr(module, name, nn.ModuleList(layers[index] for index in chosen))
    configs = {id(c): c for module in hf.modules() if (c := getattr(module, "config", None)) is not None}
    for config in {id(c): c for outer in configs.values() for c in (outer, text_config(outer))}.values():
        if getattr(config, "num_hidden_layers", None) != count:
            continue
        for name in _PER_LAYER:
            listed = getattr(config, name, None)
            if isinstance(listed, list) and len(listed) == count:
                setattr(config, name, [listed[index] for index in chosen])
        config.num_hidden_layers = len(chosen)
