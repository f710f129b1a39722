"""How much damage a conversion finds in JPEGs, and what looking for it costs.

    python benchmarks/damage.py FOLDER [--rounds 9] [--seed 0] [--json FILE]

FOLDER is a class folder of sound photographs. Runs of random bytes are written over their scans,
each file several times anew, and random bytes are put between the parts of their headers, which
is no damage. Each file is converted three ways: shrunk to 256 pixels, to 64 (by a scaled decode),
and with its bytes kept. Beside it stands what Pillow's own decoder refuses of the same files.

The cost is the CPU time of an image, in rounds that take turns with the same steps by Pillow.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from xmix_data import ImageError
from xmix_data.bench import machine
from xmix_data.beton.encoding import encode_image

RUNS = (1, 4, 16, 64, 400)
"""Bytes that are written over."""
DAMAGED, JUNK = 1000, 200
WAYS: dict[str, dict[str, Any]] = {
    "256 px": {"encoding": "raw", "image_size": 256, "crop": "square"},
    "64 px": {"encoding": "raw", "image_size": 64, "crop": "square"},
    "kept": {"encoding": "keep", "image_size": None, "crop": "none"},
}


def scan_of(data: bytes) -> int:
    """Where the bytes of the first scan begin."""
    at = 2
    while data[at + 1] != 0xDA:
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")


def overwritten(data: bytes, count: int, random: Random) -> bytes:
    """Random bytes over a run of the scan, its end marker left whole."""
    start = random.randrange(scan_of(data), len(data) - 2 - count)
    while True:
        run = random.randbytes(count)
        if run != data[start : start + count]:
            return data[:start] + run + data[start + count :]


def with_junk(data: bytes, random: Random) -> bytes:
    """Random bytes before a part of the header, none of which could be a marker."""
    places, at = [2], 2
    while data[at + 1] != 0xDA:
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        places.append(at)
    place = random.choice(places[1:])  # no file begins with junk: that would be no JPEG
    junk = bytes(random.randrange(255) for _ in range(random.choice((1, 4, 60, 400))))
    return data[:place] + junk + data[place:]


def refused(data: bytes, **options: Any) -> bool:
    try:
        encode_image(data, quality=90, **options)
    except ImageError:
        return True
    return False


def pixels(data: bytes) -> Any:
    """Pillow's pixels; ``None`` where it refuses them."""
    try:
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    except (OSError, SyntaxError):
        return None


def judged(sound: list[bytes], seed: int) -> dict[str, Any]:
    """Counts of what is refused, by the length of the damage."""
    random, found = Random(seed), {}
    for name in (*map(str, RUNS), "header"):
        counts: Counter[str] = Counter()
        for number in range(JUNK if name == "header" else DAMAGED // len(RUNS)):
            original = sound[number % len(sound)]
            data = (
                with_junk(original, random)
                if name == "header"
                else overwritten(original, int(name), random)
            )
            counts["files"] += 1
            for way, options in WAYS.items():
                counts[way] += refused(data, **options)
            shown = pixels(data)
            counts["by Pillow"] += shown is None
            whole = refused(data, **WAYS["kept"])
            counts["the same pixels, accepted"] += not whole and np.array_equal(
                shown, pixels(original)
            )
            counts["other pixels, accepted"] += not whole and not np.array_equal(
                shown, pixels(original)
            )
        found[name] = dict(counts)
    return found


def by_pillow(data: bytes) -> None:
    """The steps of a conversion to 256 pixels, with Pillow's decoder."""
    image = Image.open(io.BytesIO(data))
    image.getexif()
    short = min(image.size)
    image.draft(None, (512, 512))
    width, height = image.size
    x, y = (width - min(width, height)) / 2, (height - min(width, height)) / 2
    box = (x, y, x + min(width, height), y + min(width, height))
    made = image.convert("RGB")
    if short != 256:
        made = made.resize((256, 256), Image.Resampling.BILINEAR, box)
    made.save(io.BytesIO(), "JPEG", quality=90)


def by_conversion(data: bytes) -> None:
    encode_image(data, encoding="jpg", image_size=256, crop="square", quality=90)


def milliseconds(work: Callable[[bytes], None], files: list[bytes]) -> float:
    """CPU time of a file."""
    started = time.process_time()
    for data in files:
        work(data)
    return 1e3 * (time.process_time() - started) / len(files)


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/damage.json"))
    options = parser.parse_args()
    files = [path.read_bytes() for path in sorted(options.folder.glob("*/*")) if path.is_file()]
    sound = [data for data in files if not refused(data, **WAYS["kept"])]
    found = judged(sound, options.seed)
    print(json.dumps(found, indent=1), flush=True)
    times: dict[str, list[float]] = {"conversion": [], "Pillow": []}
    for number in range(options.rounds + 1):
        for name, work in (("Pillow", by_pillow), ("conversion", by_conversion)):
            taken = milliseconds(work, sound)
            if number:  # the first is a warm-up
                times[name].append(taken)
    result = {
        "benchmark": "damage",
        "machine": machine.describe(),
        "configuration": {
            "rounds": options.rounds,
            "seed": options.seed,
            "images": len(files),
            "sound": len(sound),
            "file_bytes_per_image": sum(map(len, sound)) / len(sound),
        },
        "found": found,
        "milliseconds": times,
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    ratios = [a / b for a, b in zip(times["conversion"], times["Pillow"], strict=True)]
    print(f"{options.json} written; time over Pillow's: {sorted(ratios)}")


if __name__ == "__main__":
    main()
