"""Certificates over table models, whose laws are known: right methods pass, every kind of fault is found, and checks
that could not have found one say so."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from outrider import LLM, ConfigError, Parts, SamplingParams
from outrider.certify import Certifier, Plan, certify
from outrider.certify.compare import everything_on
from outrider.certify.controls import AcceptAll, plant
from outrider.certify.decode import Ask, Decoder
from outrider.certify.law import Sampler, law_tests
from outrider.certify.page import page
from outrider.certify.result import Divergence, IdentityCheck, NotRun, SamplingCheck
from outrider.certify.score import Along, Scorer, contexts
from outrider.draft.base import Drafter
from outrider.registry import preset
from outrider.rng import Draws, Purpose, inverse_cdf
from outrider.testing.stats import chi_square
from outrider.testing.tiny import tiny_model, tiny_tokenizer
from outrider.testing.world import table_world
from outrider.types import DraftTree, Guarantee, Verdict
from outrider.verify.base import TargetView
from outrider.verify.match import Match
from outrider.verify.rejection import ChainRejection

PROMPTS = [[1, 2, 1, 2, 3], [3, 3, 1, 3, 3], [2, 5, 7, 2, 5]]
PLAN = Plan(prompts=3, max_tokens=20, samples=200, contexts=2)


@pytest.fixture(scope="module")
def llm():
    world = table_world(vocab=24)
    return LLM(world.target, draft_model=world.draft, preset="plain")


def made(name, verifier, **settings):
    return lambda: preset(name, **settings).with_(verifier=verifier, name=f"{name} with a fault")


def check(certificate, name, of=0):
    return next(each for each in certificate.presets[of].checks if each.name == name)


def control(certificate, name, of):
    return next(each for each in certificate.presets[0].controls if (each.name, each.of) == (name, of))


# -- faults -----------------------------------------------------------------------------------------------


class NotChecking(AcceptAll):
    """Says that it is exact and is not."""

    guarantee = Guarantee.IDENTICAL


class NoResidual(ChainRejection):
    """Draws from p itself behind a rejected token: the classical mistake. Right at temperature 0."""

    def verify(self, tree: DraftTree, target: TargetView, draws: Draws) -> Verdict:
        verdict = super().verify(tree, target, draws)
        if target.p.all_greedy:
            return verdict
        end = verdict.path.gather(1, verdict.count[:, None] - 1).squeeze(1)
        law = target.p.probs[torch.arange(len(end)), end]
        return replace(verdict, bonus=inverse_cdf(law, draws.uniform(Purpose.RESIDUAL, end)))


class OtherDraws(Match):
    """Chooses with draws of its own: the law is right, the text is not that of the seed."""

    def verify(self, tree: DraftTree, target: TargetView, draws: Draws) -> Verdict:
        return super().verify(tree, target, Draws(draws.stream + 1, draws.position))


class BatchMates(Match):
    """A row decodes rightly alone, and looks at its neighbour in a batch."""

    def verify(self, tree: DraftTree, target: TargetView, draws: Draws) -> Verdict:
        verdict = super().verify(tree, target, draws)
        return replace(verdict, bonus=verdict.bonus[0].expand_as(verdict.bonus), host=None)


class Reporting(Match):
    """Declared inexact: accepts a drafted token that is the target's second choice."""

    guarantee, bound = Guarantee.RELAXED, "at most one rank from the best token"

    def verify(self, tree: DraftTree, target: TargetView, draws: Draws) -> Verdict:
        return AcceptAll().verify(tree, target, draws)


# -- certificates -----------------------------------------------------------------------------------------


def test_presets_pass_with_every_control_caught(llm):
    certificate = certify(llm, ["spec-decode", "sam", "token-recycling(nodes=20)"], PROMPTS, PLAN)
    assert certificate.verdict == "passed", certificate.summary
    assert certificate.complete
    for found in certificate.presets:
        assert found.verdict == "passed"
        assert all(each.caught for each in found.controls)
        for each in found.checks:
            if isinstance(each, IdentityCheck):
                # In float64 nothing is left to rounding.
                assert (each.identical, each.ties, each.wrong) == (3, 0, 0)
                assert each.compared == each.tokens > 0
    assert [type(each) for each in certificate.presets[0].checks] == [
        IdentityCheck,
        IdentityCheck,
        NotRun,
        IdentityCheck,
        SamplingCheck,
    ]
    tests = [test for found in certificate.presets for test in found.checks[-1].tests]
    assert len(tests) == 15
    assert all(test.adjusted >= test.p_value for test in tests)
    assert {each.name for each in certificate.presets[1].controls} == {
        "planted token",
        "unchecked drafts",
        "warmer",
        "accepted drafts",
    }


