"""Speculative decoding over unmodified transformers models.

The engine knows four verbs: *propose* a few tokens cheaply, *forward* them through the model in one call,
*verify* which of them the model would have produced, *commit* those. Everything else is a part.

Names below are imported when they are first used, so that ``import outrider`` stays fast and loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# public name -> the module that defines it
_EXPORTS: dict[str, str] = {
    "CacheFull": "outrider.errors",
    "ConfigError": "outrider.errors",
    "Drafter": "outrider.draft.base",
    "Engine": "outrider.run.engine",
    "IncompatibleParts": "outrider.errors",
    "LLM": "outrider.run.llm",
    "Limits": "outrider.run.scheduler",
    "ModelError": "outrider.errors",
    "Parts": "outrider.parts",
    "Policy": "outrider.policy.base",
    "PullError": "outrider.errors",
    "RequestError": "outrider.errors",
    "RequestOutput": "outrider.run.request",
    "RowProcessor": "outrider.processors",
    "SamplingParams": "outrider.params",
    "SpecError": "outrider.errors",
    "Stats": "outrider.run.request",
    "StreamEvent": "outrider.run.llm",
    "Structure": "outrider.tree.grow",
    "Verifier": "outrider.verify.base",
    "list_presets": "outrider.registry",
    "preset": "outrider.registry",
    "register": "outrider.registry",
}

# The same names once more, for type checkers and editors, which do not run __getattr__.
if TYPE_CHECKING:
    from outrider.draft.base import Drafter as Drafter
    from outrider.errors import CacheFull as CacheFull
    from outrider.errors import ConfigError as ConfigError
    from outrider.errors import IncompatibleParts as IncompatibleParts
    from outrider.errors import ModelError as ModelError
    from outrider.errors import PullError as PullError
    from outrider.errors import RequestError as RequestError
    from outrider.errors import SpecError as SpecError
    from outrider.params import SamplingParams as SamplingParams
    from outrider.parts import Parts as Parts
    from outrider.policy.base import Policy as Policy
    from outrider.processors import RowProcessor as RowProcessor
    from outrider.registry import list_presets as list_presets
    from outrider.registry import preset as preset
    from outrider.registry import register as register
    from outrider.run.engine import Engine as Engine
    from outrider.run.llm import LLM as LLM
    from outrider.run.llm import StreamEvent as StreamEvent
    from outrider.run.request import RequestOutput as RequestOutput
    from outrider.run.request import Stats as Stats
    from outrider.run.scheduler import Limits as Limits
    from outrider.tree.grow import Structure as Structure
    from outrider.verify.base import Verifier as Verifier

__all__ = sorted([*_EXPORTS, "__version__"])


def __getattr__(name: str) -> Any:
    """Import a public name on first use and keep it."""
    module = _EXPORTS.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
