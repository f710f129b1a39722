"""``xmix doctor``: what is installed, found and missing, and what feeds the GPU.

Comes in: nothing, a beton, or a set of shards. Goes out: checks, each with words and plain values.
`examine` only looks; `feeding` measures for about three seconds and writes nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from xmix_data.commands.answer import Answer
from xmix_data.commands.arguments import add_json
from xmix_data.commands.probes import Check, Found, examine, tried
from xmix_data.cores import usable_cores
from xmix_data.remote import path_or_url

if TYPE_CHECKING:
    from xmix_data.beton import Beton

__all__ = ["EXAMPLES", "HELP", "add_arguments", "feeding", "run", "verdict"]

HELP = "say what is installed, found and missing, and what feeds the GPU"
EXAMPLES = (
    "xmix doctor",
    "xmix doctor source.beton --json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    add_json(parser)
    parser.add_argument(
        "beton",
        metavar="FILE.beton",
        type=path_or_url,
        nargs="?",
        help="measure the storage where it lies, and the decoding of its JPEGs; of a set its first "
        "shard",
    )


def run(options: argparse.Namespace) -> Answer:
    """Examine the installation, measure the machine, and list what was found."""
    beton = None
    if options.beton is not None:
        from xmix_data.beton import open_domain

        beton = open_domain(options.beton).betons[0]  # of a set the first shard stands for all
    checks = examine()
    complete = all(check.ok or check.optional for check in checks)
    if complete:
        checks += feeding(_pictures(), beton)
    width = max(len(check.name) for check in checks)
    lines = [f"{check.mark:<7}  {check.name:<{width}}  {check.found}" for check in checks]
    problem = "" if complete else "something that xmix_data needs is missing; see the list"
    return Answer([check.document() for check in checks], lines, problem)


def _pictures() -> list[bytes]:
    """Make JPEGs as large as those of photographs of 256 pixels."""
    from xmix_data.bench import Photographs
    from xmix_data.beton.encoding import encode_image

    made = Photographs(classes=1, per_class=8)
    return [
        encode_image(made[i][0], encoding="jpg", image_size=None, crop="none", quality=90).data
        for i in range(len(made))
    ]


_SAMPLED = 64
"""Most JPEGs of a beton that are decoded to measure."""


def feeding(pictures: Sequence[bytes], beton: Beton | None = None) -> list[Check]:
    """Measure whether this machine's cores and storage can feed its GPU.

    Args:
        pictures: JPEG streams, to decode where the beton has none.
        beton: Beton to read from, past the page cache; ``None`` measures no storage.

    Returns:
        Checks of decoding, storage, the GPU's step where there is a GPU, and what follows from
            them.
    """
    import torch

    checks = [
        tried("decoding", lambda: _decoding(pictures, beton), optional=True),
        Check("storage", True, "not measured: `xmix doctor FILE.beton` reads a beton where it lies")
        if beton is None
        else tried("storage", lambda: _storage(beton), optional=True),
    ]
    if torch.cuda.is_available():
        checks.append(tried("gpu step", _step, optional=True))
    rates = {check.name: check.values.get("images_per_second") for check in checks}
    return [*checks, verdict(rates["decoding"], rates["storage"], rates.get("gpu step"))]


def verdict(decoded: float | None, read: float | None, taken: float | None) -> Check:
    """Judge what feeds the GPU by three rates; a pair is a target and a source image.

    Args:
        decoded: JPEGs a second that all cores decode; ``None`` where it was not measured.
        read: Images a second that the storage reads; ``None`` where it was not measured.
        taken: Images a second of a training step on the GPU; ``None`` where there is no GPU.
    """
    name = "feeding"
    if taken is None or decoded is None:
        what = "no GPU to feed; on the CPU, decoding and training share the cores"
        return Check(name, True, what if taken is None else "decoding was not measured", True)
    shares = {"jpg_jpg": decoded / 2 / taken, "raw_jpg": decoded / taken}
    text = (
        f"a step takes {taken:,.0f} mixed images a second; the cores decode "
        f"{shares['jpg_jpg']:.0%} of that for two JPEG domains, {shares['raw_jpg']:.0%} for a raw "
        "target and a JPEG source"
    )
    enough = shares["raw_jpg"] >= 1
    if not enough:
        text += ": raw betons, smaller images or more cores will help, and backend='dali' a little"
    if read is not None:
        shares["storage"] = read / taken
        text += f"; the storage reads {shares['storage']:.0%} of the source images"
        if read < taken:
            enough = False
            text += ", until they are in memory"
    return Check(name, enough, text, True, shares)


def _decoding(pictures: Sequence[bytes], beton: Beton | None) -> Found:
    from xmix_data.bench.rates import decode_rate

    own = [] if beton is None else _some_jpegs(beton)
    cores = usable_cores()
    rate, what = decode_rate(own or pictures, cores), "its own JPEGs" if own else "made-up JPEGs"
    size = sum(map(len, own or pictures)) / len(own or pictures)
    return (
        f"{rate:,.0f} images a second on {cores} cores, {what} of {size / 1e3:.0f} kB: at most "
        f"{rate / 2:,.0f} pairs of two JPEGs, {rate:,.0f} with a raw target",
        {"images_per_second": rate, "cores": cores, "bytes_per_image": size, "of_beton": bool(own)},
    )


def _some_jpegs(beton: Beton) -> list[bytes]:
    import numpy as np

    from xmix_data.beton.layout import JPG

    jpegs = np.flatnonzero(beton.modes == JPG)
    step = -(-len(jpegs) // _SAMPLED) or 1
    return [beton.data(int(index)).tobytes() for index in jpegs[::step]]


def _storage(beton: Beton) -> Found:
    from xmix_data.bench.rates import read_rate

    rate = read_rate(beton.path, beton.pointers, beton.sizes)
    size = float(beton.sizes.mean())
    return (
        f"{rate:,.0f} images a second at random past the page cache, {rate * size / 1e6:,.0f} MB/s "
        f"({beton.path})",
        {"images_per_second": rate, "bytes_per_image": size, "path": str(beton.path)},
    )


def _step() -> Found:
    import torch
    from torchvision.models import resnet50

    from xmix_data.bench.rates import STEP_BATCH_SIZE, STEP_SIZE, training_rate

    rate = training_rate(resnet50(), torch.device("cuda"))
    return (
        f"{rate:,.0f} images a second: ResNet-50 forward and backward, bfloat16, batches of "
        f"{STEP_BATCH_SIZE}, {STEP_SIZE}x{STEP_SIZE} pixels",
        {
            "images_per_second": rate,
            "network": "resnet50",
            "batch_size": STEP_BATCH_SIZE,
            "size": STEP_SIZE,
        },
    )