def test_plain_is_what_it_is_compared_with(llm):
    certificate = certify(llm, "plain", PROMPTS, PLAN)
    assert certificate.verdict == "passed"
    assert {(each.name, each.of) for each in certificate.presets[0].controls} == {
        ("planted token", "greedy"),
        ("warmer", "sampling"),
    }


def test_unchecked_drafts_are_wrong_everywhere(llm):
    certificate = certify(llm, made("spec-decode", NotChecking()), PROMPTS, PLAN)
    assert certificate.verdict == "wrong"
    assert {each.name: each.status for each in certificate.presets[0].checks} == dict.fromkeys(
        ("greedy", "batch", "seeded", "parameters", "sampling"), "wrong"
    )
    first = check(certificate, "greedy").differences[0]
    assert first.difference.kind == "wrong"
    assert first.before
    assert "no tie" in first.why
    assert "not those of plain decoding" in certificate.summary


def test_a_wrong_law_is_found_where_texts_cannot_show_it(llm):
    """At temperature 0 this fault does not exist, and above it nothing is promised but the law."""
    certificate = certify(llm, made("spec-decode", NoResidual()), PROMPTS, replace(PLAN, samples=500))
    assert certificate.verdict == "wrong"
    assert {each.name: each.status for each in certificate.presets[0].checks} == {
        "greedy": "passed",
        "batch": "passed",
        "seeded": "not run",
        "parameters": "passed",
        "sampling": "wrong",
    }
    assert min(test.adjusted for test in check(certificate, "sampling").tests) < PLAN.level


def test_wrong_draws_are_found_by_their_texts(llm):
    certificate = certify(llm, made("sam", OtherDraws()), PROMPTS, PLAN)
    assert check(certificate, "greedy").status == "passed"
    assert check(certificate, "seeded").status == "wrong"
    assert check(certificate, "sampling").status == "passed"


def test_rows_that_mix_are_found_in_the_batch(llm):
    certificate = certify(llm, made("sam", BatchMates()), PROMPTS, replace(PLAN, samples=0))
    assert check(certificate, "greedy").status == "passed"
    assert check(certificate, "batch").status == "wrong"


class Silent(Drafter):
    """Never proposes anything."""

    kinds = frozenset()

    def propose(self, rows, budget, draws):
        return DraftTree.roots([row.tokens[-1] for row in rows])


class Useless(Drafter):
    """Proposes what is never right: a token that the law of ``without_zero`` forbids."""

    kinds = frozenset()

    def propose(self, rows, budget, draws):
        return DraftTree.build([([row.tokens[-1], 0], [-1, 0]) for row in rows])


def without_zero(logits, tree):
    return torch.cat([torch.full_like(logits[..., :1], -torch.inf), logits[..., 1:]], -1)


@pytest.mark.parametrize("drafter", [Silent, Useless])
def test_drafts_that_were_not_tested_are_inconclusive(llm, drafter):
    """A method that drafts nothing, or nothing that ever stands, agrees with plain decoding and proves nothing."""

    def parts() -> Parts:
        return preset("pld", law=without_zero).with_(drafter=drafter(), name="idle")

    certificate = certify(llm, parts, PROMPTS, PLAN)
    assert all(each.status == "passed" for each in certificate.presets[0].checks)
    assert certificate.verdict == "inconclusive"
    assert "do not prove it" in certificate.summary
    assert not control(certificate, "accepted drafts", "all").caught


def test_too_few_samples_are_inconclusive(llm):
    """The warmer control is not told apart from plain decoding with 20 samples."""
    certificate = certify(llm, "plain", PROMPTS, replace(PLAN, samples=20, contexts=1, sample_tokens=2))
    assert not control(certificate, "warmer", "sampling").caught
    assert certificate.verdict == "inconclusive"


