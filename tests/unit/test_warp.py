"""``warp`` against transformers' own processors, node by node, each on the full text of its path."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from outrider.errors import RequestError
from outrider.params import SamplingParams
from outrider.sampling import RowSampling, Warped, dead_end, paths_of, top_logprobs, warp
from outrider.types import PADDING, DraftTree

VOCAB = 23
STOPS = (0, 5)

PARAMS: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.7},
    "hot": {"temperature": 1.3},
    "top_k": {"temperature": 1.0, "top_k": 5},
    "top_k larger than the vocabulary": {"temperature": 1.0, "top_k": 500},
    "top_p": {"temperature": 1.0, "top_p": 0.8},
    "tiny top_p": {"temperature": 1.0, "top_p": 1e-6},
    "min_p": {"temperature": 1.0, "min_p": 0.2},
    "typical_p": {"temperature": 1.0, "typical_p": 0.6},
    "repetition": {"temperature": 1.0, "repetition_penalty": 1.7},
    "reward for repetition": {"temperature": 1.0, "repetition_penalty": 0.6},
    "presence": {"temperature": 1.0, "presence_penalty": 1.1},
    "frequency": {"temperature": 1.0, "frequency_penalty": -0.7},
    "bias": {"temperature": 1.0, "logit_bias": {3: 2.5, 4: -1.0, 9: float("-inf")}},
    "bad words": {"temperature": 1.0, "bad_words": [[4], [1, 2], [2, 2], [1, 3, 2], [6, 6, 6]]},
    "min_tokens": {"temperature": 1.0, "min_tokens": 6},
    "greedy": {},
    "greedy with penalties": {"repetition_penalty": 1.4, "frequency_penalty": 0.5, "min_tokens": 5},
    "truncated": {"temperature": 0.8, "top_k": 9, "top_p": 0.9, "min_p": 0.05, "typical_p": 0.8},
    "everything": {
        "temperature": 0.9,
        "top_k": 12,
        "top_p": 0.95,
        "min_p": 0.02,
        "repetition_penalty": 1.3,
        "presence_penalty": 0.4,
        "frequency_penalty": 0.3,
        "logit_bias": {2: 1.5, 7: -2.0},
        "bad_words": [[8], [1, 2], [3, 1, 2]],
        "min_tokens": 7,
    },
}


def reference(params: SamplingParams, prompt: list[int], output: list[int], logits: Tensor) -> Tensor:
    """The law f[V] after ``prompt + output``, computed from scratch by transformers' classes."""
    first = LogitsProcessorList()
    if params.logit_bias:
        first.append(SequenceBiasLogitsProcessor({(t,): b for t, b in params.logit_bias.items()}))
    if params.repetition_penalty != 1:
        first.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    ids = torch.tensor([prompt + output])
    scores = first(ids, logits[None].clone())
    for token in set(output):  # not in transformers: OpenAI's formula
        scores[0, token] -= params.presence_penalty + params.frequency_penalty * output.count(token)
    rest = LogitsProcessorList()
    if params.bad_words:
        rest.append(NoBadWordsLogitsProcessor([list(word) for word in params.bad_words]))
    if params.min_tokens:
        rest.append(MinNewTokensLengthLogitsProcessor(len(prompt), params.min_tokens, list(STOPS)))
    if not params.greedy:
        rest.append(TemperatureLogitsWarper(params.temperature))
        if params.top_k:
            rest.append(TopKLogitsWarper(params.top_k))
        if params.top_p < 1:
            rest.append(TopPLogitsWarper(params.top_p))
        if params.min_p:
            rest.append(MinPLogitsWarper(params.min_p))
        if params.typical_p < 1:
            rest.append(TypicalLogitsWarper(params.typical_p))
    scores = rest(ids, scores)[0]
    if params.greedy:
        return torch.nn.functional.one_hot(scores.argmax(), len(scores)).double()
    return scores.softmax(-1)


def row_of(params: SamplingParams, prompt: list[int], output: list[int], vocab: int = VOCAB) -> RowSampling:
    row = RowSampling(params, vocab, prompt, stop_ids=STOPS)
    row.advance(output[:1])  # in two pieces, as after two steps
    row.advance(output[1:])
    return row


