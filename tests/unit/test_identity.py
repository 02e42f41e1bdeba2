"""Differences told apart: planted ties are ties, planted faults are not, and doubt is never a tie."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from outrider import LLM, ConfigError, SamplingParams
from outrider.certify.identity import Judge, classify, first_difference
from outrider.model.base import LanguageModel
from outrider.model.hf import HFModel
from outrider.model.table import TableModel
from outrider.rng import Draws
from outrider.testing.tiny import tiny_model, tiny_tokenizer
from outrider.types import Guarantee

PROMPT = [40, 41, 42, 40, 41]
GREEDY = SamplingParams(max_tokens=8)
SAME = Guarantee.IDENTICAL


def hf(dtype=torch.float64, **changes):
    return tiny_model("llama", dtype, tie_word_embeddings=False, **changes)


def with_twin(dtype, distance):
    """A model whose best token has a twin, ``distance`` of a typical weight behind it; returns both tokens."""
    model = hf(dtype)
    with torch.no_grad():
        best = int(model(torch.tensor([PROMPT])).logits[0, -1].argmax())
        head = model.get_output_embeddings().weight
        twin = (best + 1) % len(head)
        head[twin] = head[best] * (1 - distance)
    return HFModel(model, "twin"), best, twin


def logits_after(model, tokens):
    return Judge(model).scores(tokens, len(tokens))[0]


@pytest.mark.parametrize(
    ("found", "wanted", "at"),
    [([1, 2], [1, 2], None), ([1, 3], [1, 2], 1), ([1], [1, 2], 1), ([1, 2], [1], 1), ([], [], None), ([], [5], 0)],
)
def test_first_difference(found, wanted, at):
    assert first_difference(found, wanted) == at


def test_equal_texts_have_none():
    assert classify(HFModel(hf(), "m"), PROMPT, [7, 8], [7, 8], GREEDY, SAME) is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_planted_wrong_token_is_wrong(dtype):
    llm = LLM(hf(dtype), tokenizer=tiny_tokenizer(), preset="plain")
    wanted = llm.generate([PROMPT], GREEDY)[0].token_ids
    logits = logits_after(llm.language_model, [*PROMPT, *wanted[:3]])
    bad = int(logits.topk(20).indices[-1])
    found = classify(llm, PROMPT, [*wanted[:3], bad, *wanted[4:]], wanted, GREEDY, SAME)
    assert found is not None
    assert (found.position, found.found, found.wanted, found.kind) == (3, bad, wanted[3], "wrong")
    assert found.gap == pytest.approx(float(logits[wanted[3]] - logits[bad]), rel=1e-3)
    assert found.gap > found.tolerance
    assert "no tie" in found.words()


@pytest.mark.parametrize(("dtype", "distance"), [(torch.float32, 1e-7), (torch.bfloat16, 0.0), (torch.bfloat16, 4e-3)])
def test_a_planted_tie_is_a_tie(dtype, distance):
    model, best, twin = with_twin(dtype, distance)
    found = classify(model, PROMPT, [twin], [best], GREEDY, SAME)
    assert found.kind == "tie"
    assert abs(found.gap) <= found.tolerance
    assert "a tie" in found.words()


def test_what_is_a_tie_in_float32_is_wrong_in_float64():
    model, best, twin = with_twin(torch.float64, 1e-7)
    found = classify(model, PROMPT, [twin], [best], GREEDY, SAME)
    assert found.kind == "wrong"
    assert 0 < found.gap < 1e-5
    assert found.tolerance == 1e-9
    assert found.variation < 1e-12


def test_two_equal_tokens_far_from_the_best_are_no_tie():
    """Both tokens must be among the best: equal scores alone explain nothing."""
    model, best, twin = with_twin(torch.float32, 0.0)
    worse = [int(token) for token in logits_after(model, PROMPT).topk(40).indices[-2:]]
    with torch.no_grad():
        head = model.hf.get_output_embeddings().weight
        head[worse[0]] = head[worse[1]]
    model.weights_version += 1
    logits = logits_after(model, PROMPT)
    assert logits[worse[0]] == logits[worse[1]]
    assert best not in worse
    assert twin not in worse
    assert classify(model, PROMPT, [worse[0]], [worse[1]], GREEDY, SAME).kind == "wrong"


def test_float64_texts_of_every_preset_need_no_tie():
    model = hf()
    wanted = LLM(model, tokenizer=tiny_tokenizer(), preset="plain").generate([PROMPT * 3], GREEDY)[0].token_ids
    for name in ("sam", "pld", "token-recycling"):
        llm = LLM(model, tokenizer=tiny_tokenizer(), preset=name)
        out = llm.generate([PROMPT * 3], GREEDY)[0].token_ids
        assert classify(llm, PROMPT * 3, out, wanted, GREEDY, SAME) is None


class Unsteady(LanguageModel):
    """A table model whose scores depend on how many tokens it is given at once: a broken mask, say."""

    def __init__(self, error):
        self.inner, self.error = TableModel(12, seed=3), error
        for name in ("name", "vocab_size", "max_positions", "device", "dtype", "branching"):
            setattr(self, name, getattr(self.inner, name))

    def new_store(self, max_rows, max_slots):
        return self.inner.new_store(max_rows, max_slots)

    def forward(self, block, store, **options):
        out = self.inner.forward(block, store, **options)
        tilt = torch.linspace(0, self.error, self.vocab_size, dtype=out.logits.dtype)
        return replace(out, logits=out.logits + tilt * (block.shape[1] > 1))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_whose_blocks_are_wrong_is_not_excused(temperature):
    """Its own scores differ by more than rounding: that must not widen what counts as a tie."""
    params = SamplingParams(max_tokens=4, temperature=temperature, seed=1)
    prompt = [1, 2, 3, 4, 5, 6]
    for found in (2, 9):
        for wanted in (0, 11):
            difference = classify(Unsteady(3.0), prompt, [found], [wanted], params, SAME)
            assert difference.kind == "wrong"
            assert "more than rounding" in difference.reason
    assert classify(Unsteady(0.0), prompt, [2], [9], params, SAME).reason == ""


# -- sampling parameters ----------------------------------------------------------------------------------


def test_gap_is_that_of_the_penalised_logits():
    """A repetition penalty decides here; without it the gap would be another."""
    model = HFModel(hf(), "m")
    plain = logits_after(model, PROMPT)
    best = int(plain.argmax())
    bias = {best: -5.0}
    params = replace(GREEDY, logit_bias=bias)
    second = int(plain.topk(2).indices[1])
    found = classify(model, PROMPT, [best], [second], params, SAME)
    assert found.gap == pytest.approx(float(plain[second] - plain[best]) + 5.0)
    # A forbidden token is infinitely far.
    forbidden = classify(model, PROMPT, [best], [second], replace(GREEDY, bad_words=[[best]]), SAME)
    assert forbidden.kind == "wrong"
    assert forbidden.gap == float("inf")
    assert "forbids" in forbidden.words()
    assert forbidden.as_dict()["gap"] is None


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_forbidden_tokens_do_not_widen_ties(temperature):
    """A law of minus infinity for some tokens is no rounding error of any size."""
    from outrider.registry import preset

    def law(logits, tree):
        return torch.cat([torch.full_like(logits[..., :100], -torch.inf), logits[..., 100:]], -1)

    llm = LLM(hf(torch.float32), tokenizer=tiny_tokenizer(), preset=preset("plain", law=law))
    params = SamplingParams(max_tokens=4, temperature=temperature, seed=3)
    wanted = llm.generate([PROMPT], params)[0].token_ids
    assert min(wanted) >= 100
    logits = Judge(llm).scores(PROMPT, len(PROMPT))[0]
    worst = int(torch.where(logits.isfinite(), logits, torch.inf).argmin())
    for bad in (5, worst):
        found = classify(llm, PROMPT, [bad], wanted[:1], params, SAME)
        assert found.kind == "wrong"
        assert found.tolerance < 0.01


def test_penalties_count_what_was_said():
    llm = LLM(hf(), tokenizer=tiny_tokenizer(), preset="plain")
    params = replace(GREEDY, frequency_penalty=1.5, repetition_penalty=1.2)
    wanted = llm.generate([PROMPT], params)[0].token_ids
    logits = logits_after(llm.language_model, [*PROMPT, *wanted[:5]])
    for token in {*PROMPT, *wanted[:5]}:
        value = logits[token]
        logits[token] = (value / 1.2 if value > 0 else value * 1.2) - 1.5 * wanted[:5].count(token)
    assert int(logits.argmax()) == wanted[5]
    for other in (int(logits.topk(2).indices[1]), wanted[0], PROMPT[0]):
        found = classify(llm, PROMPT, [*wanted[:5], other], wanted, params, SAME)
        assert found.position == 5
        assert found.gap == pytest.approx(float(logits[wanted[5]] - logits[other]))


def sampled(**changes):
    return SamplingParams(**{"max_tokens": 8, "temperature": 1.0, "seed": 5} | changes)


def neighbour(model, prefix, params, sample=0):
    """The token whose interval is next to the draw, the distance to it, and a token far away; by hand."""
    law = torch.softmax(logits_after(model, prefix) / params.temperature, -1)
    stop = law.cumsum(-1)
    draws = Draws.of(torch.tensor([params.seed]), torch.tensor([sample]), torch.tensor([len(prefix) - 1]))
    draw = float(draws.text(torch.zeros(1, 1, dtype=torch.int64)))
    chosen = int((stop > draw).nonzero()[0])
    low, high = float(stop[chosen] - law[chosen]), float(stop[chosen])
    near = (chosen - 1, draw - low) if draw - low < high - draw else (chosen + 1, high - draw)
    return chosen, *near


def test_another_token_than_the_draw_chooses_is_wrong():
    model = HFModel(hf(), "m")
    chosen, near, distance = neighbour(model, PROMPT, sampled())
    found = classify(model, PROMPT, [near], [chosen], sampled(), SAME)
    assert found.kind == "wrong"
    assert found.unit == "probability"
    assert found.gap == pytest.approx(distance)
    assert found.tolerance == 1e-9


def test_a_draw_on_the_boundary_is_a_tie():
    """Seeds are searched for one whose draw falls next to a boundary."""
    model = HFModel(hf(torch.float32), "m")
    found = []
    for seed in range(4000):
        chosen, near, distance = neighbour(model, PROMPT, sampled(seed=seed))
        if distance < 5e-5 and 0 <= near < model.vocab_size:
            found.append(classify(model, PROMPT, [near], [chosen], sampled(seed=seed), SAME).kind)
        if len(found) == 3:
            break
    assert found == ["tie"] * 3


def test_seed_and_sample_number_count():
    """The texts of another seed, or of another choice, are not explained by this one's draws."""
    llm = LLM(hf(), tokenizer=tiny_tokenizer(), preset="plain")
    params = sampled(n=2)
    choices = [choice.token_ids for choice in llm.generate([PROMPT], params)[0].choices]
    assert choices[0] != choices[1]
    for number in (0, 1):
        wanted, other = choices[number], choices[1 - number]
        found = classify(llm, PROMPT, other, wanted, params, SAME, sample=number)
        assert found.kind == "wrong"
        assert found.gap > 1e-6
        # What plain decoding chose lies where the draw falls: the distance of the right token is nothing.
        back = classify(llm, PROMPT, wanted, other, params, SAME, sample=number)
        assert back.gap <= 1e-9
        assert back.kind == "wrong"  # but not what it is compared with