def test_a_relaxed_rule_is_measured_beside_its_bound(llm):
    certificate = certify(llm, made("spec-decode", Reporting()), PROMPTS, PLAN)
    assert certificate.verdict == "relaxed"
    found = check(certificate, "divergence")
    assert isinstance(found, Divergence)
    assert found.bound == "at most one rank from the best token"
    assert found.agreement < 1
    assert found.first_tokens.low > 0.02
    assert found.first_tokens.low <= found.first_tokens.estimate <= found.first_tokens.high
    assert found.pairs.estimate >= found.first_tokens.estimate - 0.1
    assert found.identical < found.texts


def test_a_relaxed_rule_that_changes_nothing_measures_nothing(llm):
    class Harmless(Match):
        guarantee, bound = Guarantee.RELAXED, "nothing"

    certificate = certify(llm, made("spec-decode", Harmless()), PROMPTS, PLAN)
    found = check(certificate, "divergence")
    assert found.agreement == 1.0
    assert found.identical == found.texts == 3
    assert found.first_tokens.low == found.pairs.low == 0.0


def test_several_presets_and_their_verdicts(llm):
    names = ["sam", made("pld", NotChecking()), made("spec-decode", Reporting())]
    certificate = certify(llm, names, PROMPTS, replace(PLAN, samples=100))
    assert [found.verdict for found in certificate.presets] == ["passed", "wrong", "relaxed"]
    assert certificate.verdict == "wrong"
    for text in ("pld with a fault changed", "sam changed nothing", "changes the law"):
        assert text in certificate.summary


def test_temperature_zero_leaves_sampling_out(llm):
    greedy = replace(PLAN, sampling=SamplingParams())
    certificate = certify(llm, ["sam", "spec-decode"], PROMPTS, greedy)
    assert certificate.verdict == "passed"
    for found in certificate.presets:
        names = {each.name: each.status for each in found.checks}
        assert names["sampling"] == "not run"
        assert names["seeded"] == "not run"
        assert names["parameters"] == "passed"
    assert "nothing was tested above temperature 0" in certificate.presets[1].summary


def test_an_interruption_keeps_what_was_found(llm):
    def stop(step):
        if step.number == 2 and step.stage.startswith("in one batch"):
            raise KeyboardInterrupt

    certifier = Certifier(llm, ["sam", "pld"], PROMPTS, replace(PLAN, samples=60), stop)
    with pytest.raises(KeyboardInterrupt):
        certifier.run()
    certificate = certifier.certificate()
    assert certificate.verdict == "incomplete"
    assert not certificate.complete
    assert certificate.presets[0].complete
    assert [each.name for each in certificate.presets[1].checks] == ["greedy"]
    assert "Incomplete" in page(certificate)


def test_a_fault_found_before_an_interruption_is_still_one(llm):
    def stop(step):
        if step.stage.startswith("in one batch"):
            raise KeyboardInterrupt

    certifier = Certifier(llm, made("sam", NotChecking()), PROMPTS, PLAN, stop)
    with pytest.raises(KeyboardInterrupt):
        certifier.run()
    assert certifier.certificate().verdict == "wrong"


def test_same_seed_same_certificate(llm):
    small = replace(PLAN, samples=60)
    first, second, other = (
        certify(llm, "sam", PROMPTS, plan).presets for plan in (small, small, replace(small, seed=1))
    )
    assert first == second
    assert first[0].checks[-1].tests != other[0].checks[-1].tests


def test_the_law_of_the_parts_is_the_reference(llm):
    """A preset that changes the target's law is compared with plain decoding of that law."""

    def tempered(logits, tree):
        return logits * 0.7

    certificate = certify(llm, lambda: preset("sam", law=tempered), PROMPTS, replace(PLAN, samples=100))
    assert certificate.verdict == "passed"


# -- results ----------------------------------------------------------------------------------------------


