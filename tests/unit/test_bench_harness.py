"""The harness on tiny models: what it measures, what it keeps equal for all, what it refuses, what it survives."""

from __future__ import annotations

import doctest
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest
import torch

from outrider import LLM, Limits, SamplingParams
from outrider.bench import BenchResult, Harness, Options, bench, harness
from outrider.bench.harness import as_suite, rotated
from outrider.bench.observe import Memory
from outrider.bench.peers import PeerRun, PeerRunner
from outrider.bench.runners import Conversation, PresetRunner
from outrider.bench.suite import SuitePrompt
from outrider.errors import ConfigError, IncompatibleParts, RequestError
from outrider.testing.tiny import tiny_model, tiny_tokenizer

TEXTS = ["one two three one two three one two", "abcabcabcabc", "xyz xyz xyz", "hello"]
SHORT = SamplingParams(max_tokens=12)


@lru_cache(maxsize=1)
def llm() -> LLM:
    return LLM(tiny_model(), tokenizer=tiny_tokenizer(), preset="plain", draft_model=tiny_model(seed=1))


def conversations(*prompts: tuple[str, ...]):
    """A suite of several turns, in two groups and three categories."""
    suite = as_suite([turns[0] for turns in prompts])
    named = [
        replace(prompt, turns=turns, group="ab"[index % 2], category="xyz"[index % 3])
        for index, (prompt, turns) in enumerate(zip(suite.prompts, prompts, strict=True))
    ]
    return replace(suite, prompts=tuple(named))


@pytest.fixture
def twist(monkeypatch):
    """Let ``change(runner, answer)`` have a hand in every answer of a preset."""

    def install(change):
        real = PresetRunner.answer

        def answer(self, prompt, params):
            return change(self, real(self, prompt, params))

        monkeypatch.setattr(PresetRunner, "answer", answer)

    return install


def test_three_presets_on_four_prompts():
    result = bench(llm(), TEXTS, "pld,sam,sam|token-recycling", SHORT)
    assert [each.name for each in result.presets] == ["plain", "pld", "sam", "sam|token-recycling"]
    plain = llm_texts(SHORT)
    for each in result.presets:
        assert [record.token_ids for record in each.records] == plain
        assert each.identical == 1.0
        assert each.emitted_tokens == sum(map(len, plain))
        assert each.baseline == "plain"
        assert each.peak_memory_bytes > 0
        assert sum(each.acceptance_histogram) == each.target_calls
    assert result.plain.mean_accepted_length == 1.0
    assert result.plain.draft_tokens == 0
    assert result.plain.speedup == 1.0
    assert result.preset("sam|token-recycling").mean_accepted_length > 1.0
    assert result.suite.prompts == 4
    assert result.provenance["models"]["target"]["sha256"]
    assert result.settings.max_tokens == 12


def llm_texts(params: SamplingParams) -> list[list[int]]:
    """What plain decoding says to ``TEXTS``, without the harness."""
    engine = LLM(llm().language_model, tokenizer=llm().tokenizer, preset="plain")
    return [engine.chat(text, params).token_ids for text in TEXTS]


def test_the_example_of_the_documentation_runs():
    outcome = doctest.testmod(harness)
    assert outcome.attempted >= 6
    assert outcome.failed == 0


def test_figures_are_those_of_the_records():
    result = bench(llm(), TEXTS, ["pld"], SHORT)
    plain, pld = result.plain.records, result.preset("pld").records
    speed = [sum(r.tokens for r in side) / sum(r.decode_seconds for r in side) for side in (pld, plain)]
    assert result.preset("pld").tokens_per_second == pytest.approx(speed[0])
    assert result.preset("pld").speedup == pytest.approx(speed[0] / speed[1])
    low, high = result.preset("pld").interval.low, result.preset("pld").interval.high
    assert low < result.preset("pld").speedup < high


