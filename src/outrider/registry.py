"""Presets by name: found lazily, suggested when misspelt, combined with ``|`` and ``+``."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from outrider.errors import ConfigError, nearest
from outrider.parts import Parts
from outrider.types import Guarantee

Build = Callable[..., Parts]

_PART_NAMES = ("drafter", "policy", "verifier", "law")

SETTING_ALIASES = {
    "num_speculative_tokens": "depth",
    "num_assistant_tokens": "depth",
    "max_draft_len": "depth",
    "draft_max": "depth",
    "gamma": "depth",
    "prompt_lookup_num_tokens": "depth",
    "max_matching_ngram_size": "max_ngram",
    "prompt_lookup_max": "max_ngram",
    "prompt_lookup_min": "min_ngram",
    "assistant_confidence_threshold": "threshold",
    "draft_p_min": "threshold",
}
"""Names of the same settings elsewhere, accepted where a preset has the setting."""


@dataclass(frozen=True)
class Preset:
    """A registered way of decoding. ``build(**settings)`` makes fresh ``Parts``."""

    name: str
    build: Build
    paper: str
    trained: bool
    aliases: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    """What a user must bring: "draft_model", "datastore", ..."""
    wraps: str | None = None
    """The setting that names what it is built of, a preset or a combination, whose needs are its own."""

    @property
    def summary(self) -> str:
        """First sentence of the preset's docstring."""
        return " ".join((inspect.getdoc(self.build) or "").split("\n\n")[0].split())

    @property
    def guarantee(self) -> Guarantee:
        return self.build().guarantee

    @property
    def settings(self) -> dict[str, Any]:
        """Settings and their defaults."""
        return {name: p.default for name, p in inspect.signature(self.build).parameters.items()}

    def as_dict(self) -> dict[str, Any]:
        """What ``outrider presets --json`` prints."""
        return {
            "name": self.name,
            "paper": self.paper,
            "guarantee": str(self.guarantee),
            "needs": list(self.needs),
            "trained": self.trained,
            "summary": self.summary,
        }


