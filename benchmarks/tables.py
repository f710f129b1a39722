"""Redraw every table and plot of README.md and docs from the committed results.

    python benchmarks/tables.py [--check]

A table stands between ``<!-- table: NAME -->`` and ``<!-- end of table -->``; with
``<!-- table: NAME, brief -->`` it has no line that names machine and versions. A plot is an SVG in
docs/figures that names the hash of its result file and of what draws it. ``--check`` says what
differs and redraws nothing.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable

from figures import PLOTS
from results import FIGURES, ROOT, digest
from table_parts import clients, gpu, loading, machines, pretrained, reliability, scale, training

BLOCK = re.compile(r"(<!-- table: (\w+)(, brief)? -->\n).*?(<!-- end of table -->)", re.S)

TABLES: dict[str, Callable[[], str]] = {
    table.__name__: table
    for table in (
        loading.conversion,
        loading.loaders,
        loading.loaders_in_short,
        loading.compared,
        loading.limits,
        loading.cold_cache,
        loading.startup,
        loading.epoch_end,
        loading.dali,
        loading.feeding,
        loading.profiling,
        training.pairing,
        training.features,
        training.step_cost,
        training.methods,
        machines.machines,
        training.accuracy,
        training.ablations,
        training.alphas,
        training.longer,
        training.probes,
        pretrained.pretrained,
        pretrained.pretrained_iterations,
        pretrained.pretrained_changes,
        pretrained.pretrained_networks,
        reliability.fuzzing,
        reliability.damage,
        reliability.lifetimes,
        reliability.soak,
        clients.clients,
        gpu.gpu_steps,
        gpu.gpu_feeding,
        gpu.gpu_kernel,
        gpu.gpu_pairing,
        scale.huge_sets,
        scale.scale,
    )
}
"""What draws the table of a name."""


def redrawn(text: str) -> str:
    """A document with all its tables drawn anew."""

    def drawn(match: re.Match[str]) -> str:
        table = TABLES[match[2]]()
        if match[3]:
            table = table.rpartition("\n\n")[0] + "\n"
        return match[1] + table + match[4]

    return BLOCK.sub(drawn, text)


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
    FIGURES.mkdir(parents=True, exist_ok=True)
    for name, (shown, draw) in PLOTS.items():
        path = FIGURES / name
        if not path.exists() or digest(shown) not in path.read_text(encoding="utf-8"):
            stale.append(name)
            if not check:
                draw(path)
    if check and stale:
        print(f"{', '.join(stale)}: not what the results say; run `make tables`")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