def test_depths_and_contexts_agree_with_the_engines_own_counts():
    result = bench(llm(), ["abc" * 60, "xy" * 30], "sam,token-recycling,spec-decode", SamplingParams(max_tokens=40))
    for each in result.presets:
        assert sum(entry.target_calls for entry in each.by_context) == each.target_calls
        assert sum(entry.emitted_tokens for entry in each.by_context) == each.emitted_tokens
        assert sum(entry.draft_tokens for entry in each.by_context) == each.draft_tokens
        assert sum(entry.accepted_tokens for entry in each.by_context) == each.accepted_tokens
        assert sum(entry.accepted for entry in each.by_depth) == each.accepted_tokens
        deeper = each.acceptance_histogram
        for entry in each.by_depth:
            assert entry.accepted == sum(deeper[entry.depth :])
            assert entry.accepted <= entry.drafted <= each.target_calls
        assert [entry.low for entry in each.by_context] == [0, 128]
    assert result.preset("spec-decode").uses_draft_model
    assert max(entry.depth for entry in result.preset("spec-decode").by_depth) == 5


def test_the_result_comes_back_from_json():
    result = bench(llm(), TEXTS[:2], "pld", SamplingParams(max_tokens=4, logit_bias={7: float("-inf")}, stop=["zz"]))
    assert BenchResult.from_json(result.to_json()) == result
    assert result.settings.params == {"logit_bias": {"7": "-inf"}, "stop": ["zz"]}


def test_everybody_reads_the_same_tokens_and_plain_answers_are_fed_back():
    suite = conversations(("one two", "and then?", "why?"), ("abcabc", "again"))
    result = bench(llm(), suite, "pld,sam", SHORT)
    plain = result.plain.records
    assert [(r.prompt, r.turn) for r in plain] == [("1", 0), ("1", 1), ("1", 2), ("2", 0), ("2", 1)]
    for each in result.presets:
        assert [r.prompt_tokens for r in each.records] == [r.prompt_tokens for r in plain]
    said = llm().tokenizer.decode(plain[0].token_ids, skip_special_tokens=True)
    messages = [
        {"role": "user", "content": "one two"},
        {"role": "assistant", "content": said},
        {"role": "user", "content": "and then?"},
    ]
    assert plain[1].prompt_tokens == len(llm().encode(messages))
    assert list(result.plain.groups) == ["a", "b"]
    assert list(result.plain.categories) == ["x", "y"]
    assert result.suite.groups == {"a": 1, "b": 1}
    assert any("fed back" in note for note in result.notes)


def test_a_conversation_speaks_the_models_template():
    chat = SuitePrompt(id="1", category="c", group="g", turns=("hi", "more"), system="be brief")
    told = Conversation(llm(), chat)
    assert llm().tokenizer.decode(told.ids(0)) == "<s><|system|>be brief<|user|>hi<|assistant|>"
    told.feed("yes")
    assert llm().tokenizer.decode(told.ids(1)).endswith("<|user|>hi<|assistant|>yes</s><|user|>more<|assistant|>")
    raw = SuitePrompt(id="1", category="c", group="g", turns=("def f():",), raw=True)
    assert Conversation(llm(), raw).ids(0) == llm().encode("def f():")
    with pytest.raises(RequestError, match="earlier turn"):
        Conversation(llm(), chat).ids(1)


def test_a_template_without_a_system_role_gets_it_with_the_first_message():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + (
        tokenizer.chat_template
    )
    picky = LLM(llm().language_model, tokenizer=tokenizer, preset="plain")
    prompt = SuitePrompt(id="1", category="c", group="g", turns=("hi",), system="be brief")
    assert tokenizer.decode(Conversation(picky, prompt).ids(0)) == "<s><|user|>be brief\n\nhi<|assistant|>"


def test_without_a_template_texts_are_continued():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    base = LLM(llm().language_model, tokenizer=tokenizer, preset="plain")
    result = bench(base, ["hello"], "pld", SHORT)
    assert result.plain.records[0].prompt_tokens == len("hello")
    assert any("no chat template" in note for note in result.notes)


