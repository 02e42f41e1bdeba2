"""What the tests of tuning share: a target whose forwards move a clock by known seconds, and a whole profile."""

from __future__ import annotations

from typing import Any

from outrider import LLM
from outrider.model.table import TableModel
from outrider.policy.cost import ForwardCost, StepCost
from outrider.run.scheduler import Limits
from outrider.tune.profile import Around, Forecast, Key, Measured, Place, Profile, Workload


class FakeTime:
    """Stands in for the module ``time``: it moves only when somebody moves it."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class PricedModel(TableModel):
    """A table model whose forwards take ``seconds(tokens, context)`` of a fake time. Every text repeats itself soon,
    since there are few laws, so that look-up has something to find."""

    def __init__(self, time: FakeTime, vocab: int = 6) -> None:
        super().__init__(vocab, seed=3, sharpness=3.0)
        self.time, self.max_positions = time, 400

    @staticmethod
    def seconds(tokens: int, context: int) -> float:
        return 0.05 + 0.004 * tokens + 0.00002 * context + (0.03 if tokens > 4 else 0.0)

    def forward(self, block: Any, store: Any, **options: Any) -> Any:
        self.time.now += self.seconds(block.shape[0] * block.shape[1], max(store.lengths))
        return super().forward(block, store, **options)


def priced_llm(time: FakeTime) -> LLM:
    return LLM(PricedModel(time), preset="plain", limits=Limits(max_context=400))


def clocked(monkeypatch: Any) -> FakeTime:
    """A fake time that the engine's clocks follow."""
    import outrider.run.engine as engine
    import outrider.run.scheduler as scheduler

    time = FakeTime()
    real = engine._Clock
    monkeypatch.setattr(engine, "time", time)
    monkeypatch.setattr(engine, "_Clock", lambda: real(at=time.now))
    monkeypatch.setattr(scheduler, "time", time)
    return time


AROUND = Around(dtype="float64", draft_dtype="", device="cpu", cpu="some", gpu="", cores=2, threads=1)


def forecast(speedup: float = 1.5) -> Forecast:
    return Forecast(
        tokens_per_second=20.0 * speedup,
        speedup=speedup,
        mean_accepted_length=1.8,
        mean_nodes=3.5,
        seconds={"draft": 0.001, "target": 0.05, "host": 0.002},
        prompts=8,
        source="replay",
    )


def a_profile(**changes: Any) -> Profile:
    """A whole profile of the preset sam."""
    cost = StepCost(ForwardCost((1, 8), (((0.05, 0.08),),)), host=0.001)
    measured = Measured(
        tokens_per_second=28.0, speedup=1.4, prompts=4, predicted=forecast(), error=0.07, speedup_error=0.07
    )
    values: dict[str, Any] = {
        "key": Key(weights="abc", quantisation="none", draft_weights="", around=AROUND),
        "model": "some-model",
        "draft_model": None,
        "family": "llama",
        "parameters": 1000,
        "made_at": "2026-01-02T03:04:05+00:00",
        "outrider": "0.1",
        "preset": "sam(min_match=2)",
        "speedup": 1.45,
        "why": "because",
        "cost": cost.as_dict(),
        "host_per_node": 0.0001,
        "prompt_token": 0.002,
        "unrest": 1.05,
        "ranking": [
            Place(preset="sam(min_match=2)", speedup=1.45, predicted=forecast(), measured=measured),
            Place(preset="plain", speedup=1.0, predicted=forecast(1.0), measured=None),
        ],
        "left_out": [],
        "workload": Workload(source="own 1", recorded=8, checked=4, tokens=300, max_tokens=48, temperature=0.0),
        "seconds": 58.0,
        "provenance": {},
    }
    return Profile(**{**values, **changes})
