"""Drafting that cannot pay costs next to nothing, whoever drafts; and none of it touches text or law.

Times are scripted. Every bound is also held against the constant policy, which must break it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from outrider import Parts, SamplingParams, preset
from outrider.policy.base import Policy
from outrider.policy.fixed import Fixed
from outrider.policy.goodput import Goodput
from outrider.run.row import Row
from outrider.testing.decode import drain, engine
from outrider.testing.drafters import Hostile
from outrider.testing.loop import check_law, law_test
from outrider.testing.world import table_world, tiny_world
from outrider.types import Budget, DraftTree, Drawn, Outcome

from .simulated import Price, simulate

PLAIN = 0.02
STEPS = 100_000
NOISE = np.random.default_rng(5).lognormal(0, 0.05, STEPS)
SPIKES = np.where(np.random.default_rng(6).random(STEPS) < 0.01, 8.0, 1.0)
"""One step in a hundred takes eight times as long: somebody else needed the processor."""


def price_of(nodes: Sequence[int], times: Sequence[float], spikes: bool = False) -> Price:
    """Steps of a machine that takes ``times`` plain steps for ``nodes`` nodes."""

    def price(rows: int, each: int, step: int) -> float:
        seconds = PLAIN * float(np.interp(rows * each, nodes, times)) * float(NOISE[step])
        return seconds * float(SPIKES[step]) if spikes else seconds

    return price


AVX2 = price_of((1, 8, 16, 80, 800), (1, 1.7, 2.2, 5.7, 50))
MATRIX = price_of((1, 8, 48, 80, 800), (1, 1.1, 1.35, 1.8, 15))
MACHINES = {"avx2": AVX2, "matrix": MATRIX, "avx2, spikes": price_of((1, 8, 16, 80, 800), (1, 1.7, 2.2, 5.7, 50), True)}

WRONG = {
    "look-up": {"lists": True, "level": 0.0},
    "look-up on a device": {"lists": False, "level": 0.0},
    "slow": {"lists": True, "level": PLAIN / 10},
    "a draft model": {"lists": False, "level": PLAIN / 5},
}


def hopeless(policy: Policy, machine: str, drafter: str, tokens: int, requests: int) -> float:
    run = simulate(policy, lambda _: 0.0, MACHINES[machine], tokens=tokens, requests=requests, **WRONG[drafter])  # type: ignore[arg-type]
    plain = PLAIN * (float(SPIKES[: len(run.seconds)].mean()) if "spikes" in machine else 1.0)
    return run.speedup(plain)


@pytest.mark.parametrize("tokens", [32, 256])
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("drafter", WRONG)
def test_a_drafter_that_is_always_wrong_costs_next_to_nothing(drafter: str, machine: str, tokens: int) -> None:
    found = hopeless(Goodput(Fixed(10)), machine, drafter, tokens, requests=1024 // tokens)
    print(f"{found:.3f} times plain")
    assert found > 0.975


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("drafter", WRONG)
def test_a_constant_length_does_cost(drafter: str, machine: str) -> None:
    assert hopeless(Fixed(10), machine, drafter, 64, requests=4) < 0.92


def test_one_request_alone_is_hardly_slower() -> None:
    for drafter in WRONG:
        for machine in MACHINES:
            assert hopeless(Goodput(Fixed(10)), machine, drafter, 64, requests=1) > 0.93, (drafter, machine)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("lists", [True, False])
def test_drafting_that_pays_is_kept(machine: str, lists: bool) -> None:
    def alpha(_: int) -> float:
        return 0.9

    fixed = simulate(Fixed(10), alpha, MACHINES[machine], tokens=600, lists=lists)
    found = simulate(Goodput(Fixed(10)), alpha, MACHINES[machine], tokens=600, lists=lists)
    assert sum(found.seconds) < 1.12 * sum(fixed.seconds)


def test_the_length_fits_the_machine() -> None:
    runs = [simulate(Goodput(Fixed(10)), lambda _: 0.6, price, tokens=600, lists=False) for price in (AVX2, MATRIX)]
    few, many = (float(np.mean(run.nodes[-100:])) for run in runs)
    assert few < 4
    assert many > few + 1.5
    fixed = simulate(Fixed(10), lambda _: 0.6, AVX2, tokens=600)
    assert runs[0].speedup(PLAIN) > 1.15 * fixed.speedup(PLAIN)


@pytest.mark.parametrize("lists", [True, False])
def test_trying_stays_within_its_share(lists: bool) -> None:
    policy = Goodput(Fixed(10), explore=0.01)
    run = simulate(policy, lambda _: 0.0, AVX2, tokens=2500, level=PLAIN / 5, lists=lists)
    late = slice(100, None)
    drafted = [s - PLAIN * float(NOISE[i]) for i, s in enumerate(run.seconds)]
    assert 0 < sum(drafted[late]) < 0.012 * sum(run.seconds)
    asked = np.flatnonzero(run.levels[100:])
    assert len(asked) >= 3
    assert np.diff(asked)[-1] > np.diff(asked)[0], "gaps do not grow"


def test_nothing_is_asked_where_nothing_pays() -> None:
    run = simulate(Goodput(Fixed(10)), lambda _: 0.0, AVX2, tokens=600, level=PLAIN / 5)
    assert sum(level > 0 for level in run.levels) < 20
    assert sum(level == 0 for level in run.levels[-200:]) > 195


class Scripted(Policy):
    """Drafts ``depth`` tokens in the steps that ``when`` names, for all rows but those that ``skip`` names."""

    def __init__(self, depth: int, when: Sequence[bool]) -> None:
        self.depth, self.when, self.step = depth, when, 0

    def plan(self, rows: Sequence[Row]) -> Budget:
        draft = self.when[self.step % len(self.when)]
        self.step += 1
        return Budget(self.depth if draft else 0, self.depth if draft else 0)


@pytest.mark.parametrize("pause", [1, 7, 40])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_draft_model_catches_up_after_a_pause(pause: int, rows: int) -> None:
    """The target as its own draft model: every drafted token is accepted, if its store holds the text."""
    world = replace(tiny_world(), draft=tiny_world().target, memo={})
    parts = preset("spec-decode").with_(policy=Scripted(4, [True, True] + [False] * pause))
    running = engine(world, parts)
    drafted, accepted = [], []

    def look(outcome: Outcome) -> None:
        assert outcome.verdict is not None
        drafted.append(outcome.tree.shape[1] - 1)
        accepted.append(outcome.verdict.count.tolist())

    running.listen(look)
    for row in range(rows):
        running.submit((5, 6, 7 + row), SamplingParams(max_tokens=120, ignore_eos=True, seed=row), stream=False)
    drain(running)
    full = [counts for nodes, counts in zip(drafted[:-3], accepted[:-3], strict=True) if nodes == 4]
    assert len(full) >= 4
    assert all(counts == [5] * len(counts) for counts in full), full
    assert sum(nodes == 0 for nodes in drafted) >= pause


def test_a_draft_model_catches_up_for_rows_that_were_skipped() -> None:
    world = replace(tiny_world(), draft=tiny_world().target, memo={})

    class Every(Fixed):
        def plan(self, rows: Sequence[Row]) -> Budget:
            return replace(super().plan(rows), skip=frozenset(r.id for r in rows if (r.output_length // 9 + r.id) % 2))

    running = engine(world, preset("spec-decode").with_(policy=Every(3)))
    seen: list[tuple[bool, int]] = []

    def look(outcome: Outcome) -> None:
        assert outcome.verdict is not None
        seen.extend(zip((outcome.tree.real.sum(1) == 4).tolist(), outcome.verdict.count.tolist(), strict=True))

    running.listen(look)
    for row in range(4):
        running.submit((5, 6, 7 + row), SamplingParams(max_tokens=60, ignore_eos=True), stream=False)
    drain(running)
    assert {count for drafted, count in seen if not drafted} == {1}
    assert {count for drafted, count in seen if drafted} == {4}


def test_rows_may_leave_before_their_draft_model_has_read_them() -> None:
    running = engine(
        tiny_world(), preset("spec-decode").with_(policy=Scripted(3, [True] + [False] * 50)), prefix_entries=2
    )
    params = SamplingParams(max_tokens=40, ignore_eos=True)
    requests = [running.submit((5, 6, 7), params)]
    running.step()  # the draft model's store has one row, and never more
    requests += [running.submit((5, 6, 8 + i), replace(params, max_tokens=10 + i)) for i in range(4)]
    running.step()
    running.cancel(requests[1])
    drain(running)
    assert [len(request.choices[0].token_ids) for request in requests[2:]] == [11, 12, 13]


def test_hostile_drafts_end() -> None:
    """In a real loop with real times, whose decisions are not repeatable: only what must hold on any machine."""
    world = tiny_world()
    prompts = [(5, 6, 7, 8, first) for first in range(6)]
    params = SamplingParams(max_tokens=60, ignore_eos=True)
    plain = engine(world, preset("plain"))
    wanted = [plain.submit(prompt, params) for prompt in prompts]
    drain(plain)
    texts = {(prompt, r.seed, 0): r.choices[0].token_ids for prompt, r in zip(prompts, wanted, strict=True)}
    parts = preset("smartspec", of="pld")
    assert parts.drafter is not None
    seeds = [r.seed for r in wanted]
    running = engine(world, parts.with_(drafter=Hostile(parts.drafter, texts)), max_rows=1)
    found = [running.submit(prompt, replace(params, seed=seed)) for prompt, seed in zip(prompts, seeds, strict=True)]
    drain(running)
    for request, right in zip(found, wanted, strict=True):
        assert request.choices[0].token_ids == right.choices[0].token_ids
        assert request.choices[0].stats.mean_accepted_length == 1
    late = sum(request.choices[0].stats.draft_tokens for request in found[2:])
    assert late < 100, f"{late} tokens drafted in vain in 240 steps"


# -- the law ------------------------------------------------------------------------------------------------

WORLD = table_world(4)


class Priced(Goodput):
    """Goodput for which a step that drafts seems to take what past tokens say: lengths vary, and depend on the past."""

    def observe(self, outcome: Outcome) -> None:
        last = sum(tokens[-1] for tokens in outcome.emitted if tokens)
        nodes = outcome.tree.shape[1]
        super().observe(replace(outcome, seconds={"draft": 0.0, "target": 1 + (nodes - 1) * (0.02 + 0.6 * (last % 2))}))


class Moody(Fixed):
    """Depth and rows chosen by the latest token of each row: the past, and all that an adaptive budget may look at."""

    def plan(self, rows: Sequence[Row]) -> Budget:
        budget = super().plan(rows)
        depth = 1 + sum(row.tokens[-1] for row in rows) % self.depth
        return replace(budget, depth=depth, skip=frozenset(row.id for row in rows if row.tokens[-1] % 3 == 0))


EXACT = {
    "chains": lambda: preset("spec-decode", depth=2),
    "trees drawn without replacement": lambda: preset("spec-decode", structure="sampled", depth=2, width=2, nodes=5),
}


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("adapt", [Priced, None], ids=["goodput", "moody"])
def test_lengths_that_depend_on_the_past_keep_the_law(name: str, adapt: type[Priced] | None) -> None:
    lengths: set[int] = set()

    def make() -> Parts:
        parts = EXACT[name]()
        policy = Moody(2, nodes=5, width=2) if adapt is None else adapt(parts.policy)
        plan = policy.plan

        def watched(rows: Sequence[Row]) -> Budget:
            budget = plan(rows)
            lengths.add(0 if budget.empty else budget.nodes * budget.depth)
            return budget

        object.__setattr__(policy, "plan", watched)
        return parts.with_(policy=policy)

    print(check_law(make, 4, WORLD, 20_000))
    assert len(lengths) > 1, f"the length was always {lengths}"


class Peeking(Fixed):
    """Leaves out drafted tokens because of what they are."""

    asked = 0

    def review(self, rows: Sequence[Row], tree: DraftTree) -> list[int] | None:
        type(self).asked += 1
        keep = []
        for tokens, real in zip(tree.tokens.tolist(), tree.real.tolist(), strict=True):
            drafted = [token for token, there in zip(tokens[1:], real[1:], strict=True) if there]
            odd = [i for i, token in enumerate(drafted) if token % 2]
            keep.append(1 + (odd[0] if odd else len(drafted)))
        return keep


def peeking() -> Parts:
    Peeking.asked = 0
    parts = preset("spec-decode", depth=2)
    assert parts.drafter is not None
    assert Drawn.IID in parts.drafter.kinds
    return parts.with_(policy=Peeking(2))


def test_a_policy_that_cuts_drawn_tokens_by_value_is_not_asked() -> None:
    check_law(peeking, 4, WORLD, 20_000)
    assert Peeking.asked == 0


def test_a_policy_that_cuts_drawn_tokens_by_value_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Parts, "prunable", True)
    result, drawn = law_test(peeking, 4, WORLD, rows=10_000)
    assert Peeking.asked > 0
    assert drawn.stats.accepted_tokens > 0
    assert result.p_value < 1e-9