def test_places_rotate():
    names = ["plain", "pld", "sam"]
    orders = [tuple(rotated(names, turn)) for turn in range(6)]
    assert len(set(orders)) == 6
    for place in range(3):
        assert sorted(order[place] for order in orders) == sorted(names * 2)
    result = bench(llm(), TEXTS, "pld,sam", SamplingParams(max_tokens=2))
    for index in range(4):
        assert sorted(each.records[index].place for each in result.presets) == [0, 1, 2]
    assert {each.records[0].place for each in result.presets} == {0, 1, 2}
    assert [record.place for record in result.plain.records] == [0, 2, 1, 2]


def test_one_engine_per_preset_unless_asked_otherwise(twist):
    engines = []
    twist(lambda runner, answer: engines.append((runner.name, runner.llm.engine)) or answer)

    def used(options):
        engines.clear()
        bench(llm(), TEXTS[:3], "sam", SamplingParams(max_tokens=2), options)
        measured = engines[2:]  # the first two answers warm up
        assert not {id(engine) for _, engine in engines[:2]} & {id(engine) for _, engine in measured}
        return len({id(engine) for name, engine in measured if name == "sam"})

    assert used(Options()) == 1
    assert used(Options(fresh=True)) == 3
    assert used(Options(repeats=2)) == 2


def test_what_drafters_learn_is_kept_between_prompts():
    text = ["one two three four five six seven"] * 3
    kept = bench(llm(), text, "token-recycling", SamplingParams(max_tokens=30))
    anew = bench(llm(), text, "token-recycling", SamplingParams(max_tokens=30), Options(fresh=True))
    lengths = [[r.target_calls for r in each.preset("token-recycling").records] for each in (kept, anew)]
    assert lengths[0][1] < lengths[0][0]
    assert lengths[1] == [lengths[0][0]] * 3
    assert any("kept what they learnt" in note for note in kept.notes)


def test_repeats_pair_run_by_run():
    result = bench(llm(), TEXTS[:2], "pld", SHORT, Options(repeats=3))
    assert [record.key for record in result.plain.records] == [(p, 0, run) for run in range(3) for p in ("1", "2")]
    assert (result.plain.prompts, result.plain.answers) == (2, 6)
    assert result.settings.repeats == 3


def test_two_prompts_give_no_interval_and_say_so():
    result = bench(llm(), TEXTS[:2], "pld", SHORT)
    assert result.preset("pld").interval is None
    assert result.preset("pld").speedup > 0
    assert any("no interval" in note for note in result.notes)


def test_a_wrong_token_is_found_and_counted(twist):
    def wrong(runner, answer):
        if runner.name != "pld" or len(answer.token_ids) < 12:
            return answer
        return replace(
            answer, token_ids=[*answer.token_ids[:5], (answer.token_ids[5] + 1) % 250, *answer.token_ids[6:]]
        )

    twist(wrong)
    result = bench(llm(), TEXTS[:2], "pld,sam", SamplingParams(max_tokens=12, ignore_eos=True))
    pld = result.preset("pld")
    assert (pld.identical, pld.wrong, pld.ties) == (0.0, 2, 0)
    found = pld.records[0].difference
    assert (found.position, found.kind) == (5, "wrong")
    assert found.found == (found.wanted + 1) % 250
    assert found.wanted_text == llm().tokenizer.decode([found.wanted])
    assert found.gap > found.tolerance
    assert result.preset("sam").identical == 1.0


def test_identity_is_claimed_only_where_it_is_promised():
    warm = SamplingParams(max_tokens=12, temperature=1.0)
    result = bench(llm(), TEXTS[:2], "pld,spec-decode", warm)
    assert result.settings.seed == 0
    assert result.preset("pld").identical == 1.0
    exact = result.preset("spec-decode")
    assert exact.guarantee == "exact"
    assert exact.identical is None
    assert exact.compared == 0
    greedy = bench(llm(), TEXTS[:2], "spec-decode", SHORT)
    assert greedy.preset("spec-decode").identical == 1.0