def test_json_holds_everything(llm):
    certificate = certify(llm, "spec-decode", PROMPTS, replace(PLAN, samples=60))
    read = json.loads(json.dumps(certificate.as_dict()))
    assert read["format"] == "outrider certificate 1"
    assert read["verdict"] == certificate.verdict
    assert read["settings"]["samples"] == 60
    assert read["settings"]["sampling"] == {"temperature": 1.0}
    assert read["provenance"]["models"]["target"]["dtype"] == "float64"
    assert [each["kind"] for each in read["presets"][0]["checks"]] == [
        "identity",
        "identity",
        "none",
        "identity",
        "sampling",
    ]
    assert read["prompts"]["ids"] == ["prompt 1", "prompt 2", "prompt 3"]


def test_json_knows_no_infinity(llm):
    params = SamplingParams(temperature=1.0, logit_bias={0: float("-inf"), 3: 0.5})
    certificate = certify(llm, made("pld", NotChecking()), PROMPTS, replace(PLAN, sampling=params, samples=60))
    text = json.dumps(certificate.as_dict(), allow_nan=False)
    assert json.loads(text)["settings"]["sampling"]["logit_bias"] == {"0": "-inf", "3": 0.5}


def test_page_shows_verdict_first_and_escapes(llm):
    certificate = certify(llm, ["sam", made("pld", NotChecking())], PROMPTS, replace(PLAN, samples=60))
    nasty = replace(certificate, model="<script>alert(1)</script>")
    text = page(nasty)
    assert "<script>" not in text
    assert text.index("Wrong") < text.index("Greedy texts")
    for part in ("Controls", "no tie", "planted token", "does not say", "<svg"):
        assert part in text
    assert "http://" not in text.replace("http://www.w3.org", "")


@pytest.mark.parametrize("verifier", [Reporting(), ChainRejection()])
def test_page_of_other_kinds(llm, verifier):
    certificate = certify(llm, made("spec-decode", verifier), PROMPTS, replace(PLAN, samples=60))
    text = page(certificate)
    assert ("Stated bound" in text) == (certificate.verdict == "relaxed")
    assert ("Not run" in text) == (certificate.verdict != "relaxed")


# -- what must be refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"prompts": 0}, "prompts"),
        ({"max_tokens": 1}, "max_tokens"),
        ({"samples": -1}, "samples"),
        ({"samples": 5}, "samples=5"),
        ({"level": 0.0}, "level"),
        ({"sample_tokens": 1}, "sample_tokens"),
        ({"seed": -1}, "seed"),
        ({"sampling": SamplingParams(n=2)}, "n or logprobs"),
        ({"sampling": SamplingParams(logprobs=1)}, "n or logprobs"),
    ],
)
def test_plans_that_cannot_work(changes, match):
    with pytest.raises(ConfigError, match=match):
        replace(PLAN, **changes)


def test_presets_and_prompts_that_cannot_work(llm):
    with pytest.raises(ConfigError, match="unknown preset"):
        certify(llm, "samm", PROMPTS, PLAN)
    with pytest.raises(ConfigError, match="given twice"):
        certify(llm, ["sam", "sam"], PROMPTS, PLAN)
    with pytest.raises(ConfigError, match="no presets"):
        certify(llm, [], PROMPTS, PLAN)
    with pytest.raises(ConfigError, match="no prompt"):
        certify(llm, "sam", [], PLAN)
    bare = LLM(table_world(vocab=24).target, preset="plain")
    with pytest.raises(ConfigError, match="draft"):
        certify(bare, "spec-decode", PROMPTS, PLAN)


def test_prompts_too_long_for_the_context_are_left_out():
    short = LLM(tiny_model(max_position_embeddings=64), tokenizer=tiny_tokenizer(), preset="sam")
    certificate = certify(short, prompts=["ab ab ab ab", "x" * 60], plan=Plan(max_tokens=8, samples=0))
    assert certificate.prompts.ids == ("prompt 1",)
    assert "1 of 2 prompts" in certificate.prompts.left_out[0].name
    assert certificate.presets[0].name == "sam"  # its own preset where none is named
    with pytest.raises(ConfigError, match="no prompt"):
        certify(short, prompts=["x" * 60], plan=Plan(max_tokens=8))


# -- parts ------------------------------------------------------------------------------------------------


