"""Redraw every table in README.md from the committed results; ``--check`` says where they differ.

A table stands between ``<!-- table: NAME -->`` and ``<!-- end of table -->``.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end of table -->)", re.S)


def result(name: str) -> dict[str, Any]:
    """One result file."""
    document: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return document


def machine_line(document: dict[str, Any], measured: str) -> str:
    """The machine, versions and n under a table."""
    machine, setup = document["machine"], document["configuration"]
    versions = machine["versions"]
    packages = ", ".join(
        f"{name} {versions[name]}"
        for name in ("torch", "ffcv", "numba", "pillow")
        if versions[name]
    )
    return (
        f"{machine['cpu']}, {machine['cores']} cores, no GPU used; {setup['images']} photographs, "
        f"{measured}; {machine['system']}, {packages}."
    )


def conversion() -> str:
    """Encodings of a beton: size and time."""
    document = result("first_steps")
    lines = ["| encoding | KB an image | images/s converted |", "|---|---|---|"]
    for name, row in document["conversion"].items():
        kilobytes = row["bytes_per_image"] / 1000
        lines.append(f"| `{name}` | {kilobytes:.1f} | {row['images_per_s']:.0f} |")
    line = machine_line(document, "each encoding once, the start of its workers included")
    return "\n".join(lines) + f"\n\n{line}\n"


def loading() -> str:
    """What mixing costs the loader on the CPU."""
    document = result("first_steps")
    lines = ["| loader | samples/s, median | times plain loading |", "|---|---|---|"]
    for name, row in document["rates"].items():
        spread = f"{min(row['samples_per_s']):.0f}-{max(row['samples_per_s']):.0f}"
        lines.append(f"| {name} | {row['median']:.0f} ({spread}) | {row['ratio_to_base']:.2f} |")
    rounds = document["configuration"]["rounds"]
    line = machine_line(document, f"median and range of n = {rounds} interleaved rounds")
    return "\n".join(lines) + f"\n\n{line}\n"


TABLES: dict[str, Callable[[], str]] = {"conversion": conversion, "loading": loading}


def redrawn(text: str) -> str:
    """A document with all its tables drawn anew."""
    return BLOCK.sub(lambda m: m[1] + TABLES[m[2]]() + m[3], text)


def main() -> int:
    """Redraw, or compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = path.read_text(encoding="utf-8")
        if redrawn(text) != text:
            stale.append(path.name)
            if not check:
                path.write_text(redrawn(text), encoding="utf-8")
    if check and stale:
        print(f"{', '.join(stale)}: tables differ from the results; run `make tables`")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
