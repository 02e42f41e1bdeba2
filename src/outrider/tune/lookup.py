"""Which profile ``preset="auto"`` takes for a loaded model, and what to say where there is one that does not fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from outrider.errors import SpecError
from outrider.policy.goodput import Goodput
from outrider.pull import store
from outrider.registry import preset

if TYPE_CHECKING:
    from outrider.model.base import LanguageModel
    from outrider.parts import Parts
    from outrider.tune.profile import Around, Profile

FOLDER = ".profiles"
"""Where profiles are kept, in the cache folder."""
_RETUNE = "`outrider tune` measures again"


@dataclass(frozen=True)
class Tuned:
    """``profile`` fits, or is None; ``parts`` are what it says; ``notes``: a line each on what is not used, and why."""

    profile: Profile | None = None
    parts: Parts | None = None
    notes: tuple[str, ...] = ()


def tuned(target: LanguageModel, draft: LanguageModel | None = None) -> Tuned:
    """The profile of these models on this machine; one that needs no draft model serves with one as well. Weights are
    read for their hash only if some profile could fit."""
    if not (store.home() / FOLDER).is_dir():
        return Tuned()
    from outrider.tune import profile

    found: list[Profile] = []
    notes: list[str] = []
    for path, one in profile.profiles():
        if isinstance(one, profile.Profile):
            found.append(one)
        elif one.older:
            notes.append(f"the tuned profile {path.name} is not used: {one.reason}; {_RETUNE}")
        else:
            aside = profile.set_aside(path)
            where = "ignored" if aside is None else f"set aside as {aside.name}"
            notes.append(f"the tuned profile {path.name} cannot be read ({one.reason}) and was {where}")
    for drafter in (draft, None) if draft is not None else (None,):
        here = profile.around(target, drafter)
        if any(one.key.around == here for one in found):
            key = profile.key_of(target, drafter)
            for one in found:
                if one.key == key and key.weights:  # a model without weights cannot be told from another
                    return _use(one, notes)
    if found:
        notes.append(_unfit(found, target, profile.around(target, draft)))
    return Tuned(notes=tuple(notes))


def _use(profile: Profile, notes: list[str]) -> Tuned:
    try:
        parts = parts_of(profile)
    except SpecError as error:  # a preset of a plug-in that is not loaded
        note = f"the tuned profile is not used: its preset {profile.preset!r} cannot be built ({error})"
        return Tuned(notes=(*notes, note))
    return Tuned(profile, parts, tuple(notes))


def parts_of(profile: Profile) -> Parts:
    """The chosen preset under the policy that is never slower, with the measured costs."""
    parts = preset(profile.preset).with_(name=profile.preset)
    if parts.drafter is None:
        return parts
    return parts.with_(policy=Goodput(parts.policy, profile.step_cost))


def _unfit(found: list[Profile], target: LanguageModel, here: Around) -> str:
    """Why none of them fits, of the nearest."""
    hf = getattr(target, "hf", None)
    size = 0 if hf is None else sum(parameter.numel() for parameter in hf.parameters())
    family = str(getattr(target, "family", type(target).__name__))
    same = [one for one in found if (one.family, one.parameters) == (family, size)]
    if not same:
        names = sorted({one.model for one in found})
        listed = ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
        return f"no tuned profile for this model (there is one for {listed}): `outrider tune` makes one"
    nearest = min(same, key=lambda one: len(_differences(one.key.around, here)))
    differences = _differences(nearest.key.around, here) or ["for other weights"]
    return f"the tuned profile of {nearest.day} is not used: it was made {differences[0]}; {_RETUNE}"


def _differences(there: Around, here: Around) -> list[str]:
    """In words, the weightiest first."""
    found = []
    if there.device != here.device:
        found.append(f"on {there.device}, and this is {here.device}")
    if (there.gpu, there.cpu, there.cores) != (here.gpu, here.cpu, here.cores):
        found.append(f"on another machine ({there.gpu or there.cpu}, {there.cores} cores)")
    if there.dtype != here.dtype:
        found.append(f"in {there.dtype}, and this is {here.dtype}")
    if there.threads != here.threads:
        found.append(f"with {there.threads} thread{'s' * (there.threads != 1)}, and this run has {here.threads}")
    if there.draft_dtype and there.draft_dtype != here.draft_dtype:
        found.append("with another draft model" if here.draft_dtype else "with a draft model, and there is none")
    return found