class FakePeer:
    """A program that answers what it is told, at a pace it is told."""

    baseline = "fake"
    library, version, method = "fakelib", "1.2", "by rote"
    notes = ("It is not real.",)
    comparable = True

    def __init__(self, name="fake", seconds=1.0, prefill=0.25, wrong_from=None, fails=()):
        self.name, self.seconds, self.prefill, self.wrong_from, self.fails = name, seconds, prefill, wrong_from, fails
        self.calls = 0

    def generate(self, token_ids, max_tokens, stop=()):
        self.calls += 1
        if self.calls in self.fails:
            raise RequestError("out of order")
        told = LLM(llm().language_model, tokenizer=llm().tokenizer, preset="plain")
        tokens = told.generate(list(token_ids), SamplingParams(max_tokens=max_tokens, ignore_eos=not stop))[0].token_ids
        if self.wrong_from is not None:
            tokens = [*tokens[: self.wrong_from], *((token + 1) % 250 for token in tokens[self.wrong_from :])]
        return PeerRun(tokens, self.prefill, self.seconds, target_calls=len(tokens))


def beside(*peers):
    runners = [PeerRunner(peer, llm().tokenizer, llm().engine.stop_tokens) for peer in peers]
    measured = Harness(llm(), TEXTS, "pld", SHORT, peers=runners)
    measured.run()
    return measured.result()


def test_peers_answer_in_turns_and_are_set_against_their_own_baseline():
    result = beside(FakePeer(), FakePeer("fake-fast", seconds=0.625))
    slow, fast = result.peers
    assert [each.name for each in result.presets] == ["plain", "pld"]
    assert (fast.baseline, fast.library, fast.version, fast.method) == ("fake", "fakelib", "1.2", "by rote")
    assert fast.speedup == pytest.approx(2.0)  # 0.75 s of decoding against 0.375 s
    assert slow.speedup == 1.0
    plain = result.plain
    assert fast.over_plain.baseline == "plain"
    assert fast.over_plain.value == pytest.approx(fast.tokens_per_second / plain.tokens_per_second)
    assert fast.identical == 1.0
    assert fast.mean_accepted_length == 1.0
    assert fast.notes == ["It is not real."]
    assert {each.records[0].place for each in (*result.presets, *result.peers)} == {0, 1, 2, 3}
    assert result.settings.peers == ["fake", "fake-fast"]
    assert BenchResult.from_json(result.to_json()) == result


def test_a_peer_that_differs_or_cannot_tell():
    strange = FakePeer("strange", wrong_from=3)
    strange.comparable = False
    vague = FakePeer("vague", prefill=None)
    result = beside(FakePeer(wrong_from=3), strange, vague)
    plain, (wrong, strange, vague) = result.plain, result.peers
    assert wrong.wrong == sum(record.tokens > 3 for record in plain.records)
    assert wrong.records[0].difference.position == 3
    assert strange.identical is None
    assert strange.wrong == 0
    assert not vague.records[0].prefill_measured
    whole = sum(record.tokens for record in plain.records) / sum(record.all_seconds for record in plain.records)
    assert vague.over_plain.value == pytest.approx(vague.tokens_per_second / whole)


def test_a_peer_that_fails_is_left_out_of_that_prompt_alone():
    result = beside(FakePeer(fails=(3,)))  # once to warm up, once for the first prompt
    assert [(failure.name, failure.reason) for failure in result.failures] == [("2, fake", "out of order.")]
    assert [record.prompt for record in result.plain.records] == ["1", "2", "3", "4"]
    assert [record.prompt for record in result.peers[0].records] == ["1", "3", "4"]
    assert result.peers[0].over_plain.prompts == 3


def test_peers_are_measured_greedily():
    peers = [PeerRunner(FakePeer(), llm().tokenizer, ())]
    with pytest.raises(ConfigError, match=r"peers with temperature=0.5"):
        Harness(llm(), TEXTS, "pld", SamplingParams(temperature=0.5), peers=peers)
    with pytest.raises(ConfigError, match=r"peers with repetition_penalty"):
        Harness(llm(), TEXTS, "pld", SamplingParams(repetition_penalty=1.2), peers=peers)


