"""Two results of `outrider bench` compared: what the data can show, and what they cannot."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from bench_results import Method, edit, result, slowed
from rich.console import Console
from scipy import stats

from outrider.bench.diff import APART, Diff, compare, show
from outrider.bench.paired import FASTER, MIN_PROMPTS, SAME, SLOWER, SPEED, SPEEDUP, change, student_quantile
from outrider.bench.result import BenchResult

METHODS = {"sam": Method(1.5, length=2.0, depth=5), "pld": Method(1.2, length=1.5, depth=3)}


def verdicts(diff: Diff) -> dict[str, str]:
    return {preset.name: preset.total.verdict for preset in diff.presets}


def shown(diff: Diff, encoding: str = "utf-8", width: int = 100) -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    show(Console(file=file, width=width, markup=False, highlight=False), diff)
    file.flush()
    return raw.getvalue().decode(encoding)


def test_a_result_does_not_differ_from_itself() -> None:
    one = result(METHODS)
    diff = compare(one, one)
    assert verdicts(diff) == dict.fromkeys(("plain", "sam", "pld"), SAME)
    assert diff.verdict == "No difference that the data can show."
    assert (diff.regressed, diff.exit_code, diff.notes, diff.machine) == (False, 0, [], [])
    assert diff.presets[1].total.speedup.ratio == pytest.approx(1)


def test_rounding_of_sums_is_no_difference() -> None:
    """All times alike but for their last digits: the interval has no width, and must not be on one side of 1."""
    sums = np.ones((8, 2, 4))
    sums[:, 1, 1] += 1e-12
    assert change(sums, SPEED).verdict == SAME
    sums[:, 1, 1] += 1e-3
    assert change(sums, SPEED).verdict == SLOWER


def test_a_fifth_slower_is_slower_and_the_other_way_round_faster() -> None:
    old, new = result(METHODS), result(slowed(METHODS, "sam", 0.8), seed=1)
    there, back = compare(old, new), compare(new, old)
    assert verdicts(there) == {"plain": SAME, "sam": SLOWER, "pld": SAME}
    assert verdicts(back) == {"plain": SAME, "sam": FASTER, "pld": SAME}
    assert (there.exit_code, back.exit_code) == (1, 0)
    assert there.verdict.startswith("B is slower: sam -")
    assert back.verdict.startswith("B is faster: sam +")
    move = there.presets[1]
    assert move.total.speedup.ratio == pytest.approx(0.8, abs=0.03)
    assert move.total.speed.ratio == pytest.approx(0.8, abs=0.03)
    assert move.total.speedup.interval.low < 0.8 < move.total.speedup.interval.high
    assert {group: each.verdict for group, each in move.groups.items()} == {"code": SLOWER, "chat": SLOWER}
    assert there.presets[1].total.speedup.ratio * back.presets[1].total.speedup.ratio == pytest.approx(1)


def test_wide_noise_gives_no_verdict() -> None:
    noisy = {"sam": Method(1.5, noise=0.8)}
    diff = compare(result(noisy), result(slowed(noisy, "sam", 0.8), seed=1))
    interval = diff.presets[1].total.speedup.interval
    assert interval.low < 1 < interval.high
    assert not diff.regressed


def test_intervals_hold_as_often_as_they_say() -> None:
    """Over 300 pairs of runs of 10 prompts, 95 % intervals must hold the true change, and find one of 20 %."""
    held = found = 0
    runs = 300
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        sums = np.exp(0.1 * rng.standard_normal((10, 2, 4))) * rng.uniform(1, 5, (10, 1, 1))
        interval = change(sums, SPEEDUP).interval
        held += interval.low <= 1 <= interval.high
        sums[:, 1, 1] *= 1.25
        found += change(sums, SPEEDUP).verdict == SLOWER
    assert stats.binomtest(held, runs, 0.95).pvalue > 0.001, held
    assert found > 0.3 * runs  # four noises of 10 % each: 20 % is often, not always, seen


def test_a_t_quantile_too_small_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outrider.bench.paired.student_quantile", lambda probability, dof: 1.3)
    with pytest.raises(AssertionError):
        test_intervals_hold_as_often_as_they_say()


@pytest.mark.parametrize("dof", [4, 5, 9, 30, 400])
def test_student_quantiles(dof: int) -> None:
    for tail in (0.025, 0.01, 0.001):
        assert student_quantile(1 - tail, dof) == pytest.approx(stats.t.ppf(1 - tail, dof), rel=0.03)


def test_many_presets_do_not_make_false_alarms() -> None:
    """Each interval is wider where more are made; without that, one of twelve equal presets would often be called."""
    many = {f"p{number}": Method(1.2, noise=0.1) for number in range(12)}
    alarms = sum(compare(result(many, seed=seed), result(many, seed=seed + 100)).regressed for seed in range(12))
    assert alarms <= 2
    few = {"p0": many["p0"]}
    wide = compare(result(many), result(many, seed=9)).presets[1].total.speedup.interval
    narrow = compare(result(few), result(few, seed=9)).presets[1].total.speedup.interval
    assert wide.high / wide.low > narrow.high / narrow.low


def test_a_slower_machine_is_told_by_plain_and_not_by_the_presets() -> None:
    diff = compare(result(METHODS), result(METHODS, seed=1, pace=0.8))
    assert verdicts(diff) == {"plain": SLOWER, "sam": SAME, "pld": SAME}
    assert diff.regressed
    assert "plain itself -" in diff.verdict
    assert any(note.startswith("plain itself is slower in B") for note in diff.notes)
    assert "moved as plain did" in shown(diff)


def test_a_faster_plain_does_not_make_presets_slower() -> None:
    """The speed-up falls because plain rose: tokens per second did not fall, and nothing is called slower."""
    old = result(METHODS)
    new = result({name: Method(method.speedup / 1.25) for name, method in METHODS.items()}, seed=1, pace=1.25)
    diff = compare(old, new)
    assert diff.presets[1].total.speedup.verdict == SLOWER
    assert verdicts(diff) == {"plain": FASTER, "sam": SAME, "pld": SAME}
    assert not diff.regressed


def test_another_machine_compares_speedups_only() -> None:
    old = result(METHODS)
    new = edit(result(slowed(METHODS, "sam", 0.8), seed=1, pace=3.0), "provenance", "machine", "cpu", value="Another")
    diff = compare(old, new)
    assert diff.machine == ["processor A processor against Another"]
    assert verdicts(diff) == {"plain": APART, "sam": SLOWER, "pld": SAME}
    assert all(preset.total.speed is None for preset in diff.presets)
    assert "Tokens per second are not compared" in shown(diff)


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (("suite", "sha256"), "6" * 64, "suite own 1, with other prompts"),
        (("provenance", "models", "target", "sha256"), "b" * 64, "model tiny-135m, with other weights"),
        (("provenance", "models", "target", "dtype"), "bfloat16", "dtype float32 against bfloat16"),
        (("settings", "max_tokens"), 32, "max tokens 64 against 32"),
        (("settings", "params"), {"temperature": 0.7}, "params none against {'temperature': 0.7}"),
        (("settings", "batch_size"), 4, "batch size 1 against 4"),
    ],
)
def test_other_conditions_are_not_comparable(path: tuple[str, ...], value: object, told: str) -> None:
    diff = compare(result(METHODS), edit(result(slowed(METHODS, "sam", 0.5)), *path, value=value))
    assert diff.reasons == [told]
    assert (diff.comparable, diff.regressed, diff.exit_code, diff.presets) == (False, False, 2, [])
    assert diff.verdict == f"Not comparable: {told}."
    assert told in shown(diff)


def test_the_seed_matters_only_where_texts_are_drawn() -> None:
    old = result(METHODS)
    assert compare(old, edit(old, "settings", "seed", value=7)).comparable
    warm = edit(old, "settings", "temperature", value=0.7)
    assert compare(warm, edit(warm, "settings", "seed", value=7)).reasons == ["seed 0 against 7"]


def test_what_may_differ_is_told() -> None:
    old = result(METHODS)
    new = edit(old, "provenance", "libraries", value={"torch": "2.12.0", "transformers": "5.17.0"})
    new = edit(new, "provenance", "commit", value="fedcba")
    diff = compare(old, edit(new, "settings", "fresh", value=False))
    assert diff.comparable
    assert diff.notes == [
        "outrider 0.1.0 abcdef012345 against 0.1.0 fedcba",
        "torch 2.11.0 against 2.12.0",
        "fresh True against False",
    ]


def test_wrong_where_it_was_right_comes_first() -> None:
    old = result({"sam": Method(1.5, ties=[2], wrong=[7])})
    new = result({"sam": Method(2.5, wrong=[2, 3, 7])}, seed=1)
    diff = compare(old, new)
    assert [(found.prompt, found.was) for found in diff.regressions] == [("code-2", "tie"), ("chat-3", "identical")]
    assert (diff.regressed, diff.exit_code) == (True, 1)
    assert verdicts(diff)["sam"] == FASTER
    assert diff.verdict.startswith("B is wrong in 2 answers that A had right (sam); B is faster")
    text = shown(diff)
    assert text.index("wrong: sam, prompt code-2: ' is' for ' was' at token 12") < text.index("tokens/s")
    assert diff.presets[1].identical == (0.9, 0.85)
    back = compare(new, old)
    assert not back.regressions


def test_wrong_in_one_run_of_several_is_wrong() -> None:
    old, new = (result({"sam": Method(1.5)}, repeats=2) for _ in range(2))
    wrong = result({"sam": Method(1.5, wrong=[3])}).preset("sam").records[3].difference
    records = [
        record.model_copy(update={"difference": wrong}) if record.key == ("chat-3", 0, 1) else record
        for record in new.preset("sam").records
    ]
    changed = new.preset("sam").model_copy(update={"records": records})
    diff = compare(old, new.model_copy(update={"presets": [new.plain, changed]}))
    assert [found.prompt for found in diff.regressions] == ["chat-3"]


def test_changed_plain_answers_are_told() -> None:
    old = result(METHODS)
    records = [record.model_copy(update={"token_ids": [9, *record.token_ids[1:]]}) for record in old.plain.records[:3]]
    plain = old.plain.model_copy(update={"records": records + old.plain.records[3:]})
    diff = compare(old, old.model_copy(update={"presets": [plain, *old.presets[1:]]}))
    assert "plain itself answers 3 of 20 differently in B" in diff.notes


def test_only_what_both_have_is_compared() -> None:
    old = result({"sam": METHODS["sam"], "gone": Method(3.0)})
    new = result({"sam": METHODS["sam"], "new": Method(0.1)}, prompts=12, seed=1)
    diff = compare(old, new)
    assert (diff.only_a, diff.only_b) == (["gone"], ["new"])
    assert diff.presets[1].total.speedup.prompts == 12
    assert diff.notes == ["prompts 20 against 12"]
    assert not diff.regressed
    text = shown(diff)
    assert "Only in A: gone" in text
    assert "Only in B: new" in text


def test_nothing_in_common() -> None:
    old = result({})
    other = old.model_copy(update={"presets": [old.plain.model_copy(update={"name": "x", "baseline": "x"})]})
    assert compare(old, other).reasons == ["no preset in common"]
    names = {number: (f"other-{number}", "code") for number in range(20)}
    assert compare(old, result({}, names=names)).reasons == ["no prompt in common"]


@pytest.mark.parametrize("prompts", [1, MIN_PROMPTS - 1])
def test_few_prompts_give_no_interval(prompts: int) -> None:
    diff = compare(result(METHODS, prompts=prompts), result(slowed(METHODS, "sam", 0.5), prompts=prompts, seed=1))
    assert diff.presets[1].total.speedup.interval is None
    assert not diff.regressed
    assert "too few prompts" in shown(diff)


def test_change_without_prompts_is_none() -> None:
    assert change(np.empty((0, 2, 4)), SPEED) is None


def test_json_form_is_whole_and_the_same_every_time() -> None:
    old, new = result(METHODS), result(slowed(METHODS, "sam", 0.8), seed=1)
    first = json.dumps(compare(old, new).as_dict(), allow_nan=False)
    again = compare(BenchResult.from_json(old.to_json()), BenchResult.from_json(new.to_json()))
    assert json.dumps(again.as_dict(), allow_nan=False) == first
    data = json.loads(first)
    sam = data["presets"][1]
    assert (data["regressed"], data["exit_code"], sam["name"], sam["verdict"]) == (True, 1, "sam", SLOWER)
    assert sam["speedup"]["interval"]["high"] < 1
    assert sam["groups"]["code"]["tokens_per_second"]["prompts"] == 10


def test_names_cannot_paint_the_terminal() -> None:
    bad = "x\x1b[31m[bold]y"
    names = {3: ("p\x1b]0;title\x07", "code")}
    old = result({bad: Method(1.5)}, names=names)
    diff = compare(old, result({bad: Method(1.5, wrong=[3])}, names=names))
    text = shown(diff)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[bold]y" in text


def test_a_terminal_without_unicode() -> None:
    diff = compare(result(METHODS), result(METHODS, seed=1))
    assert " -> " in shown(diff, encoding="ascii")
    assert " → " in shown(diff)


def test_a_narrow_terminal_keeps_every_figure() -> None:
    long = {"sam(min_match=2)|token-recycling(nodes=48)": Method(1.5)}
    text = shown(compare(result(long), result(long, seed=1)), width=80)
    assert "…" not in text
    assert max(len(line) for line in text.splitlines() if "→" in line) <= 80
