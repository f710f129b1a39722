"""How a pairing was made, as the pairing and its betons tell.

Comes in: a pairing and the betons given for it. Goes out: a `Provenance`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from xmix_data.beton import Domain
from xmix_data.pairing import Pairing
from xmix_data.version import VERSION

__all__ = ["Provenance", "provenance_of"]


@dataclass(frozen=True)
class Provenance:
    """Where a pairing comes from."""

    changed: Sequence[str]
    """``"target"`` or ``"source"``, where the betons are not those that were paired."""
    facts: Sequence[tuple[str, str]]
    """Name and value."""


def provenance_of(
    pairing: Pairing, target: Domain, source: Domain, alpha: float, beta: float
) -> Provenance:
    """List what is recorded, what target and source have in common first."""
    facts: list[tuple[str, Any]] = []
    changed = []
    both = {key: value for key, value in pairing.target.items() if pairing.source.get(key) == value}
    facts += [item for item in both.items() if item[0] != "domains"]
    for kind, recorded, domain in (
        ("target", pairing.target, target),
        ("source", pairing.source, source),
    ):
        facts += [
            (f"{kind} {key}", value)
            for key, value in recorded.items()
            if key != "domains" and key not in both
        ]
        given = domain.provenance
        facts += [
            (f"{kind} beton", f"{file} ({fingerprint})")
            for part in given
            for file, fingerprint in zip(part["files"], part["fingerprints"], strict=True)
        ]
        known = recorded.get("domains", [])
        if known and [p["fingerprints"] for p in known] != [p["fingerprints"] for p in given]:
            changed.append(kind)
            facts.append((f"{kind} when paired", [f for part in known for f in part["files"]]))
    facts += [*pairing.options.items(), ("alpha", f"{alpha:g}"), ("beta", f"{beta:g}")]
    facts.append(("written by", f"xmix_data {VERSION}"))
    told = [(name.replace("_", " "), _text(value)) for name, value in facts if value is not None]
    return Provenance(changed, told)


def _text(value: Any) -> str:
    """Put a value into words, as a reader expects it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(_text, value)) if isinstance(value, (list, tuple)) else str(value)
