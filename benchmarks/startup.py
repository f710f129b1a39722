"""How soon a process has its first batch.

    python benchmarks/startup.py [--rounds 7] [--json FILE]

Processes are started in turn, round after round. `huge_sets.py` measures what large sets take.
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

from xmix_data import PairedClass, Pairing, write_beton
from xmix_data.bench import Photographs, machine

FIRST_BATCH = (
    "from xmix_data import XMixLoader; import sys\n"
    "next(iter(XMixLoader(sys.argv[1], sys.argv[1], sys.argv[2], batch_size=48)))"
)


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
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
                taken = run(code, *arguments)
                if number:  # the first round fills caches
                    seconds[name].append(taken)
        compiling = []
        for number in range(3):
            os.environ["NUMBA_CACHE_DIR"] = str(folder / f"cache-{number}")
            compiling.append(run(FIRST_BATCH, *files))
        del os.environ["NUMBA_CACHE_DIR"]
    result = {
        "benchmark": "startup",
        "machine": machine.describe(),
        "configuration": {"rounds": options.rounds},
        "seconds": seconds,
        "first_batch_without_cache_s": compiling,
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    for name, values in seconds.items():
        print(f"{name:20} {statistics.median(values):.2f} s ({min(values):.2f}-{max(values):.2f})")
    print(f"without cache        {statistics.median(compiling):.1f} s")


def run(code: str, *arguments: str) -> float:
    """Seconds of a process."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, check=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