def test_truncated_tokens_are_wrong_however_near():
    model = HFModel(hf(), "m")
    order = logits_after(model, PROMPT).argsort(descending=True)
    params = sampled(top_k=2)
    found = classify(model, PROMPT, [int(order[5])], [int(order[0])], params, SAME)
    assert found.kind == "wrong"


def test_texts_of_one_law_may_differ():
    found = classify(HFModel(hf(), "m"), PROMPT, [7], [8], sampled(), Guarantee.EXACT)
    assert (found.kind, found.gap, found.tolerance) == ("drawn", None, None)
    # At temperature 0 they may not.
    assert classify(HFModel(hf(), "m"), PROMPT, [7], [8], GREEDY, Guarantee.EXACT).kind == "wrong"


def test_a_missing_seed_is_refused():
    with pytest.raises(ConfigError, match="seed"):
        classify(HFModel(hf(), "m"), PROMPT, [7], [8], sampled(seed=None), SAME)


# -- ends -------------------------------------------------------------------------------------------------


def test_a_text_that_stops_early_is_wrong():
    llm = LLM(hf(), tokenizer=tiny_tokenizer(), preset="plain")
    wanted = llm.generate([PROMPT], replace(GREEDY, ignore_eos=True))[0].token_ids
    params = replace(GREEDY, ignore_eos=True)
    short = classify(llm, PROMPT, wanted[:4], wanted, params, SAME)
    assert (short.position, short.found, short.wanted, short.kind) == (4, None, wanted[4], "wrong")
    assert "goes on" in short.words()
    long = classify(llm, PROMPT, [*wanted, 9], wanted, params, SAME)
    assert (long.position, long.wanted, long.kind) == (8, None, "wrong")


