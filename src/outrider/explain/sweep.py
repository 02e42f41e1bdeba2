"""Many settings over one trace, ranked: what each would have drafted, what would have stood, what that would gain."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outrider.errors import ConfigError, SpecError
from outrider.explain.replay import Replay
from outrider.explain.trace import Trace
from outrider.policy.cost import StepCost
from outrider.types import PADDING, Outcome

if TYPE_CHECKING:
    from outrider.model.base import LanguageModel

MOST_SETTINGS = 10_000


@dataclass(frozen=True)
class Trial:
    """One setting. ``speedup`` is over plain decoding as a cost model predicts it, None without one; ``refused`` says
    why this setting could not be replayed, and then there are no figures."""

    preset: str
    calls: int = 0
    tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    speedup: float | None = None
    refused: str = ""

    @property
    def tokens_per_call(self) -> float:
        return self.tokens / self.calls if self.calls else 0.0

    @property
    def drafted_per_accepted(self) -> float | None:
        """How many tokens were drafted for each that stood; None where none did."""
        return self.drafted / self.accepted if self.accepted else None

    @property
    def rank(self) -> tuple[bool, float, int]:
        """What trials are sorted by: the gain, then the smaller draft; refused ones last."""
        gain = self.tokens_per_call if self.speedup is None else self.speedup
        return bool(self.refused), -round(gain, 9), self.drafted

    def as_dict(self) -> dict[str, Any]:
        """Plain values, derived figures included."""
        return {
            **asdict(self),
            "tokens_per_call": self.tokens_per_call,
            "drafted_per_accepted": self.drafted_per_accepted,
        }


def expand(spec: str) -> list[str]:
    """Every preset that ``spec`` stands for: ``{2,4}`` takes one of its values, ``{2..5}`` one of these numbers.

    Raises ``ConfigError`` for braces that do not match, hold nothing or multiply to more than ``MOST_SETTINGS``.
    """
    pieces = re.split(r"\{([^{}]*)\}", spec)
    if any(brace in piece for piece in pieces for brace in "{}"):
        raise ConfigError(f"sweep {spec!r} has braces that do not match", hint="Write name(setting={1,2,4}).")
    choices = [[piece] if i % 2 == 0 else _values(spec, piece) for i, piece in enumerate(pieces)]
    total = 1
    for values in choices:
        total *= len(values)
    if total > MOST_SETTINGS:
        raise ConfigError(f"sweep {spec!r} stands for {total} settings", hint=f"At most {MOST_SETTINGS} are tried.")
    return ["".join(parts) for parts in itertools.product(*choices)]


def _values(spec: str, inside: str) -> list[str]:
    span = re.fullmatch(r"\s*(\d{1,9})\s*\.\.\s*(\d{1,9})\s*", inside)
    if span is not None:
        first, last = map(int, span.groups())
        if not first <= last <= first + MOST_SETTINGS:
            raise ConfigError(f"sweep {spec!r} has the range {{{inside}}}", hint="Write {low..high}.")
        return [str(number) for number in range(first, last + 1)]
    values = [value.strip() for value in inside.split(",")]
    if not all(values):
        raise ConfigError(f"sweep {spec!r} has the choice {{{inside}}}, of which one is empty", hint="Write {1,2,4}.")
    return values


class _Bill:
    """Adds up what the steps of a replay would cost, and what plain decoding would."""

    def __init__(self, cost: StepCost, drafter: str) -> None:
        self.cost, self.draft = cost, cost.drafts.get(drafter)
        self.steps = self.plain = 0.0

    def __call__(self, outcome: Outcome) -> None:
        if outcome.verdict is None:
            return
        tree, forward = outcome.tree, self.cost.forward
        kept, context = len(outcome.emitted[0]), len(outcome.rows[0].tokens) - 1
        nodes = len(tree.host[0][0]) if tree.host is not None else int((tree.parents[0] != PADDING).sum())
        drafting = outcome.seconds["draft"] if self.draft is None else self.draft.seconds(tree.depth_bound)
        self.steps += forward.seconds(1, nodes, context - kept) + drafting + self.cost.host
        for behind in range(kept):
            self.plain += forward.seconds(1, 1, context - kept + behind) + self.cost.host


def trial(trace: Trace, preset: str, cost: StepCost | None = None, draft_model: LanguageModel | None = None) -> Trial:
    """Replay one setting; one that cannot be replayed is returned with the reason.

    Drafting takes what ``cost`` says for a drafter of that name, or else what it took now.
    """
    try:
        replay = Replay(trace, preset, draft_model)
    except (SpecError, ValueError) as error:
        return Trial(preset, refused=str(error))
    drafter = replay.engine.parts.drafter
    bill = None if cost is None else _Bill(cost, "" if drafter is None else drafter.name)
    if bill is not None:
        replay.engine.listen(bill)
    request = replay.run()
    stats = request.choices[0].stats
    speedup = None if bill is None or not bill.steps else bill.plain / bill.steps
    return Trial(preset, stats.target_calls, stats.emitted_tokens, stats.draft_tokens, stats.accepted_tokens, speedup)


def sweep(
    trace: Trace, presets: Sequence[str], cost: StepCost | None = None, draft_model: LanguageModel | None = None
) -> Iterator[Trial]:
    """The trials of all ``presets``, in their order, as they are done."""
    for preset in presets:
        yield trial(trace, preset, cost, draft_model)


def load_cost(path: str | Path) -> StepCost:
    """A step cost from a JSON file: one by itself, or under the key "cost" of a profile.

    Raises ``ConfigError`` for a file that cannot be read or holds none.
    """
    name = f"cost file {str(path)!r}"
    try:
        data = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{name} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise ConfigError(f"{name} is not JSON", why=str(error)) from None
    if isinstance(data, dict) and isinstance(data.get("cost"), dict):
        data = data["cost"]
    try:
        return StepCost.from_dict(data)
    except ConfigError as error:
        raise ConfigError(
            f"{name} holds no step cost", why=str(error), hint="Measure one with outrider tune."
        ) from None