class Registry:
    """Name -> preset. Modules of ``outrider.presets`` and plug-ins are imported at the first question."""

    def __init__(self) -> None:
        self._presets: dict[str, Preset] = {}
        self._aliases: dict[str, str] = {}
        self._loaded = False

    def add(self, preset: Preset) -> None:
        """Register; a name that is taken is an error, not a replacement."""
        for name in (preset.name, *preset.aliases):
            if name in self._presets or name in self._aliases:
                raise ConfigError(f"preset {name!r} is registered twice", hint="Choose another name.")
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", preset.name):
            raise ConfigError(f"preset name {preset.name!r}", hint="Use lower-case words joined by hyphens.")
        self._presets[preset.name] = preset
        self._aliases.update(dict.fromkeys(preset.aliases, preset.name))

    def get(self, name: str) -> Preset:
        self.load()
        name = self._aliases.get(name, name)
        if name not in self._presets:
            known = {*self._presets, *self._aliases}
            raise ConfigError(f"unknown preset {name!r}", hint=f"{nearest(name, known)} See `outrider presets`.")
        return self._presets[name]

    def all(self) -> list[Preset]:
        self.load()
        return [self._presets[name] for name in sorted(self._presets)]

    def load(self) -> None:
        """Import the built-in presets and installed plug-ins (entry points ``outrider.plugins``), once."""
        if self._loaded:
            return
        self._loaded = True
        import outrider.presets as package

        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
        for point in entry_points(group="outrider.plugins"):
            point.load()

    def load_file(self, path: str | Path) -> None:
        """Import a plug-in from one file outside the package."""
        path = Path(path)
        if not path.is_file():
            raise ConfigError(f"plug-in file {str(path)!r} does not exist", hint="Give the path of a .py file.")
        self.load()
        spec = importlib.util.spec_from_file_location(f"outrider_plugin_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


REGISTRY = Registry()


def register(
    name: str,
    *,
    paper: str = "",
    trained: bool = False,
    aliases: tuple[str, ...] = (),
    needs: tuple[str, ...] = (),
    wraps: str | None = None,
) -> Callable[[Build], Build]:
    """Decorator: make a function that returns ``Parts`` a preset. Its docstring is the method's page, its
    parameters are the preset's settings, ``paper`` an arXiv number or an address."""

    def add(build: Build) -> Build:
        REGISTRY.add(Preset(name, build, paper, trained, aliases, needs, wraps))
        return build

    return add


def list_presets() -> list[str]:
    """Names of all presets, sorted."""
    return [preset.name for preset in REGISTRY.all()]


def preset(spec: str, **overrides: Any) -> Parts:
    """Fresh ``Parts`` from ``"name"``, ``"name(setting=value)"``, ``"a|b"`` (priority) or ``"a+b"`` (merge).

    ``overrides`` are the preset's settings, or whole parts: ``drafter``, ``policy``, ``verifier``, ``law``.
    ``+`` binds tighter than ``|``. Raises ``ConfigError`` naming an unknown preset or setting and the nearest known.
    """
    terms = _split(spec, "|")
    if len(terms) > 1 or len(_split(spec, "+")) > 1:
        whole = None
        for term in terms:
            merged = None
            for name in _split(term, "+"):
                one = _single(name, {})
                merged = one if merged is None else merged + one
            assert merged is not None
            whole = merged if whole is None else whole | merged
        assert whole is not None
        strange = [name for name in overrides if name not in _PART_NAMES]
        if strange:
            raise ConfigError(
                f"setting {strange[0]!r} for the combination {spec!r}",
                why="each part of it has its own settings",
                hint=f'Write it inside, for example "{_split(terms[0], "+")[0]}({strange[0]}=...)".',
            )
        return whole.with_(**overrides)
    return _single(spec, overrides)


def needs(spec: str) -> dict[str, str]:
    """What a user must bring for the presets named in ``spec``, each with the first preset that wants it. Raises
    ``ConfigError`` for an unknown one."""
    wanted: dict[str, str] = {}
    for text in (name for term in _split(spec, "|") for name in _split(term, "+")):
        found, settings = _read(text)
        for need in found.needs:
            wanted.setdefault(need, found.name)
        inner = settings.get(found.wraps, found.settings[found.wraps]) if found.wraps else None
        if isinstance(inner, str):
            wanted = needs(inner) | wanted
    return wanted


def _read(text: str) -> tuple[Preset, dict[str, Any]]:
    """The preset of ``name(setting=value)`` and its settings as written."""
    match = re.fullmatch(r"\s*([A-Za-z0-9_-]+)\s*(?:\((.*)\))?\s*", text, re.DOTALL)
    if match is None:
        raise ConfigError(f"preset {text!r}", hint="Write name, name(setting=value), a|b or a+b.")
    name, inside = match.groups()
    return REGISTRY.get(name), _settings(text, inside or "")


def _single(text: str, overrides: dict[str, Any]) -> Parts:
    found, settings = _read(text)
    settings |= overrides
    parts = {key: settings.pop(key) for key in _PART_NAMES if key in settings}
    known = found.settings
    resolved: dict[str, Any] = {}
    for key, value in settings.items():
        written, key = key, key if key in known else SETTING_ALIASES.get(key, key)
        if key not in known:
            raise ConfigError(f"preset {found.name!r} has no setting {written!r}", hint=nearest(key, known))
        if key in resolved:
            raise ConfigError(f"{written!r} is another name for {key!r}, which is given too", hint="Give one of them.")
        resolved[key] = value
    built = found.build(**resolved)
    return built.with_(**({"name": found.name} | parts))


def _settings(text: str, inside: str) -> dict[str, Any]:
    """``depth=4, structure=top-k`` as a dict; values are Python literals, bare words are strings."""
    inside = re.sub(r"(?<==)\s*(?!True\b|False\b|None\b)([A-Za-z_][\w-]*)\s*(?=,|$)", r"'\1'", inside)
    try:
        call = ast.parse(f"f({inside})", mode="eval").body
        assert isinstance(call, ast.Call)
        assert not call.args
        return {str(kw.arg): ast.literal_eval(kw.value) for kw in call.keywords}
    except (SyntaxError, ValueError, AssertionError):
        raise ConfigError(f"settings of {text!r}", hint="Write name(setting=value, other=value).") from None


def _split(text: str, sign: str) -> list[str]:
    """Split at ``sign`` outside parentheses."""
    terms, depth = [""], 0
    for char in text:
        depth += {"(": 1, ")": -1}.get(char, 0)
        if char == sign and depth == 0:
            terms.append("")
        else:
            terms[-1] += char
    return terms