def random_logits(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def host_path(tokens: list[int], parents: list[int], node: int) -> list[int]:
    path: list[int] = []
    while node > 0:
        path.insert(0, tokens[node])
        node = parents[node]
    return path


# Few distinct tokens, so that penalties and bad words meet repetitions on the way.
TOKEN = st.integers(0, 9)


@st.composite
def row_trees(draw: st.DrawFn) -> tuple[list[int], list[int], list[int], list[int]]:
    """(prompt, output, tokens, parents); the root is the last token so far."""
    prompt = draw(st.lists(TOKEN, min_size=1, max_size=6))
    output = draw(st.lists(TOKEN, max_size=5))
    n = draw(st.integers(1, 8))
    parents = [-1] + [draw(st.integers(0, node - 1)) for node in range(1, n)]
    tokens = [(prompt + output)[-1], *(draw(TOKEN) for _ in range(1, n))]
    return prompt, output, tokens, parents


def check_against_reference(names: list[str], cases: list[tuple], seed: int, blind: bool = False) -> None:
    """Every node of every row. ``blind``: the broken twin, which forgets the paths."""
    params = [SamplingParams(**PARAMS[name]) for name in names]
    rows = [row_of(p, case[0], case[1]) for p, case in zip(params, cases, strict=True)]
    tree = DraftTree.build([(tokens, parents) for _, _, tokens, parents in cases])
    logits = random_logits(*tree.shape, VOCAB, seed=seed)
    before = logits.clone()
    probs = warp(logits, rows, None if blind else tree).probs
    assert torch.equal(logits, before)
    compared = 0
    for b, (prompt, output, tokens, parents) in enumerate(cases):
        for node in range(len(tokens)):
            path = host_path(tokens, parents, node)
            want = reference(params[b], prompt, output + path, logits[b, node])
            assert torch.allclose(probs[b, node], want, atol=1e-12, rtol=1e-9), (names[b], node)
            compared += 1
    assert compared == sum(len(case[2]) for case in cases)


@pytest.mark.parametrize("name", PARAMS)
@settings(max_examples=8)
@given(case=row_trees(), seed=st.integers(0, 1000))
def test_each_parameter_along_each_path(name: str, case: tuple, seed: int) -> None:
    check_against_reference([name], [case], seed)


@settings(max_examples=25)
@given(
    batch=st.lists(st.tuples(st.sampled_from(sorted(PARAMS)), row_trees()), min_size=2, max_size=5),
    seed=st.integers(0, 1000),
)
def test_mixed_batches(batch: list[tuple], seed: int) -> None:
    check_against_reference([name for name, _ in batch], [case for _, case in batch], seed)


@pytest.mark.parametrize("name", ["repetition", "presence", "frequency", "bad words", "min_tokens", "everything"])
def test_forgetting_the_path_would_be_noticed(name: str) -> None:
    case = ([7, 1, 6], [9, 9, 8, 5], [5, 1, 2, 3, 2, 6], [-1, 0, 1, 1, 3, 0])
    check_against_reference([name], [case], seed=3)
    with pytest.raises(AssertionError):
        check_against_reference([name], [case], seed=3, blind=True)


def test_paths_of_a_ragged_batch() -> None:
    tree = DraftTree.build([([9, 1, 2, 3, 4], [-1, 0, 1, 1, 0]), ([8, 5, 6], [-1, 0, 1])])
    want = [
        [[-1, -1], [1, -1], [1, 2], [1, 3], [4, -1]],
        [[-1, -1], [5, -1], [5, 6], [-1, -1], [-1, -1]],
    ]
    assert paths_of(tree).tolist() == want
    assert int((tree.parents == PADDING).sum()) == 2


def test_explicit_paths_say_the_same_as_the_tree() -> None:
    """What a drafter does that grows level by level: a frontier with the tokens above it, no tree."""
    tokens, parents = [5, 1, 2, 3, 2, 6], [-1, 0, 1, 1, 3, 0]
    tree = DraftTree.build([(tokens, parents)])
    row = row_of(SamplingParams(**PARAMS["everything"]), [7, 1, 6], [5])
    logits = random_logits(1, 6, VOCAB)
    whole = warp(logits, [row], tree)
    frontier = torch.tensor([[4, 2]])
    paths = paths_of(tree)[:, [4, 2]]
    part = warp(logits[:, [4, 2]], [row], paths)
    assert torch.equal(part.probs, whole.probs[:, [4, 2]])
    assert torch.equal(part.probs, whole.nodes(frontier).probs)


# ------------------------------------------------------------------------------------------------- invariance


@pytest.mark.parametrize(
    ("vocab", "dtype"),
    [(VOCAB, torch.float64), (8192, torch.float64), (8192, torch.float32), (4099, torch.float64)],
)
def test_a_row_does_not_see_its_batch_nor_a_node_the_others(vocab: int, dtype: torch.dtype) -> None:
    """Bit for bit: probabilities and tokens of one row and one node alone, and among all others."""
    names = sorted(PARAMS)
    cases = [([7, 1, 6], [5, 2], [2, 1, 2, 3, 2, 6], [-1, 0, 1, 1, 3, 0])] * len(names)
    rows = [row_of(SamplingParams(**PARAMS[n]), c[0], c[1], vocab) for n, c in zip(names, cases, strict=True)]
    tree = DraftTree.build([(c[2], c[3]) for c in cases])
    logits = random_logits(*tree.shape, vocab, dtype=dtype)
    u = torch.rand(tree.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    law = warp(logits, rows, tree)
    probs, chosen, paths = law.probs, law.choose(u), paths_of(tree)
    for b in range(len(names)):
        one = slice(b, b + 1)
        alone = warp(logits[one].clone(), [rows[b]], DraftTree.build([(cases[b][2], cases[b][3])]))
        assert torch.equal(alone.probs, probs[one]), names[b]
        assert torch.equal(alone.choose(u[one]), chosen[one]), names[b]
        for node in (0, 4):
            single = slice(node, node + 1)
            here = warp(logits[one, single].clone(), [rows[b]], paths[one, single])
            assert torch.equal(here.probs, probs[one, single]), (names[b], node)
            assert torch.equal(here.choose(u[one, single]), chosen[one, single]), (names[b], node)


def test_the_nucleus_does_not_depend_on_how_far_was_sorted() -> None:
    """A flat row makes its batch sort everything; the peaked row beside it must not notice."""
    vocab = 8192
    logits = random_logits(2, 1, vocab, dtype=torch.float32)
    logits[0] *= 3
    logits[1] *= 0.01
    rows = [RowSampling(SamplingParams(temperature=1.0, top_p=0.9), vocab) for _ in range(2)]
    both = warp(logits, rows).probs
    kept = (both > 0).sum(-1).flatten().tolist()
    assert kept[0] < vocab // 64 < vocab // 8 < kept[1]
    assert torch.equal(warp(logits[:1], rows[:1]).probs, both[:1])


# ---------------------------------------------------------------------------------------------------- the law


def test_all_greedy_is_a_no_op() -> None:
    logits = random_logits(2, 3, 4096, dtype=torch.float32)
    law = warp(logits, [RowSampling(SamplingParams(top_p=0.5, top_k=3, min_p=0.1), 4096) for _ in range(2)])
    assert law._logits is logits
    assert law.all_greedy
    assert torch.equal(law.choose(), logits.argmax(-1))
    assert law._probs is None
    assert law._weights is None
    assert torch.equal(law.prob_of(logits.argmax(-1)), torch.ones(2, 3))
    one_hot = torch.nn.functional.one_hot(logits.argmax(-1), 4096).float()
    assert torch.equal(law.probs, one_hot)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab", [11, 4096])
def test_greedy_takes_the_lowest_of_equals(dtype: torch.dtype, vocab: int) -> None:
    logits = torch.zeros(1, 3, vocab, dtype=dtype)
    logits[0, 1, [4, 9]] = 2.0
    logits[0, 2] = -torch.inf
    logits[0, 2, [vocab - 1, vocab - 2]] = -7.0
    law = warp(logits, [RowSampling(SamplingParams(), vocab)])
    assert law.argmax.tolist() == [[0, 4, vocab - 2]]
    assert law.probs.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert sorted(law.probs.unique().tolist()) == [0.0, 1.0]


def test_ties_at_the_edge_of_top_k_stay_together() -> None:
    logits = torch.tensor([[[1.0, 3.0, 2.0, 2.0, 0.0, 2.0]]])
    law = warp(logits, [RowSampling(SamplingParams(temperature=1.0, top_k=2), 6)])
    assert (law.probs > 0).tolist() == [[[False, True, True, True, False, True]]]
    # and what top-p sees next are all of them
    both = warp(logits, [RowSampling(SamplingParams(temperature=1.0, top_k=2, top_p=0.99), 6)])
    assert torch.equal(both.probs, law.probs)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("vocab", [6, 4096])
def test_a_node_without_a_law_is_flagged(temperature: float, vocab: int) -> None:
    logits = random_logits(1, 4, vocab, dtype=torch.float32)
    logits[0, 1] = -torch.inf
    logits[0, 2, 3] = torch.nan
    row = RowSampling(SamplingParams(temperature=temperature, top_p=0.9), vocab)
    law = warp(logits, [row])
    u = torch.full((1, 4), 0.5, dtype=torch.float64)
    for tokens in (law.choose(u), law.argmax):
        assert (tokens >= 0).tolist() == [[True, False, False, True]]
    assert law.probs.sum(-1)[0, 1:3].tolist() == [0.0, 0.0]
    assert torch.allclose(law.probs.sum(-1)[0, [0, 3]], torch.ones(2))
    assert "No token can follow after 0 new tokens" in str(dead_end(row))


def test_min_tokens_counts_draft_tokens() -> None:
    chain = DraftTree.build([([1, 2, 3, 4], [-1, 0, 1, 2])])
    row = row_of(SamplingParams(temperature=1.0, min_tokens=3, stop_token_ids=[7]), [6], [1])
    probs = warp(random_logits(1, 4, VOCAB), [row], chain).probs[0]
    ended = probs[:, [*STOPS, 7]]
    assert (ended[:2] == 0).all()  # the 2nd and 3rd new token
    assert (ended[2:] > 0).all()


def test_bad_words_across_draft_nodes() -> None:
    """Begun in the prompt, in the output, in the draft: the last token is forbidden exactly where it would
    end."""
    tree = DraftTree.build([([3, 4, 9, 5], [-1, 0, 1, 0])])
    row = row_of(SamplingParams(temperature=1.0, bad_words=[[2, 3, 4, 8], [3, 5, 1], [4, 9, 6]]), [1, 2], [3])
    probs = warp(random_logits(1, 4, VOCAB), [row], tree).probs[0]
    assert (probs == 0).nonzero().tolist() == [[1, 8], [2, 6], [3, 1]]


def test_choose_follows_the_law() -> None:
    logits = random_logits(1, 1, 9).expand(1, 20_000, 9)
    law = warp(logits, [RowSampling(SamplingParams(temperature=1.2, top_k=6), 9)])
    u = (torch.arange(20_000, dtype=torch.float64) / 20_000)[None]
    counts = torch.bincount(law.choose(u)[0], minlength=9) / 20_000
    assert torch.allclose(counts.double(), law.probs[0, 0], atol=1e-4)
    with pytest.raises(ValueError, match="needs u"):
        law.choose()


def test_parts_of_a_law_are_the_law_of_parts() -> None:
    names = ["greedy", "truncated", "everything", "greedy with penalties"]
    rows = [row_of(SamplingParams(**PARAMS[name]), [1, 2], [3]) for name in names]
    logits = random_logits(4, 5, VOCAB)
    u = torch.rand(4, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    fresh, used = warp(logits, rows), warp(logits, rows)
    probs, tokens = used.probs, used.choose(u)
    assert torch.equal(used.argmax, probs.argmax(-1))
    index = torch.tensor([[4, 0, 0]] * 4)
    for law in (fresh, used):
        assert torch.equal(law.rows([0, 2]).probs, probs[[0, 2]])
        assert torch.equal(law.nodes(index).probs, probs[:, [4, 0, 0]])
        assert torch.equal(law.nodes(index).choose(u[:, [4, 0, 0]]), tokens[:, [4, 0, 0]])
    ask = torch.randint(-1, VOCAB, (4, 5, 3), generator=torch.Generator().manual_seed(3))
    want = torch.where(ask >= 0, probs.gather(-1, ask.clamp(min=0)), 0.0)
    assert torch.equal(used.prob_of(ask), want)
    assert torch.equal(used.prob_of(ask[..., 0]), want[..., 0])
    assert torch.equal(fresh.rows([0, 3]).prob_of(ask[[0, 3]]), want[[0, 3]])


def test_from_probs() -> None:
    p = torch.tensor([[[0.2, 0.0, 0.8], [0.0, 1.0, 0.0]]], dtype=torch.float64)
    law = Warped.from_probs(p)
    assert law.probs is p
    assert law.shape == (1, 2, 3)
    assert law.argmax.tolist() == [[2, 1]]
    assert law.choose(torch.tensor([[0.1, 0.99]], dtype=torch.float64)).tolist() == [[0, 1]]
    assert law.nodes(torch.tensor([[1]])).choose(torch.tensor([[0.5]], dtype=torch.float64)).tolist() == [[1]]


# ------------------------------------------------------------------------------------------ state of a
# request


def test_a_fork_goes_its_own_way() -> None:
    params = SamplingParams(**PARAMS["everything"])
    row = row_of(params, [1, 2], [3, 4])
    twin = row.fork()
    twin.advance([1, 5, 1])
    logits = random_logits(1, 1, VOCAB)
    for one, output in ((row, [3, 4]), (twin, [3, 4, 1, 5, 1])):
        assert torch.equal(warp(logits, [one]).probs, warp(logits, [row_of(params, [1, 2], output)]).probs)


def test_many_different_tokens() -> None:
    """More than the counts were made for."""
    params = SamplingParams(temperature=1.0, frequency_penalty=0.5)
    output = [t % 300 for t in range(700)]
    logits = random_logits(1, 1, 400)
    got = warp(logits, [row_of(params, [1], output, 400)]).probs[0, 0]
    assert torch.allclose(got, reference(params, [1], output, logits[0, 0]))


@pytest.mark.parametrize("vocab", [VOCAB - 5, VOCAB + 5])
def test_a_draft_model_with_another_number_of_ids(vocab: int) -> None:
    """Ids that it lacks, in parameters, history and path, are ignored; the rest is as for the target."""
    params = SamplingParams(
        temperature=1.0,
        repetition_penalty=1.5,
        logit_bias={2: 1.0, 22: 1.0},
        bad_words=[[22], [3]],
        min_tokens=9,
    )
    row = RowSampling(params, VOCAB, [22, 1, 2], stop_ids=(21, 4))
    tree = DraftTree.build([([2, 22, 3, 2], [-1, 0, 1, 2])])
    logits = random_logits(1, 4, VOCAB + 5)
    shared = min(vocab, VOCAB)
    small = warp(logits[..., :vocab], [row], tree)._logits
    whole = warp(logits[..., :VOCAB], [row], tree)._logits
    assert small is not None
    assert whole is not None
    assert torch.equal(small[..., :shared], whole[..., :shared])
    if vocab > VOCAB:
        assert torch.equal(small[..., VOCAB:], logits[..., VOCAB:])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"logit_bias": {VOCAB: 1.0}}, "logit_bias contains token id 23"),
        ({"stop_token_ids": [99]}, "stop_token_ids contains token id 99"),
        ({"bad_words": [[1, 40]]}, "bad_words contains token id 40"),
        ({"bad_words": ["word"]}, "no tokenizer"),
    ],
)
def test_ids_outside_the_vocabulary_are_refused(given: dict, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        RowSampling(SamplingParams(**given), VOCAB, [1])


def test_words_come_as_ids_from_whoever_has_a_tokenizer() -> None:
    row = RowSampling(SamplingParams(temperature=1.0, bad_words=["x"]), VOCAB, [1], bad_words=[[1, 2], [7]])
    probs = warp(random_logits(1, 1, VOCAB), [row]).probs[0, 0]
    assert (probs == 0).nonzero().flatten().tolist() == [2, 7]


def test_logprobs_are_the_models_own() -> None:
    logits = random_logits(2, 3, VOCAB, dtype=torch.float32).bfloat16()
    tokens = torch.randint(0, VOCAB, (2, 3), generator=torch.Generator().manual_seed(0))
    got = top_logprobs(logits, tokens, 4)
    logs = logits.float().log_softmax(-1)
    assert torch.equal(got.chosen, logs.gather(-1, tokens[..., None])[..., 0])
    assert torch.equal(got.values, logs.topk(4).values)
    assert got.tokens.shape == (2, 3, 4)
    order = logs.argsort(-1, descending=True)
    for i in range(2):
        for j in range(3):
            assert logs[i, j, order[i, j, got.rank[i, j] - 1]] == got.chosen[i, j]
    assert top_logprobs(logits, tokens, 0).values.shape == (2, 3, 0)