# -- what is refused ------------------------------------------------------------------------------------------------


def test_unknown_presets_are_refused_before_anything_runs(monkeypatch):
    monkeypatch.setattr(PresetRunner, "answer", lambda *_: pytest.fail("something ran"))
    with pytest.raises(ConfigError, match=r"unknown preset 'samm'.*Did you mean 'sam'"):
        bench(llm(), TEXTS, "pld,samm", SHORT)
    with pytest.raises(ConfigError, match=r"no setting 'dept'.*'depth'"):
        bench(llm(), TEXTS, "pld(dept=3)", SHORT)
    with pytest.raises(ConfigError, match="list of texts"):
        bench(llm(), "one text", "pld", SHORT)
    with pytest.raises(ConfigError, match="list of texts"):
        bench(llm(), [], "pld", SHORT)
    with pytest.raises(ConfigError, match="n is 2"):
        bench(llm(), TEXTS, "pld", replace(SHORT, n=2))
    for repeats in (0, -1, 1.5):
        with pytest.raises(ConfigError, match="repeats"):
            Options(repeats=repeats)


def test_a_preset_that_the_model_cannot_run(monkeypatch):
    monkeypatch.setattr(llm().language_model, "branching", False)
    with pytest.raises(IncompatibleParts, match=r"token-recycling.*recurrent"):
        bench(llm(), TEXTS, "pld,token-recycling", SHORT)
    result = bench(llm(), TEXTS[:1], "all", SamplingParams(max_tokens=2))
    out = {one.name: one.reason for one in result.left_out}
    assert "token-recycling" in out
    assert "recurrent" in out["token-recycling"]
    assert {"plain", "pld", "sam", "spec-decode"} <= {each.name for each in result.presets}


def test_without_a_draft_model():
    alone = LLM(llm().language_model, tokenizer=llm().tokenizer, preset="plain")
    with pytest.raises(ConfigError, match=r"'spec-decode' needs a draft model.*--draft-model"):
        bench(alone, TEXTS, "spec-decode", SHORT)
    everything = Harness(alone, TEXTS, "all")
    assert {one.name: one.reason for one in everything.chosen.left_out}["spec-decode"] == "needs a draft model"


# -- what fails on the way --------------------------------------------------------------------------------------------


def test_a_prompt_that_cannot_be_served_is_in_nobodys_figures():
    result = bench(llm(), [TEXTS[0], "x" * 600, TEXTS[1]], "pld", SHORT)
    assert [failure.name for failure in result.failures] == ["2"]
    assert "context" in result.failures[0].reason or "512" in result.failures[0].reason
    for each in result.presets:
        assert [record.prompt for record in each.records] == ["1", "3"]


def test_a_later_turn_that_does_not_fit_leaves_the_earlier_ones():
    suite = conversations(("one two", "y" * 600), ("abc",))
    result = bench(llm(), suite, "pld", SHORT)
    assert [failure.name for failure in result.failures] == ["1, turn 2"]
    assert [record.key for record in result.plain.records] == [("1", 0, 0), ("2", 0, 0)]


def test_when_one_preset_fails_nobody_is_measured_on_that_prompt(twist):
    def fail(runner, answer):
        if runner.name == "pld" and len(answer.token_ids) == 12:
            raise RequestError("a drafter that breaks")
        return answer

    twist(fail)
    result = bench(llm(), ["hello", "abc"], "sam", SHORT)
    assert not result.failures
    with pytest.raises(ConfigError, match=r"no prompt could be answered.*pld: a drafter that breaks"):
        bench(llm(), ["hello", "abc"], "pld,sam", replace(SHORT, ignore_eos=True))


def test_short_contexts_are_kept_to():
    short = LLM(llm().language_model, tokenizer=llm().tokenizer, preset="plain", limits=Limits(max_context=40))
    result = bench(short, ["hello"], "pld", SamplingParams(max_tokens=200, ignore_eos=True))
    assert result.settings.max_context == 40
    for each in result.presets:
        assert each.records[0].prompt_tokens + each.records[0].tokens <= 40


