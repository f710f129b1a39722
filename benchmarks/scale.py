"""What 1 to 512 GPUs ask of storage, network and decoding cores, by a small simulation.

    python benchmarks/scale.py [--json FILE]

Nothing is measured here. Comes in: committed results (steps and feeding of a GPU, bytes of an
image) and the assumptions below, which the result repeats. Goes out: for each network, encoding and
number of GPUs what a node and all of them read, and which limit is met first.

The simulation follows a node's page cache through a training: which samples a node asks for is
decided as the loader decides it (a share of a permutation of the target each epoch, one of the
source's images drawn for each), on a set, and with a cache, of a thousandth of the size. What is
not in the cache is read.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import OrderedDict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from results import RESULTS, result

GPUS = (1, 8, 64, 512)
ASSUMED: dict[str, Any] = {
    "gpus_per_node": 8,
    "target_images": 1_281_167,  # ImageNet's training set
    "source_images": 100_000_000,
    "epochs": 90,
    "cache_gb_of_a_node": 1_000,  # of 2 TB of memory
    "cache_gb_of_one_gpu": 100,  # of a machine with a single GPU
    "vit_b_images_per_s": 2_500,  # 6 x 17.6 GFLOP an image: 27 % of an H100's 989 TFLOP/s
    "cores_per_gpu": 16,
    "network_gb_per_s_of_a_node": 12.5,  # 100 Gbit/s
    "storage_gb_per_s": 20.0,  # of all nodes together: a shared file system or object store
    "disk_gb_per_s_of_a_node": 6.0,  # one NVMe drive
    "raw_side": 256,
    "page_bytes": 4096,
}
SCALE = 1000
THREADS = "8 threads"
"""Row of the feeding that the work of a core is taken from."""


def main() -> None:
    """Simulate and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=RESULTS / "scale.json")
    options = parser.parse_args()
    from xmix_data.bench import machine

    inputs = measured_inputs()
    rows = [
        {"network": network, "pair": pair, **asked(rate, inputs["pairs"][pair], gpus)}
        for network, rate in inputs["images_per_s"].items()
        for pair in inputs["pairs"]
        for gpus in GPUS
    ]
    document = {
        "benchmark": "scale",
        "machine": machine.describe(),
        "configuration": {"rounds": 1, "assumed": ASSUMED, "scale": SCALE, "inputs": inputs},
        "rows": rows,
    }
    options.json.write_text(json.dumps(document, indent=1) + "\n")
    for row in rows:
        print({key: round(v, 2) if isinstance(v, float) else v for key, v in row.items()})


def measured_inputs() -> dict[str, Any]:
    """What the committed results say of a GPU, a core and an image."""
    steps, feeding = result("gpu_steps"), result("gpu_feeding")
    jpg = feeding["configuration"]["jpg_bytes_per_image"]
    raw = 3 * ASSUMED["raw_side"] ** 2
    pairs = {}
    for name, target in (("jpg + jpg", jpg), ("raw + jpg", raw)):
        measured = feeding["rows"][f"{name}, host, {THREADS}, alone"]
        rate = statistics.median(one["pairs_per_s"] / one["cores_used"] for one in measured)
        pairs[name] = {"target_bytes": target, "source_bytes": jpg, "pairs_per_s_of_a_core": rate}
    return {
        "machine_of_gpu": steps["machine"]["gpu"],
        "images_per_s": {
            "ResNet-50": steps["batch 256"]["xmixup, resident batch"]["images_per_s"],
            "ViT-B/16": ASSUMED["vit_b_images_per_s"],
        },
        "pairs": pairs,
    }


def asked(rate: float, pair: dict[str, float], gpus: int) -> dict[str, Any]:
    """What so many GPUs ask, and which limit comes first.

    Args:
        rate: Images a second of a GPU.
        pair: Bytes of the images of a pair, and pairs a second of a core.
        gpus: Number of GPUs.
    """
    here = min(gpus, ASSUMED["gpus_per_node"])
    nodes = gpus // here
    memory = ASSUMED["cache_gb_of_one_gpu" if gpus == 1 else "cache_gb_of_a_node"] * 1e9
    read = bytes_read(pair["target_bytes"], pair["source_bytes"], memory, nodes)
    node = here * rate * read / 1e9
    cores = rate / pair["pairs_per_s_of_a_core"]
    whole = (
        ASSUMED["target_images"] * pair["target_bytes"]
        + ASSUMED["source_images"] * pair["source_bytes"]
    ) / 1e9
    shares = {  # of what there is, from a shared storage
        "decoding cores": cores / ASSUMED["cores_per_gpu"],
        "network of a node": node / ASSUMED["network_gb_per_s_of_a_node"],
        "shared storage": node * nodes / ASSUMED["storage_gb_per_s"],
    }
    first = max(shares, key=lambda name: shares[name])
    return {
        "gpus": gpus,
        "nodes": nodes,
        "pairs_per_s": gpus * rate,
        "cores_per_gpu": cores,
        "hit_share": 1 - read / paged(pair["target_bytes"], pair["source_bytes"]),
        "node_gb_per_s": node,
        "node_reads_per_s": here * rate * 2,
        "all_gb_per_s": node * nodes,
        "epoch_s": ASSUMED["target_images"] / (gpus * rate),
        "shares": shares,
        "first_limit": first,
        "fed_share": min(1.0, 1 / shares[first]),
        "local_disk_share": node / ASSUMED["disk_gb_per_s_of_a_node"],
        "copy_gb_per_node": whole,
        "copy_s": max(
            whole / ASSUMED["network_gb_per_s_of_a_node"],
            whole * nodes / ASSUMED["storage_gb_per_s"],
        ),
    }


def paged(*sizes: float) -> float:
    """Bytes of the pages that images lie in, which begin anywhere in a page."""
    return sum(size + ASSUMED["page_bytes"] - 1 for size in sizes)


@cache
def bytes_read(target_bytes: float, source_bytes: float, memory: float, nodes: int) -> float:
    """Bytes a pair that a node reads past its page cache, in the mean over a training."""
    random = np.random.Generator(np.random.Philox(nodes))
    targets, sources = ASSUMED["target_images"] // SCALE, ASSUMED["source_images"] // SCALE
    kept: OrderedDict[int, float] = OrderedDict()  # the least recently used first
    free, read, pairs = memory / SCALE, 0.0, 0
    for _ in range(ASSUMED["epochs"]):
        own = random.permutation(targets)[: max(1, targets // nodes)]
        drawn = targets + random.integers(0, sources, len(own))
        for image in np.stack([own, drawn], axis=1).ravel().tolist():
            if image in kept:
                kept.move_to_end(image)
                continue
            size = paged(target_bytes if image < targets else source_bytes)
            read += size
            kept[image] = size
            free -= size
            while free < 0:
                free += kept.popitem(last=False)[1]
        pairs += len(own)
    return read / pairs


if __name__ == "__main__":
    main()
