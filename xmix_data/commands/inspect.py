"""``xmix inspect``: what a beton holds."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from xmix_data.commands.answer import Answer
from xmix_data.commands.arguments import add_json
from xmix_data.remote import name_of, path_or_url, read_bytes, state_of, with_name

__all__ = ["EXAMPLES", "HELP", "add_arguments", "describe", "facts_of", "run"]

HELP = "say what a beton, or a set of shards, holds and lacks"
EXAMPLES = (
    "xmix inspect source.beton --verify",
    "xmix inspect s3://betons/source.beton",
    "xmix inspect source.beton --json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    add_json(parser)
    parser.add_argument(
        "file",
        metavar="FILE.beton",
        type=path_or_url,
        help="path or URL of a beton, or of a set: what was converted with --shard",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="decode every JPEG, and compare the content with the hash in the manifest",
    )


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
    facts: dict[str, Any] = {"path": beton.origin}
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
        f"{beton.origin}: {beton.num_samples} images, {len(beton.class_names)} classes, "
        f"{beton.encoding}, {size}, {megabytes:.1f} MB"
    )
    return "; ".join([first, *what_is_missing(beton.manifest or {})])


def run(options: argparse.Namespace) -> Answer:
    """Open the beton, verify it if asked, and say what it holds; or what a set of shards lacks."""
    from xmix_data.beton import Beton, shards_of

    place = options.file
    if not _is_there(place):
        sets = shards_of(place)
        if sets:
            return _inspect_sets(place, sets, verify=options.verify)
    beton = Beton(place)
    if options.verify:
        beton.verify(progress=True)
    # Without a manifest nothing says what was written.
    facts = facts_of(beton, verified=options.verify and beton.manifest is not None)
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
        lines.append(_verified(beton))
    return Answer(facts, lines)


def _verified(beton: Any) -> str:
    """Say what `Beton.verify` has found sound, and what it could not look at."""
    if beton.manifest is not None:
        return "verified: every image decodes, and the content is what was written"
    from xmix_data.beton.layout import JPG, RAW

    jpegs, raw = (int((beton.modes == mode).sum()) for mode in (JPG, RAW))
    decode = f", and {jpegs} JPEGs decode" if jpegs else ""
    unknown = f", and the pixels of {raw} raw images may be any" if raw else ""
    return (
        f"verified in part: the structure is sound{decode}; without a manifest the content cannot "
        f"be compared with what was written{unknown}"
    )


def _is_there(place: Path | str) -> bool:
    try:
        return place.exists() if isinstance(place, Path) else bool(state_of(place))
    except FileNotFoundError:
        return False


def _inspect_sets(place: Path | str, sets: Any, *, verify: bool) -> Answer:
    """Say of each set of shards what it holds and lacks, from the manifests alone."""
    from xmix_data.beton import Beton, manifest_path, parse_manifest, shard_name

    documents, lines, problems = [], [], []
    for count, shards in sets.items():
        manifests = {}
        for index, shard in shards.items():
            path = manifest_path(shard)
            manifests[index] = parse_manifest(read_bytes(path_or_url(path)), str(path))
            if verify:
                Beton(shard).verify(progress=True)
        missing = [index for index in range(count) if index not in manifests]
        facts = list(manifests.values())
        totals = {key: sum(m[key] for m in facts) for key in ("num_samples", "byte_length")}
        made_by = {(m["shard"] or {}).get("set") for m in facts}
        skipped = sum(len(m.get("skipped", [])) for m in facts)
        documents.append(
            {
                "path": str(place),
                "shards": count,
                "missing": missing,
                **totals,
                "skipped": skipped,
                "fingerprints": [m["content_hash"] for m in facts],
                "one_conversion": len(made_by) <= 1,
                "verified": verify,
            }
        )
        lines.append(
            f"{place}: {len(facts)} of {count} shards, {totals['num_samples']} images, "
            f"{totals['byte_length'] / 1e6:.1f} MB"
            + (f", {skipped} images skipped" if skipped else "")
        )
        if missing:
            shown = ", ".join(f"{index}/{count}" for index in missing[:_SHOWN])
            more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
            names = [shard_name(name_of(place), index, count) for index in missing]
            lines += [f"missing: {with_name(place, name)}" for name in names]
            problems.append(f"{place}: lacks shards; run `xmix convert` with --shard {shown}{more}")
        if len(made_by) > 1:
            problems.append(
                f"{place}: its {count} shards are of {len(made_by)} conversions, of other images "
                "or with other options; convert all of them anew"
            )
    if len(sets) > 1:
        problems.append(
            f"{place}: is the name of {len(sets)} sets; remove the shards of all but one"
        )
    document = documents[0] if len(documents) == 1 else documents
    return Answer(document, lines, "; ".join(problems))


_SHOWN = 8
"""Most shards that a message names."""
