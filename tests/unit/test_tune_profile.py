"""Profiles: written and read, matched and refused, set aside when broken, and used by ``auto``."""

from __future__ import annotations

import json
import os

import pytest
import torch
from tune_world import a_profile, forecast

from outrider import LLM, SamplingParams
from outrider.errors import ModelError
from outrider.model.load import wrap
from outrider.model.table import TableModel
from outrider.policy.goodput import Goodput
from outrider.testing.tiny import tiny_model, tiny_tokenizer
from outrider.tune import lookup, profile
from outrider.tune.profile import Profile, Unreadable


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("OUTRIDER_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def model():
    return wrap(tiny_model(dtype=torch.float32), "tiny")


def fitting(model, **changes) -> Profile:
    facts = {"family": model.family, "parameters": sum(p.numel() for p in model.hf.parameters())}
    return a_profile(**{"key": profile.key_of(model), "model": "tiny", **facts, **changes})


def around(one: Profile, **changes):
    return one.key.model_copy(update={"around": one.key.around.model_copy(update=changes)})


# -- files ------------------------------------------------------------------------------------------------------


def test_round_trip(home):
    one = a_profile()
    path = profile.save(one)
    assert path == one.file
    assert path.parent == home / ".profiles"
    assert path.name.startswith("some-model-")
    assert profile.read(path) == one
    assert [found for _, found in profile.profiles()] == [one]
    assert one.step_cost.forward.seconds(1, 1, 0) == 0.05
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]  # nothing half-written beside it


def test_the_same_key_replaces_and_another_does_not():
    one = a_profile()
    profile.save(one)
    profile.save(a_profile(preset="pld"))
    assert [found.preset for _, found in profile.profiles()] == ["pld"]
    profile.save(a_profile(key=around(one, threads=2)))
    assert len(profile.files()) == 2


@pytest.mark.parametrize("name", ["/some/where/model", "org/model", "..", "a b:c"])
def test_any_model_name_makes_a_file_name(name, home):
    path = profile.save(a_profile(model=name))
    assert path.parent == home / ".profiles"
    assert profile.files() == [path]


def test_a_write_that_fails_leaves_the_old_profile_whole(monkeypatch):
    one = a_profile()
    path = profile.save(one)

    def refuse(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(KeyboardInterrupt):
        profile.save(a_profile(preset="pld"))
    assert profile.read(path) == one
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_folder_that_cannot_be_written_is_named(monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(profile.tempfile, "TemporaryFile", refuse)
    with pytest.raises(ModelError, match=r"Permission denied.*OUTRIDER_HOME"):
        profile.prepare()


def test_a_home_that_is_a_file_is_named(home):
    home.write_text("not a folder")
    with pytest.raises(ModelError, match=r"profiles.*cannot be written.*OUTRIDER_HOME"):
        profile.prepare()


def test_the_log_of_predictions_grows(home):
    profile.log({"a": 1})
    path = profile.log({"b": 2})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"a": 1}, {"b": 2}]
    assert profile.files() == []  # it is no profile


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[]", "whole"),
        ('{"schema_version": 0}', "version 0"),
        ('{"schema_version": 99}', "version 99"),
        ('{"preset": "sam"}', "key"),
    ],
)
def test_what_is_no_profile(tmp_path, text, reason):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(Unreadable, match=reason) as caught:
        profile.read(path)
    assert caught.value.older is ("version" in reason)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"cost": {"curve": {}, "drafts": {}, "host": 0}}, "cost"),
        ({"cost": 7}, "cost"),
        ({"preset": None}, "preset"),
        ({"ranking": [{"preset": "sam"}]}, "ranking.0"),
        ({"surprise": 1}, "surprise"),
        ({"key": {"weights": "abc"}}, "key"),
    ],
)
def test_a_damaged_profile_says_where(tmp_path, change, where):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(a_profile().model_dump(mode="json") | change))
    with pytest.raises(Unreadable, match=where):
        profile.read(path)


def test_a_missing_file_is_unreadable(tmp_path):
    with pytest.raises(Unreadable, match="No such file"):
        profile.read(tmp_path / "none.json")


# -- matching -----------------------------------------------------------------------------------------------------


def test_without_profiles_nothing_is_said_and_no_weights_are_read(model, monkeypatch):
    monkeypatch.setattr(profile, "key_of", lambda *_: pytest.fail("weights were read"))
    assert lookup.tuned(model) == lookup.Tuned()
    profile.prepare()
    assert lookup.tuned(model) == lookup.Tuned()


