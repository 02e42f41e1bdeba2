"""The table model says what ``law`` says, through its store; and the loop over it has the right joint law."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from outrider.errors import CacheFull
from outrider.model.base import Block
from outrider.model.table import TableModel, TableStore
from outrider.rng import Draws, Purpose, inverse_cdf
from outrider.sampling import Warped
from outrider.testing.stats import chi_square, histogram
from outrider.types import DraftTree, Drawn
from outrider.verify.base import TargetView, Verifier
from outrider.verify.match import Match
from outrider.verify.recursive import Recursive

MODEL = TableModel(5, seed=4)
ROWS = [
    ([3, 1, 2, 2, 0, 4], [-1, 0, 0, 2, 2, 3], [1, 4]),
    ([0, 4, 4, 1], [-1, 0, 1, 0], [2, 0, 3, 1]),
]  # tokens, parents, stored past


def filled(model: TableModel, pasts: list[list[int]]) -> TableStore:
    store = model.new_store(8, 32)
    store.add(len(pasts))
    model.forward(Block.of_lists(pasts), store, logits="none")
    store.extend(0, [len(past) for past in pasts])
    return store


def path_tokens(tokens: list[int], parents: list[int], node: int) -> list[int]:
    found = []
    while node >= 0:
        found.insert(0, tokens[node])
        node = parents[node]
    return found


def test_a_ragged_batch_of_trees_gives_the_law_of_every_path() -> None:
    store = filled(MODEL, [past for _, _, past in ROWS])
    tree = DraftTree.build([(tokens, parents) for tokens, parents, _ in ROWS])
    law = MODEL.forward(Block.of_tree(tree), store).logits.softmax(-1)
    for row, (tokens, parents, past) in enumerate(ROWS):
        for node in range(len(tokens)):
            expected = MODEL.law(past + path_tokens(tokens, parents, node))
            assert torch.allclose(law[row, node], expected, atol=1e-14)


def test_a_tree_grown_level_by_level_is_the_same_tree() -> None:
    tokens, parents, past = ROWS[0]
    tree = DraftTree.build([(tokens, parents)])
    whole = MODEL.forward(Block.of_tree(tree), filled(MODEL, [past])).logits
    store, parts = filled(MODEL, [past]), []
    for start, stop in ((0, 1), (1, 3), (3, 6)):
        block = Block(
            tokens=tree.tokens[:, start:stop],
            counts=[stop - start],
            depth=tree.depth[:, start:stop],
            ancestors=tree.ancestors[:, start:stop, :stop],
            offset=start,
            earlier=tree.depth[:, :start],
        )
        parts.append(MODEL.forward(block, store).logits)
    assert torch.equal(torch.cat(parts, 1), whole)


def test_commit_fork_free_rewind_and_park() -> None:
    store = filled(MODEL, [past for _, _, past in ROWS])
    tree = DraftTree.build([(tokens, parents) for tokens, parents, _ in ROWS])
    MODEL.forward(Block.of_tree(tree), store)
    store.commit(torch.tensor([[0, 2, 4], [0, 3, -1]]), [3, 2])
    texts = [[1, 4, 3, 2, 0], [2, 0, 3, 1, 0, 1]]
    assert store.lengths == store.next_positions == [5, 6]
    texts.append(texts[1])
    assert store.fork(1) == 2
    kept = store.park(0)
    store.free(0)
    texts[0] = texts.pop()
    store.add()
    store.adopt(2, kept, 4)
    texts.append([1, 4, 3, 2])
    store.rewind([3, 6, 4])
    texts[0] = texts[0][:3]
    last = Block.of_lists([[1, 1, 3], [2], [3, 0]])
    law = MODEL.forward(last, store).logits.softmax(-1)
    for row, (text, new) in enumerate(zip(texts, ([1, 1, 3], [2], [3, 0]), strict=True)):
        for n in range(len(new)):
            assert torch.allclose(law[row, n], MODEL.law(text + new[: n + 1]), atol=1e-14)


def test_a_full_store_says_so() -> None:
    store = MODEL.new_store(1, 4)
    store.add()
    with pytest.raises(CacheFull, match="slots"):
        MODEL.forward(Block.of_lists([[1, 2, 3, 4, 0]]), store)
    with pytest.raises(CacheFull, match="rows"):
        store.add()


@pytest.mark.parametrize("fault", ["mask", "depth", "commit", "stale"])
def test_the_law_shows_every_kind_of_mistake(fault: str) -> None:
    tokens, parents, past = ROWS[0]
    tree = DraftTree.build([(tokens, parents)])
    store = filled(MODEL, [past])
    block = Block.of_tree(tree)
    if fault == "mask":
        block.ancestors = torch.ones(6, 6, dtype=torch.bool).tril()[None]
    if fault == "depth":
        block.depth = torch.arange(6)[None]
    law = MODEL.forward(block, store).logits.softmax(-1)
    right = [MODEL.law(past + path_tokens(tokens, parents, n)) for n in range(6)]
    if fault in ("mask", "depth"):
        assert max(float((law[0, n] - right[n]).abs().max()) for n in range(6)) > 0.01
        return
    store.commit(torch.tensor([[0, 1, 2] if fault == "commit" else [0, 2, 4]]), [3])
    if fault == "stale":
        store.tokens[0, 4] = 3
    after = MODEL.forward(Block.of_lists([[1]]), store).logits.softmax(-1)
    assert float((after[0, 0] - MODEL.law([*past, 3, 2, 0, 1])).abs().max()) > 0.01


def loop_law(rule: Verifier, rows: int, wrong_commit: bool = False) -> Tensor:
    """i64[rows,3]: three tokens by rounds of two siblings drawn without replacement from a near model."""
    prompt, draft = [1, 0, 2], MODEL.near(1.5, 9)
    stores = [model.new_store(rows, 16) for model in (MODEL, draft)]
    for model, store in zip((MODEL, draft), stores, strict=True):
        store.add(rows)
        model.forward(Block.of_lists([prompt[:-1]] * rows), store, logits="none")
        store.extend(0, torch.full((rows,), len(prompt) - 1))
    every = torch.arange(rows)
    out, filled_ = torch.full((rows, 7), -1), torch.zeros(rows, dtype=torch.int64)
    root = torch.full((rows,), prompt[-1])
    for _ in range(3):
        draws = Draws.of(every, torch.zeros_like(every), stores[0].length)
        q = draft.forward(Block(root[:, None], [1] * rows), stores[1]).logits.softmax(-1)
        first = inverse_cdf(q[:, 0], draws.uniform(Purpose.DRAFT, torch.full((rows,), 0)))
        rest = q[:, 0].scatter(1, first[:, None], 0)
        second = inverse_cdf(rest, draws.uniform(Purpose.DRAFT, torch.full((rows,), 1)))
        tree = DraftTree(
            tokens=torch.stack([root, first, second], 1),
            parents=torch.tensor([-1, 0, 0]).expand(rows, 3),
            depth_bound=1,
            width_bound=2,
            drawn=torch.full((rows, 3), int(Drawn.WITHOUT_REPLACEMENT)),
            law=torch.tensor([-1, 0, 0]).expand(rows, 3),
            laws=q,
        )
        block = Block.of_tree(tree)
        draft.forward(block, stores[1], logits="none")
        p = MODEL.forward(block, stores[0]).logits.softmax(-1)
        verdict = rule.verify(tree, TargetView(Warped.from_probs(p)), draws)
        path = torch.arange(2).where(verdict.path >= 0, -1) if wrong_commit else verdict.path
        for store in stores:
            store.commit(path, verdict.count)
        taken = tree.tokens.gather(1, verdict.path[:, 1:].clamp(min=0)).squeeze(1)
        two = verdict.count == 2
        out[every, filled_] = torch.where(two, taken, verdict.bonus)
        out[every[two], filled_[two] + 1] = verdict.bonus[two]
        filled_ += verdict.count
        root = verdict.bonus
    return out[:, :3]


@pytest.mark.parametrize("rule", [Match(), Recursive()], ids=["Match", "Recursive"])
def test_three_rounds_have_the_joint_law_of_the_target(rule: Verifier) -> None:
    prompt, v = [1, 0, 2], 5
    law = torch.stack(
        [
            MODEL.law(prompt)[a] * MODEL.law([*prompt, a])[b] * MODEL.law([*prompt, a, b])[c]
            for a in range(v)
            for b in range(v)
            for c in range(v)
        ]
    ).view(v, v, v)
    right = chi_square(histogram(loop_law(rule, 100_000), v), law)
    wrong = chi_square(histogram(loop_law(rule, 50_000, wrong_commit=True), v), law)
    print(f"{type(rule).__name__} through the loop: {right}; with a wrong commit: {wrong}")
    assert right.p_value > 0.001
    assert wrong.p_value < 1e-6
