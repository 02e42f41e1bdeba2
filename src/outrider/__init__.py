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
    "IncompatibleParts": "outrider.errors",
    "ModelError": "outrider.errors",
    "PullError": "outrider.errors",
    "RequestError": "outrider.errors",
    "SpecError": "outrider.errors",
}

# The same names once more, for type checkers and editors, which do not run __getattr__.
if TYPE_CHECKING:
    from outrider.errors import CacheFull as CacheFull
    from outrider.errors import ConfigError as ConfigError
    from outrider.errors import IncompatibleParts as IncompatibleParts
    from outrider.errors import ModelError as ModelError
    from outrider.errors import PullError as PullError
    from outrider.errors import RequestError as RequestError
    from outrider.errors import SpecError as SpecError

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