def test_a_fitting_profile_is_taken(model):
    profile.save(a_profile())
    profile.save(fitting(model))
    found = lookup.tuned(model)
    assert found.profile == fitting(model)
    assert found.notes == ()
    assert found.parts is not None
    assert found.parts.name == "sam(min_match=2)"
    assert isinstance(found.parts.policy, Goodput)
    assert found.parts.policy.known == fitting(model).step_cost


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"threads": 7}, "with 7 threads"),
        ({"threads": 1000, "device": "cuda"}, "on cuda"),
        ({"dtype": "float16"}, "in float16"),
        ({"cpu": "another"}, r"another machine \(another"),
        ({"cores": 1000}, "another machine"),
        ({"gpu": "some gpu"}, "another machine"),
        ({"draft_dtype": "float32"}, "with a draft model, and there is none"),
    ],
)
def test_what_is_different_is_said_in_one_line(model, change, word, monkeypatch):
    monkeypatch.setattr(profile, "facts", lambda *_: pytest.fail("weights were read for nothing"))
    key = around(
        a_profile(
            key=profile.Key(weights="x", quantisation="none", draft_weights="", around=profile.around(model, None))
        ),
        **change,
    )
    profile.save(fitting_without_hash(model, key))
    found = lookup.tuned(model)
    assert found.profile is None
    assert found.parts is None
    (note,) = found.notes
    assert "\n" not in note
    assert "outrider tune" in note
    import re

    assert re.search(word, note)


def fitting_without_hash(model, key) -> Profile:
    size = sum(p.numel() for p in model.hf.parameters())
    return a_profile(key=key, model="tiny", family=model.family, parameters=size)


def test_other_weights_are_another_model(model):
    one = fitting(model)
    profile.save(one.model_copy(update={"key": one.key.model_copy(update={"weights": "other"})}))
    (note,) = lookup.tuned(model).notes
    assert "other weights" in note


def test_only_other_models_have_profiles(model):
    profile.save(a_profile(model="bigger"))
    (note,) = lookup.tuned(model).notes
    assert "no tuned profile for this model (there is one for bigger)" in note


def test_a_broken_profile_is_named_and_set_aside_once(model, home):
    profile.save(fitting(model))
    broken = home / ".profiles" / "broken.json"
    broken.write_text("{")
    found = lookup.tuned(model)
    assert found.profile is not None  # the good one still serves
    (note,) = found.notes
    assert "broken.json" in note
    assert "broken.broken" in note
    assert not broken.exists()
    assert (home / ".profiles" / "broken.broken").read_text() == "{"
    assert lookup.tuned(model).notes == ()


def test_an_older_profile_is_left_where_it_is(model, home):
    path = profile.save(fitting(model))
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 0'))
    found = lookup.tuned(model)
    assert found.profile is None
    assert "version 0" in found.notes[0]
    assert path.exists()


def test_a_preset_that_cannot_be_built_is_said(model):
    profile.save(fitting(model, preset="of-a-plug-in"))
    found = lookup.tuned(model)
    assert found.profile is None
    assert "of-a-plug-in" in found.notes[0]


def test_a_profile_that_needs_no_draft_model_serves_with_one(model):
    draft = wrap(tiny_model(dtype=torch.float32, seed=1), "draft")
    profile.save(fitting(model))
    assert lookup.tuned(model, draft).profile is not None
    both = profile.key_of(model, draft)
    profile.save(fitting(model, key=both, preset="spec-decode(depth=3)", draft_model="draft"))
    assert lookup.tuned(model, draft).profile.preset == "spec-decode(depth=3)"
    assert lookup.tuned(model).profile.preset == "sam(min_match=2)"


def test_a_model_without_weights_matches_nothing():
    target = TableModel()
    one = a_profile(key=profile.key_of(target))
    assert one.key.weights == ""
    profile.save(one)
    assert lookup.tuned(target).profile is None


def test_a_newer_choice_without_the_draft_model_replaces_one_with_it(model):
    draft = wrap(tiny_model(dtype=torch.float32, seed=1), "draft")
    both = profile.key_of(model, draft)
    profile.save(fitting(model, key=both, preset="spec-decode(depth=3)", draft_model="draft"))
    profile.save(fitting(model))
    profile.discard(both)
    assert lookup.tuned(model, draft).profile.preset == "sam(min_match=2)"
    profile.discard(both)  # nothing left: no error


# -- auto ---------------------------------------------------------------------------------------------------------


def llm(model, **options):
    return LLM(model, tokenizer=tiny_tokenizer(), **options)


def test_auto_decodes_with_the_tuned_choice(model):
    default = llm(model)
    assert default.tuned == lookup.Tuned()
    profile.save(fitting(model))
    chosen = llm(model)
    assert chosen.tuned.profile.preset == "sam(min_match=2)"
    assert chosen.parts.name == "sam(min_match=2)"
    assert chosen.engine.parts is chosen.parts
    params = SamplingParams(max_tokens=24)
    plain = llm(model, preset="plain").generate("one two one two", params)[0]
    assert chosen.generate("one two one two", params)[0].token_ids == plain.token_ids
    assert llm(model, preset="pld").tuned is None  # other presets are what they say


def test_auto_is_plain_where_plain_was_chosen(model):
    profile.save(fitting(model, preset="plain", speedup=1.0))
    chosen = llm(model)
    assert chosen.parts.drafter is None
    output = chosen.generate("one two one two", SamplingParams(max_tokens=12))[0]
    assert output.stats.draft_tokens == 0


def test_auto_is_the_default_where_no_profile_fits(model):
    profile.save(a_profile())
    chosen = llm(model)
    assert chosen.tuned.profile is None
    assert chosen.parts.name == "auto"
    assert len(chosen.tuned.notes) == 1


def test_forecasts_say_where_they_come_from():
    with pytest.raises(ValueError):
        forecast().model_validate(forecast().model_dump() | {"source": "guess"})
