"""Models: what a name means, where the files come from, where they are kept.

:func:`fetch` brings a model here, :func:`locate` says where one is.
"""

from __future__ import annotations

from outrider.pull.catalog import DEFAULT, Entry
from outrider.pull.obtain import fetch, locate
from outrider.pull.store import ModelFolder, entries, home

__all__ = ["DEFAULT", "Entry", "ModelFolder", "entries", "fetch", "home", "locate"]
