"""Every family scores a ragged batch of trees exactly as a full forward of each path would."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
import zoo

from outrider.errors import CacheFull, ModelError
from outrider.model.base import Block
from outrider.model.families import PROVEN, expected_windows
from outrider.model.hf import HFModel
from outrider.types import DraftTree

NAMES = sorted(zoo.FAMILIES)
PAST = [13, 21]  # both beyond the sliding window, and of different lengths


class Case:
    """A wrapped family, its pristine reference, and a store with two prefilled rows."""

    def __init__(self, name: str) -> None:
        self.hf, self.reference = zoo.pair(name)
        self.model = HFModel(self.hf)
        self.tolerance = zoo.FAMILIES[name].tolerance
        self.rows = [zoo.prompt(length, seed) for seed, length in enumerate(PAST)]
        self.store = self.model.new_store(max_rows=6, max_slots=120)
        self.store.add(2)
        self.model.forward(Block.of_lists(self.rows), self.store, logits="none")
        self.store.extend(0, PAST)

    def score(self, tree: DraftTree) -> torch.Tensor:
        return self.model.forward(Block.of_tree(tree), self.store).logits

    def check(self, tree: DraftTree) -> None:
        assert zoo.worst_of(self.reference, tree, self.rows, self.score(tree)) < self.tolerance

    def commit(self, tree: DraftTree, paths: list[list[int]]) -> None:
        longest = max(len(path) for path in paths)
        padded = torch.tensor([path + [-1] * (longest - len(path)) for path in paths])
        self.store.commit(padded, [len(path) for path in paths])
        for row, path in enumerate(paths):
            assert tree.host is not None
            self.rows[row] = self.rows[row] + [tree.host[row][0][node] for node in path]


def test_every_family_of_the_list_is_here() -> None:
    assert len(NAMES) == 22
    assert set(NAMES) == PROVEN


@pytest.mark.parametrize("name", NAMES)
def test_a_ragged_batch_of_trees_equals_full_forwards(name: str) -> None:
    case = Case(name)
    assert case.model._native == zoo.FAMILIES[name].native
    tree = zoo.random_tree([9, 5], seed=3)  # row 1 has four padding nodes
    case.check(tree)
    # The control: causal order in place of the tree must show, or the check above proves nothing.
    causal = Block(tree.tokens, [9, 5], depth=tree.depth)
    scores = case.model.forward(causal, case.store).logits
    assert zoo.worst_of(case.reference, tree, case.rows, scores) > 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_commit_rewind_fork_free_and_an_empty_row(name: str) -> None:
    case = Case(name)
    tree = DraftTree.build([([5, 1, 2, 3, 4, 6], [-1, 0, 0, 1, 3, 2]), ([7, 9, 8], [-1, 0, 1])])
    case.score(tree)
    case.commit(tree, [[0, 2, 5], [0]])  # skips nodes: kept keys have to move
    case.check(zoo.random_tree([4, 6], seed=4))

    lengths = [len(row) - cut for row, cut in zip(case.rows, (2, 5), strict=True)]
    case.store.rewind(lengths)
    case.rows = [row[:length] for row, length in zip(case.rows, lengths, strict=True)]
    case.check(zoo.random_tree([3, 3], seed=5))

    assert case.store.fork(0) == 2
    assert case.store.add() == 3  # a row with an empty past
    case.rows += [list(case.rows[0]), []]
    tree = zoo.random_tree([5, 2, 7, 4], seed=6)
    case.check(tree)
    case.commit(tree, [[0], [0, 1], [0], [0]])

    case.store.free(1)  # the last row takes its place
    case.rows[1] = case.rows.pop()
    assert case.store.lengths == [len(row) for row in case.rows]
    case.check(zoo.random_tree([2, 6, 4], seed=7))


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_in_chunks_equals_a_prompt_at_once(name: str) -> None:
    hf, reference = zoo.pair(name)
    model = HFModel(hf)
    tokens = zoo.prompt(19, seed=8)
    expected = zoo.full(reference, tokens)
    for chunks in ([19], [7, 1, 11]):
        store = model.new_store(max_rows=2, max_slots=64)
        store.add()
        parts, start = [], 0
        for size in chunks:
            out = model.forward(Block.of_lists([tokens[start : start + size]]), store)
            store.extend(0, [size])
            parts.append(out.logits[0])
            start += size
        assert (torch.cat(parts) - expected).abs().max() < zoo.FAMILIES[name].tolerance


@pytest.mark.parametrize("name", NAMES)
def test_captured_states_are_those_of_the_stock_model(name: str) -> None:
    case = Case(name)
    tokens = [3, 1, 4]
    wanted = (0, 1, 2, -1)
    got = case.model.forward(Block.of_lists([tokens, tokens]), case.store, capture=wanted).hidden
    assert got is not None
    assert got.shape[:3] == (2, len(tokens), len(wanted))
    for row, past in enumerate(case.rows):
        with torch.no_grad(), zoo.softmax_unrounded():
            stock = case.reference(torch.tensor([past + tokens]), output_hidden_states=True, use_cache=False)
        for index, layer in enumerate(wanted):
            difference = stock.hidden_states[layer][0, len(past) :] - got[row, :, index]
            assert difference.abs().max() < max(case.tolerance, 1e-9), layer


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss", "falcon", "deepseek_v3"])
def test_random_rounds_with_padding_in_some_rows(name: str) -> None:
    case = Case(name)
    for seed, sizes in enumerate(([1, 8], [6, 2], [3, 3], [10, 1])):
        tree = zoo.random_tree(sizes, seed=20 + seed)
        case.check(tree)
        paths = []
        for row in range(2):
            assert tree.host is not None
            path, at = [], len(tree.host[row][0]) - 1
            while at >= 0:
                path.append(at)
                at = tree.host[row][1][at]
            paths.append(path[::-1])
        case.commit(tree, paths)


@pytest.mark.parametrize("name", ["llama", "mixtral", "gpt_oss", "gptj"])
def test_float32_stays_within_rounding(name: str) -> None:
    hf, reference = zoo.pair(name, torch.float32)
    model = HFModel(hf)
    store = model.new_store(max_rows=2, max_slots=64)
    store.add(2)
    rows = [zoo.prompt(length, seed) for seed, length in enumerate(PAST)]
    model.forward(Block.of_lists(rows), store, logits="none")
    store.extend(0, PAST)
    tree = zoo.random_tree([9, 5], seed=3)
    scores = model.forward(Block.of_tree(tree), store).logits
    assert zoo.worst_of(reference, tree, rows, scores) < 2e-4


def test_bloom_is_refused_by_name() -> None:
    from outrider.model.families import refuse_by_name

    config = tf.BloomConfig(vocab_size=zoo.VOCAB, hidden_size=32, n_layer=2, n_head=4)
    with pytest.raises(ModelError, match="bloom uses ALiBi"):
        refuse_by_name(config)


def test_windows_are_read_as_the_layers_use_them() -> None:
    assert expected_windows(zoo.FAMILIES["gemma3_text"].config()) == [zoo.WINDOW, None, zoo.WINDOW]
    assert expected_windows(zoo.FAMILIES["llama"].config()) == [None] * 3


def test_a_full_store_says_what_to_do() -> None:
    hf, _ = zoo.pair("llama")
    model = HFModel(hf)
    store = model.new_store(max_rows=1, max_slots=8)
    store.add()
    with pytest.raises(CacheFull, match="raise max_context"):
        model.forward(Block.of_lists([[1] * 9]), store)
