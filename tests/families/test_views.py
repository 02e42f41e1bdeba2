"""Sub-models share weights and cache planes, and equal a stock model built from the same layers."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import zoo

from outrider.errors import ConfigError
from outrider.model.base import Block
from outrider.model.families import text_config
from outrider.model.hf import HFModel
from outrider.model.views import view

CHOSEN = [0, 2]


def stock_subset(name: str, hf: Any, chosen: list[int]) -> Any:
    """A stock model with ``len(chosen)`` layers that carry the weights of those of ``hf``."""
    config = zoo.FAMILIES[name].config()
    types = getattr(config, "layer_types", None)
    if types is not None:
        config.layer_types = [types[index] for index in chosen]
    config.num_hidden_layers = len(chosen)
    model = zoo.build(config)
    state = {}
    for key, value in hf.state_dict().items():
        match = re.match(r"(.*?\b(?:layers|h)\.)(\d+)(\..*)", key)
        if match is None:
            state[key] = value
        elif int(match[2]) in chosen:
            state[f"{match[1]}{chosen.index(int(match[2]))}{match[3]}"] = value
    model.load_state_dict(state)
    return zoo.pristine(model)


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gpt_oss", "gpt2", "falcon", "mistral", "smollm3"])
def test_a_view_equals_a_stock_model_of_those_layers(name: str) -> None:
    hf, whole = zoo.pair(name)
    if name == "gemma3_text":  # full attention must not land on a layer with a window, and the other way round
        assert text_config(hf.config).layer_types == zoo._MIXED
    chosen = [1, 2] if name == "gemma3_text" else CHOSEN
    reference = stock_subset(name, hf, chosen)
    model = HFModel(hf)
    part = view(model, chosen)
    store = model.new_store(max_rows=2, max_slots=100)
    store.add(2)
    rows = [zoo.prompt(13, 1), zoo.prompt(21, 2)]
    model.forward(Block.of_lists(rows), store, logits="none")
    store.extend(0, [13, 21])

    own = part.new_store(max_rows=2, max_slots=100)
    own.add(2)
    part.forward(Block.of_lists(rows), own, logits="none")
    own.extend(0, [13, 21])
    tree = zoo.random_tree([7, 5], seed=3)
    assert zoo.worst_of(reference, tree, rows, part.forward(Block.of_tree(tree), own).logits) < 1e-9
    # The whole model is untouched by its view.
    assert zoo.worst_of(whole, tree, rows, model.forward(Block.of_tree(tree), store).logits) < 1e-9
    assert text_config(hf.config).num_hidden_layers == 3


def test_a_view_writes_only_its_layers_into_the_shared_store() -> None:
    hf, _ = zoo.pair("llama")
    model = HFModel(hf)
    part = view(model, CHOSEN)
    store = model.new_store(max_rows=1, max_slots=32)
    store.add()
    part.forward(Block.of_lists([[1, 2, 3, 4]]), store)
    planes = next(iter(store._buffers.values()))  # f[P,R,H,S,D]: keys and values of layers 0, 1, 2
    written = [bool((planes[2 * layer] != 0).any()) for layer in range(3)]
    assert written == [True, False, True]


def test_a_view_shares_its_parameters() -> None:
    hf, _ = zoo.pair("llama")
    model = HFModel(hf)
    part = view(model, CHOSEN)
    ours = {id(weight) for weight in hf.parameters()}
    assert {id(weight) for weight in part.hf.parameters()} < ours
    with torch.no_grad():
        hf.model.layers[2].mlp.up_proj.weight.zero_()
    assert not part.hf.model.layers[1].mlp.up_proj.weight.any()
    assert len(hf.model.layers) == 3


@pytest.mark.parametrize("layers", [[], [0, 3], [2, 0], [1, 1], [-1]])
def test_layers_that_do_not_exist_are_named(layers: list[int]) -> None:
    hf, _ = zoo.pair("llama")
    with pytest.raises(ConfigError, match="within 0 to 2"):
        view(HFModel(hf), layers)


def test_trap_layer_types_left_behind_give_the_wrong_windows() -> None:
    """Stock code pairs layers with ``layer_types`` by position: dropping layers alone shifts the windows."""
    hf, _ = zoo.pair("gemma3_text")
    chosen = [1, 2]
    reference = stock_subset("gemma3_text", hf, chosen)
    naive = zoo.pristine(hf)
    naive.model.layers = torch.nn.ModuleList(naive.model.layers[index] for index in chosen)
    naive.config.num_hidden_layers = len(chosen)
    tokens = zoo.prompt(20, seed=1)
    assert (zoo.full(naive, tokens) - zoo.full(reference, tokens)).abs().max() > 1e-2
    part = view(HFModel(hf), chosen)
    store = part.new_store(max_rows=1, max_slots=32)
    store.add()
    logits = part.forward(Block.of_lists([tokens]), store).logits[0]
    assert (logits - zoo.full(reference, tokens)).abs().max() < 1e-9