def test_a_stripped_end_token_that_ties_is_a_tie():
    """Tools that leave the end token out of the text end it a token early."""
    model, best, twin = with_twin(torch.float32, 1e-7)
    params = replace(GREEDY, stop_token_ids=[twin])
    assert classify(model, PROMPT, [], [best], params, SAME).kind == "tie"
    third = int(logits_after(model, PROMPT).topk(3).indices[2])
    assert classify(model, PROMPT, [], [best], replace(GREEDY, stop_token_ids=[third]), SAME).kind == "wrong"
    # Nor where the end was still out of reach.
    assert classify(model, PROMPT, [], [best], replace(params, min_tokens=3), SAME).kind == "wrong"


# -- scoring ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt_length", [1, 3, 40])
@pytest.mark.parametrize("new", [0, 1, 7, 33])
def test_every_way_of_scoring_reads_the_same_text(prompt_length, new):
    """Against the stock model on the whole text at once."""
    model = hf()
    tokens = [(7 * i) % 250 for i in range(prompt_length + new)]
    with torch.no_grad():
        right = model(torch.tensor([tokens])).logits[0, -1]
    scores = Judge(HFModel(model, "m")).scores(tokens, prompt_length)
    assert scores.shape == (4, 262)
    assert (scores - right).abs().max() < 1e-10


def test_the_law_of_the_parts_is_used():
    """A preset that changes the target's law is judged by that law."""
    from outrider.registry import preset

    model = hf()
    parts = preset("plain", law=lambda logits, tree: -logits)
    llm = LLM(model, tokenizer=tiny_tokenizer(), preset=parts)
    scores = Judge(llm).scores(PROMPT, len(PROMPT))
    assert (scores + logits_after(HFModel(model, "m"), PROMPT)).abs().max() < 1e-10
