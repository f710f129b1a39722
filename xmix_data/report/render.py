"""Templates filled in: the one place where values become markup.

Comes in: the name of a file in ``templates``, and what it shows. Goes out: its text. Every value is
escaped, between tags and in attributes alike; a value that a template names and nobody gives is an
error.
"""

from __future__ import annotations

import base64
import functools
import hashlib

from jinja2 import Environment, PackageLoader, StrictUndefined

__all__ = ["render"]


def render(template: str, **shown: object) -> str:
    """Fill in a template."""
    return _templates().get_template(template).render(shown)


@functools.cache
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("xmix_data.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=format, counted=_counted, csp_hash=_csp_hash)
    return environment


def _counted(number: int, one: str, many: str | None = None) -> str:
    """Put a number before its noun, in the singular or plural."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _csp_hash(script: str) -> str:
    """Hash a script, as a Content-Security-Policy names the one it allows."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
