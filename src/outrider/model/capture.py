"""Hidden states of chosen layers, taken with forward hooks only while somebody asks for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from outrider.errors import ModelError
from outrider.model.families import text_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def decoder_layers(hf: nn.Module) -> nn.ModuleList:
    """The list of decoder layers, found by structure: a ``ModuleList`` with one entry per hidden layer."""
    count = text_config(hf.config).num_hidden_layers
    for module in hf.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count and any(True for _ in module.parameters()):
            return module
    raise ModelError(f"no list of {count} decoder layers in {type(hf).__name__}", hint="Hidden states are unavailable.")


class Captured:
    """States by layer number of one forward; see ``Needs.hidden`` for the numbering."""

    def __init__(self, wanted: tuple[int, ...]) -> None:
        self.wanted = wanted
        self.states: dict[int, Tensor] = {}

    def stacked(self) -> Tensor:
        """f[B,N,C,D] in the order asked for."""
        return torch.stack([self.states[layer] for layer in self.wanted], dim=2)


class Capture:
    """Hooks the layers of one model."""

    def __init__(self, hf: PreTrainedModel) -> None:
        self.hf = hf

    @contextmanager
    def layers(self, wanted: tuple[int, ...]) -> Iterator[Captured]:
        """Capture ``wanted`` during the forwards inside the context."""
        captured = Captured(wanted)
        handles = self._hook(captured) if wanted else []
        try:
            yield captured
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, captured: Captured) -> list[Any]:
        layers = decoder_layers(self.hf)
        for layer in captured.wanted:
            if not -1 <= layer <= len(layers):
                raise ModelError(
                    f"layer {layer} was asked for, but the model has layers 0 (embedding) to {len(layers)}",
                    hint="Use -1 for the state after the final norm.",
                )

        def first(tensors: Any) -> Tensor:
            return tensors[0] if isinstance(tensors, tuple) else tensors

        handles = []
        for layer in captured.wanted:
            if layer == 0:

                def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                    captured.states[0] = args[0] if args else kwargs["hidden_states"]

                handles.append(layers[0].register_forward_pre_hook(before, with_kwargs=True))
            elif layer == -1:

                def last(_: nn.Module, args: Any, out: Any) -> None:
                    captured.states[-1] = out.last_hidden_state

                handles.append(self.hf.get_decoder().register_forward_hook(last))
            else:

                def after(_: nn.Module, args: Any, out: Any, layer: int = layer) -> None:
                    captured.states[layer] = first(out)

                handles.append(layers[layer - 1].register_forward_hook(after))
        return handles
