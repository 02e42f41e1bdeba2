"""Self-contained HTML pages: one file each, no script or style from elsewhere, readable without a network.

Templates are Jinja files beside this one and extend ``base.html``; everything put into them is escaped.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment


@lru_cache(maxsize=1)
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("outrider", "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, **values: Any) -> str:
    """The page of ``template`` ("bench.html"), filled. ``title`` is required; ``provenance`` (a dict as in
    ``Provenance.as_dict``) fills the foot of the page. A value that is missing raises."""
    return _environment().get_template(template).render(**values)