def test_every_parameter_is_switched_on():
    texts = [[5, 5, 6, 7, 5, 6, 9, 8, 9], [5, 6, 7, 6, 5, 11, 12, 13, 14]]
    params = everything_on(SamplingParams(temperature=0.7, max_tokens=9, seed=3), texts, frozenset(), tiny_tokenizer())
    default = SamplingParams()
    on = [name for name, value in vars(params).items() if value != getattr(default, name)]
    assert set(on) == set(vars(default)) - {"n", "typical_p", "ignore_eos", "logprobs", "logits_processors"}
    assert params.bad_words[0] == (5,)
    # What was given stays.
    kept = everything_on(replace(params, top_k=7, bad_words=[[1]]), texts, frozenset(), None)
    assert (kept.top_k, kept.bad_words) == (7, ((1,),))


def test_planting_takes_the_surest_place():
    along = Along([1, 2, 3], [4, 5, 6], [0.1, 9.0, 2.0], [0.0] * 3, [0.0] * 3, 0.0)
    assert plant([1, 2, 3], along) == (1, [1, 5, 3])
    assert plant([1, 9, 3], along) == (2, [1, 9, 6])  # only where the text holds the best token
    assert plant([7, 8, 9], along) is None


def test_contexts_are_where_text_repeats_and_is_unsure():
    asks = [Ask("a", (1, 2, 3, 1, 2)), Ask("b", (9, 8, 7, 6, 5))]
    texts = [[3, 1, 2, 3, 4, 4], [4, 3, 2, 1, 9, 0]]
    unsure = [0.5] * 6
    along = [Along(text, text, unsure, unsure, unsure, 0.0) for text in texts]
    assert contexts(asks, texts, along, 1, 2) == [(0, 0)]
    assert [prompt for prompt, _ in contexts(asks, texts, along, 5, 2)] == [0, 1]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_places_are_uniform_for_draws_from_the_law_only(llm, temperature):
    decoder = Decoder(llm)
    params = SamplingParams(temperature=temperature, max_tokens=5)
    sampler = Sampler(decoder, Scorer(decoder), (Ask("a", (1, 2, 1)),), params, 1500, seed=7)

    def p_value(**changes):
        found = sampler.draw([preset("plain")], 0, lambda _: None, **changes)
        places = torch.tensor([place for row in found.places[0] for place in row])
        return chi_square(torch.histc(places, 20, 0, 1), torch.full((20,), 0.05)).p_value

    assert p_value() > 1e-3
    assert p_value(temperature=temperature * 1.3) < 1e-6


def test_scores_are_those_of_the_engine_bit_for_bit():
    """What a difference is judged by is what plain decoding saw, in float32 too."""
    from outrider.certify.identity import Judge
    from outrider.types import Needs

    llm = LLM(tiny_model(dtype=torch.float32), tokenizer=tiny_tokenizer(), preset="plain")
    seen = []
    llm.listen(lambda outcome: seen.append(outcome.logits[0, 0].clone()), Needs(logits=True))
    prompt = llm.encode("some text to go on from")
    out = llm.generate([prompt], SamplingParams(max_tokens=9))[0]
    judge = Judge(llm)
    for at in (0, 1, 8):
        assert torch.equal(judge.scores([*prompt, *out.token_ids[:at]], len(prompt))[0], seen[at])


def test_p_values_are_uniform_for_plain_decoding(llm):
    """All five tests, over many seeds: a certificate that rejects too often is as useless as one that never does."""
    from scipy import stats

    decoder = Decoder(llm)
    contexts = (Ask("a", (1, 2, 1)), Ask("b", (5, 4, 3, 2)))
    params = SamplingParams(temperature=1.0, max_tokens=4)
    found = {}
    for seed in range(60):
        sampler = Sampler(decoder, Scorer(decoder), contexts, params, 120, seed=seed * 100_000)
        sides = [sampler.draw([preset("plain"), preset("plain")], side, lambda _: None) for side in (0, 1)]
        for name, (test, _) in law_tests(sides[1], sides[0]).items():
            found.setdefault(name, []).append(test.p_value)
    assert list(found) == ["first tokens", "pairs", "next tokens", "places", "neighbours"]
    for name, values in found.items():
        assert stats.kstest(values, "uniform").pvalue > 1e-3, name
