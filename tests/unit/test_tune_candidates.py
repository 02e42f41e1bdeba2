"""What is tried, what is refused, and what the choice is called elsewhere."""

from __future__ import annotations

import json
import re
import shlex
from types import SimpleNamespace
from typing import Any

import pytest

from outrider import SamplingParams, list_presets, preset
from outrider.errors import ConfigError, IncompatibleParts
from outrider.registry import REGISTRY, register
from outrider.testing.world import tiny_world
from outrider.tune import candidates as module
from outrider.tune.candidates import Effort, candidates, grid
from outrider.tune.export import ENGINES, export

GREEDY = SamplingParams(max_tokens=8)


@pytest.fixture
def target():
    return tiny_world().target


@pytest.mark.parametrize("draft_model", [False, True])
def test_every_setting_of_the_grid_can_be_built(target, draft_model):
    specs = grid(draft_model)
    assert len(specs) == len(set(specs))
    assert len(specs) > (45 if draft_model else 30)
    found, dropped = candidates(None, target, draft_model, GREEDY)
    assert [one.name for one in found] + [one.name for one in dropped] != []
    assert {one.name for one in found} | {one.name for one in dropped} == set(specs)
    for one in found:
        assert one.nodes == preset(one.name).policy.plan([]).nodes
    methods = {re.split(r"[(|]", name)[0] for name in specs}
    wanted = {"pld", "sam", "token-recycling"} | ({"spec-decode"} if draft_model else set())
    assert wanted <= methods
    assert not methods & {"plain", "auto"}


def test_the_grid_knows_every_registered_preset(target):
    """A preset without a grid of its own is tried as it is, unless it adapts by itself or needs what is not there."""
    found, dropped = candidates(None, target, True, GREEDY)
    named = {part for one in [*found, *dropped] for part in re.findall(r"[a-z][a-z-]+(?=\(|$|\|)", one.name)}
    for name in list_presets():
        if name not in ("plain", "auto") and set(REGISTRY.get(name).needs) <= {"draft_model"}:
            assert name in named


def test_efforts(target):
    names = (
        "pld",
        "spec-decode",
        "token-recycling(nodes=8)",
        "sam|spec-decode",
        "sam|token-recycling(nodes=8)",
        "spec-decode(threshold=0.4)",
        "spec-decode(structure=top-k)",
    )
    found, _ = candidates(names, target, True, GREEDY)
    efforts = [one.effort for one in found]
    drafting = [Effort.DRAFT_MODEL, Effort.DRAFT_MODEL]
    assert efforts == [Effort.LOOK_UP, Effort.CHAIN, Effort.LIVE, Effort.DRAFT_MODEL, Effort.LIVE, *drafting]
    assert [one.fallback for one in found[3:5]] == ["spec-decode", "token-recycling(nodes=8)"]
    assert [one.combined for one in found] == [False, False, False, True, True, False, False]
    assert found[1].depth == 5
    sampled, _ = candidates(("spec-decode",), target, True, SamplingParams(temperature=1.0))
    assert sampled[0].effort is Effort.LIVE


def test_targets_that_cannot_branch_have_chains_only(target):
    narrow: Any = SimpleNamespace(branching=False, name="recurrent")
    found, dropped = candidates(None, narrow, False, GREEDY)
    assert {one.name.split("(")[0] for one in found} == {"pld", "sam"}
    trees = [one for one in dropped if "recycling" in one.name]
    assert trees
    assert all("recurrent" in one.reason for one in trees)
    with pytest.raises(IncompatibleParts, match="recurrent"):
        candidates(("token-recycling",), narrow, False, GREEDY)


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (("auto",), "stands for the result"),
        (("spec-decode",), "--draft-model"),
        (("smartspec",), "adapts its lengths by itself"),
        (("nope",), "unknown preset 'nope'"),
        (("pld(deep=3)",), "no setting 'deep'"),
        (("plain",), "no candidates"),
        ((), "no candidates"),
    ],
)
def test_what_is_refused(target, names, match):
    with pytest.raises(ConfigError, match=match):
        candidates(names, target, False, GREEDY)


