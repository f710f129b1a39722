"""What each encoding costs, in time and bytes, on a folder of photographs.

    python benchmarks/conversion.py FOLDER [--json FILE]

FOLDER is a class folder. Each encoding is written once, the start of its workers included.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from xmix_data import machine, write_beton

ENCODINGS = ("jpg", "raw", "keep")


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/conversion.json"))
    options = parser.parse_args()
    figures = {}
    with tempfile.TemporaryDirectory() as scratch:
        for encoding in ENCODINGS:
            started = time.perf_counter()
            path = Path(scratch) / f"{encoding}.beton"
            beton = write_beton(options.folder, path, encoding=encoding)
            seconds = time.perf_counter() - started
            figures[encoding] = {
                "seconds": seconds,
                "images_per_s": beton.num_samples / seconds,
                "bytes_per_image": int(beton.sizes.sum()) / beton.num_samples,
            }
    result = {
        "benchmark": "conversion",
        "machine": machine.describe(),
        "configuration": {
            "images": beton.num_samples,
            "classes": len(beton.class_names),
            "image_size": beton.image_size,
            "rounds": 1,
        },
        "encodings": figures,
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{options.json} written; `make tables` redraws the tables")


if __name__ == "__main__":
    main()
