"""How soon a process has its first batch, and how soon a beton of any size is open.

    python benchmarks/startup.py [--rounds 7] [--samples 14000000] [--json FILE]

Processes are started in turn, round after round. The large beton has an index and no pixels to
speak of.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from xmix_data import PairedClass, Pairing, write_beton
from xmix_data.bench import Photographs, machine
from xmix_data.beton import layout

FIRST_BATCH = (
    "from xmix_data import XMixLoader; import sys\n"
    "next(iter(XMixLoader(sys.argv[1], sys.argv[1], sys.argv[2], batch_size=48)))"
)
OPEN = (
    "import json, sys, time, torch, xmix_data as x\n"
    "def mb(): return next(int(l.split()[1]) for l in open('/proc/self/status')\n"
    "                      if l.startswith('RssAnon')) / 1024\n"
    "before, times = mb(), [time.perf_counter()]\n"
    "b = x.Beton(sys.argv[1]); times.append(time.perf_counter()); memory = mb() - before\n"
    "crop = x.CenterCrop(1)\n"
    "p = x.Pairing({n: [x.PairedClass(n, 1.0, 1)] for n in b.class_names})\n"
    "l = x.XMixLoader(b, b, p, batch_size=64, crop=crop); times.append(time.perf_counter())\n"
    "next(iter(l)); times.append(time.perf_counter())\n"
    "o, m, f = (after - t for t, after in zip(times, times[1:]))\n"
    "print(json.dumps(dict(open_s=o, open_mb=memory, loader_s=m, first_batch_s=f,\n"
    "                      loader_mb=mb() - before)))"
)


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--samples", type=int, default=14_000_000)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/startup.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        small = write_beton(Photographs(), folder / "small.beton")
        pairing = Pairing({name: [PairedClass(name, 1.0, 64)] for name in small.class_names})
        pairing.save(folder / "pairing.json")
        files = [str(small.path), str(folder / "pairing.json")]
        commands = {
            "import numpy": ["import numpy"],
            "import xmix_data": ["import xmix_data"],
            "import torch": ["import torch"],
            "first batch": [FIRST_BATCH, *files],
        }
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for number in range(options.rounds + 1):
            for name, (code, *arguments) in commands.items():
                taken = run(code, *arguments)[0]
                if number:  # the first round fills caches
                    seconds[name].append(taken)
        compiling = []
        for number in range(3):
            os.environ["NUMBA_CACHE_DIR"] = str(folder / f"cache-{number}")
            compiling.append(run(FIRST_BATCH, *files)[0])
        del os.environ["NUMBA_CACHE_DIR"]
        large = folder / "large.beton"
        write_index(large, options.samples)
        opened = [json.loads(run(OPEN, str(large))[1]) for _ in range(3)]
    result = {
        "benchmark": "startup",
        "machine": machine.describe(),
        "configuration": {"rounds": options.rounds, "samples": options.samples},
        "seconds": seconds,
        "first_batch_without_cache_s": compiling,
        "large_beton": opened,
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    for name, values in seconds.items():
        print(f"{name:20} {statistics.median(values):.2f} s ({min(values):.2f}-{max(values):.2f})")
    print(f"without cache        {statistics.median(compiling):.1f} s")
    print(opened[-1])


def run(code: str, *arguments: str) -> tuple[float, str]:
    """Seconds of a process, and what it printed."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    return time.perf_counter() - started, done.stdout


def write_index(path: Path, count: int) -> None:
    """A beton of raw images of one pixel, in 21,841 classes."""
    header: Any = np.zeros(1, layout.HEADER)
    fields: Any = np.zeros(2, layout.FIELD)
    samples: Any = np.zeros(count, layout.SAMPLE)
    table: Any = np.zeros(count, layout.ALLOCATION)
    page = 8 << 20
    start = layout.align(header.nbytes + fields.nbytes + samples.nbytes, page)
    fields["type_id"] = [2, 1]
    samples["f0"]["width"] = samples["f0"]["height"] = samples["f0"]["mode"] = 1
    samples["f0"]["data_ptr"] = table["ptr"] = start + 3 * np.arange(count)
    samples["f1"] = np.arange(count) % 21_841
    table["sample_id"], table["size"] = np.arange(count), 3
    end = layout.align(start + 3 * count, 8)
    header[0] = (2, 2, page, count, end)
    with path.open("wb") as file:
        for part in (header, fields, samples):
            file.write(part.tobytes())
        file.seek(end)
        file.write(table.tobytes())


if __name__ == "__main__":
    main()
