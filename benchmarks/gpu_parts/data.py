"""Part data: the betons that the other parts read, in $DATA; this needs no GPU.

Comes in: the kit's photographs, a class folder of them, or made-up ones. Goes out, in $DATA:
jpg.beton and raw.beton (about 4,000 images), target.beton (about 1,000 of them), source-0.beton and
source-1.beton (half the classes each), pairing.json; without a kit also its small betons.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from functools import partial
from pathlib import Path

from feeding import IMAGES

from gpu_parts.record import DATA, KIT, Options
from xmix_data import Beton, write_beton
from xmix_data.bench import Bench, Photographs, Repeated
from xmix_data.beton import open_images
from xmix_data.images import select

SIZE = 256
"""Side of the photographs in pixels, as stored."""
TARGET_IMAGES, TARGET_IMAGES_TINY = 1000, 16
"""Of the small target set, whose epochs end often."""
SMALL = {"target": (10, 50, 0), "source": (20, 50, 1), "test": (10, 20, 2)}
"""Made-up pictures of 64 px: classes, images of each, seed."""
SMALL_TINY = {"target": (4, 4, 0), "source": (4, 4, 1), "test": (4, 2, 2)}

_MOST_WORKERS = 8


def run(options: Options) -> bool:
    """Write them and say how many there are."""
    started = time.perf_counter()
    prepare(options)
    jpg = Beton(DATA / "jpg.beton")
    seconds = time.perf_counter() - started
    size = int(jpg.sizes.mean())
    print(f"data: {jpg.num_samples} images of {size} bytes in {DATA}, {seconds:.1f} s", flush=True)
    return True


def prepare(options: Options) -> None:
    """Write what is not there; where several processes ask for it, one writes and all wait."""
    DATA.mkdir(parents=True, exist_ok=True)
    made_of = {"photographs": str(options.photographs), "kit": str(KIT), "tiny": options.tiny}
    wanted = json.dumps(made_of)
    ready = DATA / "ready"
    with open(DATA / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ready.exists() or ready.read_text() != wanted:
            ready.unlink(missing_ok=True)
            _write(options)
            ready.write_text(wanted)


def small_beton(name: str) -> Path:
    """The path of ``"target"``, ``"source"`` or ``"test"`` of small images."""
    return (KIT or DATA) / f"tiny-{name}.beton"


def _write(options: Options) -> None:
    workers = 0 if options.tiny else min(_MOST_WORKERS, len(os.sched_getaffinity(0)))
    write = partial(write_beton, num_workers=workers, progress=False, overwrite=True)
    if KIT is not None and options.photographs is None:
        once = Beton(KIT / "photos.beton")
    else:
        made_up = Photographs(4, 4, size=48) if options.tiny else Photographs(size=SIZE)
        images = open_images(options.photographs or made_up)
        classes = int(images.labels().max(initial=0)) + 1
        sample = select(images, per_class=-(-IMAGES // classes))
        once = write(sample, DATA / "once.beton", image_size=SIZE)
    repeated = Repeated(once, 1 if options.tiny else -(-IMAGES // once.num_samples))
    jpg = write(repeated, DATA / "jpg.beton", encoding="keep")
    write(repeated, DATA / "raw.beton", encoding="raw")
    names, images = jpg.class_names, open_images(jpg)
    count = TARGET_IMAGES_TINY if options.tiny else TARGET_IMAGES
    few = select(images, per_class=max(1, round(count / len(names))))
    write(few, DATA / "target.beton", encoding="keep")
    for number, part in enumerate((names[::2], names[1::2])):
        half = select(images, classes=part)
        write(half, DATA / f"source-{number}.beton", encoding="keep")
    Bench(jpg, jpg).pairing.save(DATA / "pairing.json")
    if KIT is None:
        for name, (classes, count, seed) in (SMALL_TINY if options.tiny else SMALL).items():
            pictures = Photographs(classes, count, size=64, seed=seed)
            write(pictures, small_beton(name), image_size=64)