def test_a_preset_that_changes_the_law_is_never_chosen(target, monkeypatch):
    from outrider.types import Guarantee
    from outrider.verify.match import Match

    class Loose(Match):
        guarantee = Guarantee.RELAXED

    monkeypatch.setattr(REGISTRY, "_presets", dict(REGISTRY._presets))

    @register("loose")
    def loose():
        """Nearly right."""
        return preset("pld").with_(verifier=Loose())

    with pytest.raises(ConfigError, match="changes the distribution"):
        candidates(("loose",), target, False, GREEDY)
    _, dropped = candidates(None, target, False, GREEDY)
    assert "loose" in [one.name for one in dropped]


def test_a_name_given_twice_is_tried_once(target):
    assert len(candidates(("pld", "pld", "plain"), target, False, GREEDY)[0]) == 1


# -- the names of other engines ---------------------------------------------------------------------------------


def flags(engine: str, spec: str, draft_model: str | None = None) -> list[str]:
    return shlex.split(export(engine, spec, draft_model).flags)


def test_vllm():
    words = flags("vllm", "pld(depth=7,max_ngram=4,min_ngram=2)")
    assert words[0] == "--speculative-config"
    assert json.loads(words[1]) == {
        "method": "ngram",
        "num_speculative_tokens": 7,
        "prompt_lookup_max": 4,
        "prompt_lookup_min": 2,
    }
    drafting = json.loads(flags("vllm", "spec-decode(depth=3)", "org/small")[1])
    assert drafting == {"method": "draft_model", "model": "org/small", "num_speculative_tokens": 3}
    suffix = export("vllm", "sam(depth=16,alpha=2)")
    assert json.loads(shlex.split(suffix.flags)[1])["suffix_decoding_max_spec_factor"] == 2
    assert "nearest" in suffix.notes[0]


def test_sglang():
    words = flags("sglang", "spec-decode(depth=4)", "small model")
    assert dict(zip(words[::2], words[1::2], strict=True)) == {
        "--speculative-algorithm": "STANDALONE",
        "--speculative-draft-model-path": "small model",
        "--speculative-num-steps": "4",
        "--speculative-eagle-topk": "1",
        "--speculative-num-draft-tokens": "5",
    }
    assert flags("sglang", "pld(depth=6)")[:4] == [
        "--speculative-algorithm",
        "NGRAM",
        "--speculative-num-draft-tokens",
        "7",
    ]


def test_llama_cpp():
    words = flags("llama.cpp", "pld(depth=9,max_ngram=3)")
    assert dict(zip(words[::2], words[1::2], strict=True)) == {
        "--spec-type": "ngram-simple",
        "--spec-ngram-size-n": "3",
        "--spec-ngram-size-m": "9",
        "--draft-max": "9",
    }
    assert "3 tokens alone" in export("llama.cpp", "pld").notes[0]
    words = flags("llama.cpp", "spec-decode(depth=5,threshold=0.4)", "small.gguf")
    assert words[:4] == ["-md", "small.gguf", "--draft-max", "5"]
    assert words[-2:] == ["--draft-p-min", "0.4"]


def test_plain_needs_no_flags():
    for engine in ENGINES:
        assert export(engine, "plain").flags == ""


@pytest.mark.parametrize(
    ("engine", "spec"),
    [
        ("vllm", "token-recycling"),
        ("vllm", "sam|pld"),
        ("vllm", "spec-decode(structure=top-k)"),
        ("sglang", "sam"),
        ("llama.cpp", "sam"),
        ("llama.cpp", "spec-decode(structure=static)"),
    ],
)
def test_what_has_no_equivalent_is_said(engine, spec):
    with pytest.raises(ConfigError, match=f"{re.escape(engine)} has no equivalent"):
        export(engine, spec, "d")


def test_an_unknown_engine_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match=r"Did you mean 'vllm'"):
        export("vlm", "pld")


def test_the_grid_is_where_its_numbers_are():
    assert f"sam(min_match={module.SAM_MATCHES[0]},depth=4,alpha=4)" in grid(False)