# -- interruption ---------------------------------------------------------------------------------------------------


def interrupt_at(monkeypatch, number):
    """Ctrl-C in the middle of answer ``number``."""
    real, count = PresetRunner.answer, iter(range(1, 10_000))

    def answer(self, prompt, params):
        if next(count) == number:
            raise KeyboardInterrupt
        return real(self, prompt, params)

    monkeypatch.setattr(PresetRunner, "answer", answer)


def texts(result):
    return {each.name: [(r.key, r.token_ids, r.difference) for r in each.records] for each in result.presets}


@pytest.mark.parametrize("number", [1, 5, 9, 12])
def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path, monkeypatch, number):
    """3 presets, a warm-up of 3 answers, then prompts of one, two and one turns, twice."""
    suite = conversations(("one two one two",), ("abcabc", "more"), ("hello",))

    def again():
        return Harness(llm(), suite, "pld,sam", SHORT, Options(repeats=2))

    whole = again()
    whole.run()
    first, path = again(), tmp_path / "out.json.partial"
    with monkeypatch.context() as patch:
        interrupt_at(patch, number)
        journal = first.journal(path, first.facts())
        with pytest.raises(KeyboardInterrupt):
            first.run(journal)
    kept = {1: 0, 5: 0, 9: 1, 12: 1}[number]
    assert first.prompts_done == kept
    if kept:
        partial = first.result()
        assert len(partial.plain.records) == kept
        assert any("Incomplete: 1 of 6" in note for note in partial.notes)
    steps = []
    second = again()
    journal = second.journal(path, second.facts())
    assert len(journal.entries) == kept
    second.run(journal, steps.append)
    assert steps[0].done == 3 * kept
    assert steps[-1].total == 24
    assert steps[-1].done == 23
    assert texts(second.result()) == texts(whole.result())
    assert any("resumed" in note for note in second.result().notes) == bool(kept)
    third = again()
    steps.clear()
    third.run(third.journal(path, third.facts()), steps.append)
    assert not steps, "all of it was there"
    assert texts(third.result()) == texts(whole.result())
    journal.remove()
    assert not path.exists()


def test_nothing_measured_is_no_result():
    with pytest.raises(ConfigError, match="nothing was measured"):
        Harness(llm(), TEXTS, "pld").result()


def test_other_settings_do_not_go_on(tmp_path):
    path = tmp_path / "partial"

    def open_(prompts=TEXTS, presets="pld", params=SHORT, options=None, model=None, restart=False):
        there = Harness(model or llm(), prompts, presets, params, options)
        return there.journal(path, there.facts(), restart)

    Harness(llm(), TEXTS, "pld", SHORT).run(open_())
    assert len(open_().entries) == 4
    other = LLM(tiny_model(seed=5), tokenizer=tiny_tokenizer(), preset="plain")
    for changed, match in (
        ({"prompts": TEXTS[:2]}, "suite sha256"),
        ({"presets": "pld,sam"}, "presets was .*pld.* and is .*sam"),
        ({"params": replace(SHORT, max_tokens=13)}, "max_tokens was 12 and is 13"),
        ({"params": replace(SHORT, temperature=0.5)}, "temperature was 0.0 and is 0.5"),
        ({"options": Options(fresh=True)}, "fresh was false and is true"),
        ({"model": other}, "target sha256"),
    ):
        with pytest.raises(ConfigError, match=rf"(?s){match}.*--restart"):
            open_(**changed)
    assert len(open_().entries) == 4, "a refusal harms nothing"
    assert open_(presets="sam", restart=True).entries == []


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux lets a process reset its mark")
def test_memory_is_measured_since_the_reset():
    memory = Memory(torch.device("cpu"))
    memory.reset()
    before = memory.peak()
    block = torch.ones(40_000_000)
    assert memory.peak() >= before + 100_000_000
    del block
    memory.reset()
    assert memory.peak() < before + 100_000_000
