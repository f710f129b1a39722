"""Tables of what a GPU gave: training steps, feeding, the device stage, pairing.

Comes in: the files `gpu_PART.json` of `benchmarks/results`. Goes out: Markdown.
"""

from __future__ import annotations

import statistics
from typing import Any

from results import machine_line, result

from table_parts.cells import shares, spread, table

PLAIN, XMIXUP, COTRAIN = "finetune", "xmixup", "cotrain"
RESIDENT, FED = "resident batch", "xmix_data"
NETWORKS = {"resnet50": "ResNet-50", "resnet18": "ResNet-18"}


def gpu_steps() -> str:
    """Steps of plain fine-tuning, XMixup and Co-Train over whole epochs, by network and batch."""
    document = result("gpu_steps")
    setup, rows = document["configuration"], []
    for name, case in setup["cases"].items():
        if name not in document:
            continue
        times = {row: figures["ms"] for row, figures in document[name].items()}
        plain = times[f"{PLAIN}, {FED}"]
        rows.append(
            [
                f"{NETWORKS[case['model']]}, {case['crop']} px, batch {case['batch_size']}"
                + (", compiled" if case["compile"] else ""),
                f"{statistics.median(plain):.1f} ms",
                _ratios(times.get(f"{XMIXUP}, {FED}"), plain),
                _ratios(times.get(f"{COTRAIN}, {FED}"), plain),
                _ratios(times.get(f"{XMIXUP}, {FED}"), times.get(f"{XMIXUP}, {RESIDENT}")),
                str(len(plain)),
            ]
        )
    head = [
        "network",
        "plain fine-tuning",
        "XMixup / plain",
        "Co-Train / plain",
        "XMixup, fed by the loader / by one batch",
        "n",
    ]
    measured = (
        f"{setup['dtype']}, channels_last, whole epochs of {setup['target_images']:,} JPEGs of "
        f"{setup['image_size']} px, {setup['loading_threads']} decoding threads, both domains "
        "JPEG; ratios within a round, median and range of n interleaved rounds"
    )
    return table(head, rows, machine_line(document, measured))


def _ratios(times: list[float] | None, others: list[float] | None) -> str:
    if times is None or others is None:
        return ""
    return shares([a / b for a, b in zip(times, others, strict=True)])


def gpu_feeding() -> str:
    """Pairs a second to the device, and how long a step takes that they feed."""
    document = result("gpu_feeding")
    setup, found, rows = document["configuration"], document["rows"], []
    resident = [run["ms_per_step"] for run in found["resident batch, training"]]
    for name, alone in found.items():
        pair, *rest, use = name.split(", ")
        if use != "alone":
            continue
        backend, threads = rest
        training = found[name.removesuffix("alone") + "training"]
        rows.append(
            [
                pair,
                f"`{backend}`",
                threads.split()[0],
                spread([run["pairs_per_s"] for run in alone]),
                f"{_median(alone, 'cores_used'):.1f}",
                _ratios([run["ms_per_step"] for run in training], resident),
            ]
        )
    head = [
        "pair",
        "backend",
        "threads",
        "pairs/s, loader alone",
        "cores busy",
        "fed step / resident step",
    ]
    measured = (
        f"{NETWORKS[setup['model']]}, {setup['dtype']}, batch {setup['batch_size']}, "
        f"`RandomCrop({setup['crop']})` of JPEGs of {setup['image_size']} px and "
        f"{setup['jpg_bytes_per_image'] / 1000:.0f} KB, a step on a resident batch "
        f"{statistics.median(resident):.1f} ms, median and range of n = {len(resident)} "
        f"interleaved rounds of {setup['steps']} steps"
    )
    return table(head, rows, machine_line(document, measured))


def _median(runs: list[dict[str, float]], key: str) -> float:
    return statistics.median(run[key] for run in runs)


def gpu_kernel() -> str:
    """The device stage beside a copy of as many bytes."""
    document = result("gpu_kernel")
    rows = []
    for batch in document["configuration"]["batch_sizes"]:
        for dtype in ("bfloat16", "float32"):
            found = document[f"mix {batch} {dtype}"]
            copy = found["copy_of_as_many_bytes"]["us"]
            rows.append(
                [
                    f"{batch} pairs, {dtype}",
                    f"{found['triton']['us']:.0f} µs",
                    f"{found['triton']['us'] / copy:.2f}",
                    f"{found['plain']['us']:,.0f} µs",
                    f"{document[f'host_to_device {batch}']['ms']:.2f} ms",
                ]
            )
    head = [
        "mirror, normalise and mix",
        "one kernel",
        "times a device copy of as many bytes",
        "plain torch operations",
        "the crops' way to the device",
    ]
    measured = (
        f"crops of {document['configuration']['crop']} px, medians of many calls with a cold "
        f"cache; a device copy reads and writes "
        f"{document['device_copy_1GiB_GBps_read_plus_written'] / 1000:.1f} TB/s, pinned memory "
        f"reaches the device at {document['host_to_device 256']['GBps']:.0f} GB/s"
    )
    return table(head, rows, machine_line(document, measured))


def gpu_pairing() -> str:
    """Cosines of many classes, by FAISS and by torch."""
    document = result("gpu_pairing")
    setup, rows = document["configuration"], []
    for name, key in (
        ("FAISS on the GPU", "cosine_similarity, GPU"),
        ("FAISS on the CPU", "cosine_similarity, CPU"),
        ("torch on the GPU, product alone", "torch, float32, cuda"),
        ("torch on the CPU, product alone", "torch, float32, cpu"),
    ):
        found: dict[str, Any] = document[key]
        first, *later = found["seconds"]
        rows.append(
            [
                name,
                f"{first:.2f} s",
                f"{statistics.median(later):.2f} s",
                f"{found['error_to_float64']:.1e}",
            ]
        )
    head = ["cosines by", "first call", "later calls", "largest error"]
    normalising = document["parts of the GPU's way"]["normalise_s"]
    other = document["GPU against CPU"]["classes_paired_otherwise"]
    measured = (
        f"{setup['target_classes']:,} target and {setup['source_classes']:,} source classes, "
        f"{setup['dimensions']:,} random features; normalising takes "
        f"{normalising:.2f} s of FAISS's rows; the GPU's "
        f"cosines pair {other} of the target classes otherwise than the CPU's"
    )
    return table(head, rows, machine_line(document, measured))
