"""``xmix inspect``: what a beton holds."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from xmix_data.commands.answer import Answer
from xmix_data.commands.arguments import add_json

__all__ = ["EXAMPLES", "HELP", "add_arguments", "describe", "facts_of", "run"]

HELP = "say what a beton holds"
EXAMPLES = (
    "xmix inspect source.beton --verify",
    "xmix inspect source.beton --json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    add_json(parser)
    parser.add_argument("file", metavar="FILE.beton", type=Path)
    parser.add_argument("--verify", action="store_true", help="check the hash and decode all")


def facts_of(beton: Any, *, verified: bool = False) -> dict[str, Any]:
    """Return what a beton holds as plain values."""
    keys = (
        "num_samples",
        "class_names",
        "class_counts",
        "encoding",
        "image_size",
        "byte_length",
        "page_size",
        "fingerprint",
        "shard",
    )
    facts: dict[str, Any] = {"path": str(beton.path)}
    facts |= {key: getattr(beton, key) for key in keys}
    facts["manifest"] = beton.manifest is not None
    for key, without in (("skipped", []), ("left_out", {}), ("kept", None)):
        facts[key] = (beton.manifest or {}).get(key, without)
    facts["verified"] = verified
    return facts


def describe(beton: Any) -> str:
    """Describe a beton in one line, with what of its source is not in it, counted."""
    from xmix_data.beton.manifest import what_is_missing

    megabytes = beton.byte_length / 1e6
    size = "sizes vary" if beton.image_size is None else f"shorter edge {beton.image_size}"
    first = (
        f"{beton.path}: {beton.num_samples} images, {len(beton.class_names)} classes, "
        f"{beton.encoding}, {size}, {megabytes:.1f} MB"
    )
    return "; ".join([first, *what_is_missing(beton.manifest or {})])


def run(options: argparse.Namespace) -> Answer:
    """Open the beton, verify it if asked, and say what it holds."""
    from xmix_data.beton import Beton

    beton = Beton(options.file)
    if options.verify:
        beton.verify(progress=True)
    facts = facts_of(beton, verified=options.verify)
    counts = beton.class_counts
    lines = [
        describe(beton),
        f"images a class: {min(counts)} to {max(counts)}",
        f"fingerprint: {beton.fingerprint}",
    ]
    if beton.manifest is None:
        lines.append(
            "no manifest: written elsewhere, or its .json was left behind; classes are numbers"
        )
    lines += [f"skipped at conversion: {s['path']}: {s['reason']}" for s in facts["skipped"]]
    if options.verify:
        lines.append("verified: every image decodes, and the content is what was written")
    return Answer(facts, lines)
