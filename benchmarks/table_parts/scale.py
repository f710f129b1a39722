"""Tables of what is larger than a machine: huge sets, measured, and many GPUs, simulated."""

from __future__ import annotations

import statistics
from typing import Any

from results import machine_line, result

from table_parts.cells import table

WHEN = {"before": "sorted (version 1)", "after": "by position (version 2)"}
"""Words for the versions of the package, by how an epoch has its order."""


def huge_sets() -> str:
    """Sets of many million samples: seconds and memory to the first batch."""
    document = result("huge_sets")
    setup, rows = document["configuration"], []
    for samples, versions in document["sets"].items():
        for version in ("before", "after"):
            runs = versions[version]

            def cell(key: str, digits: int = 1, scale: float = 1.0, runs: Any = runs) -> str:
                values = [run[key] / scale for run in runs]
                low, high = min(values), max(values)
                middle = statistics.median(values)
                return f"{middle:,.{digits}f} ({low:,.{digits}f}-{high:,.{digits}f})"

            rows.append(
                [
                    f"{int(samples):,}",
                    WHEN[version],
                    cell("open_s"),
                    cell("loader_s"),
                    cell("first_batch_s", 2),
                    cell("second_epoch_s", 2),
                    cell("second_epoch_mb", 1, 1e3),
                    cell("peak_mb", 1, 1e3),
                    str(len(runs)),
                ]
            )
    head = [
        "samples",
        "order of an epoch",
        "open, s",
        "loader, s",
        "first batch, s",
        "first batch of the next epoch, s",
        "memory then, GB",
        "most memory, GB",
        "n",
    ]
    measured = (
        f"{setup['shards']} shards of an index of full length and images of one pixel, "
        f"{setup['classes']:,} classes, each set its own source, batch {setup['batch_size']}; "
        "memory is what no file backs; median and range of n interleaved processes"
    )
    return table(head, rows, machine_line(document, measured))


def scale() -> str:
    """What many GPUs ask, by simulation."""
    document = result("scale")
    setup = document["configuration"]
    assumed, inputs, rows = setup["assumed"], setup["inputs"], []
    for row in document["rows"]:
        share = row["shares"][row["first_limit"]]
        limit = f"{row['first_limit']}, {100 * share:,.0f} % of it"
        rows.append(
            [
                row["network"],
                row["pair"],
                str(row["gpus"]),
                f"{row['pairs_per_s']:,.0f}",
                f"{row['cores_per_gpu']:.1f}",
                f"{100 * row['hit_share']:.0f} %",
                f"{row['node_gb_per_s']:.2f}",
                f"{row['all_gb_per_s']:.1f}",
                f"**{limit}**" if share > 1 else limit,
                f"{100 * row['local_disk_share']:.0f} %",
                f"{row['copy_s'] / 60:,.0f}",
                f"{assumed['epochs'] * row['epoch_s'] / 60:,.0f}",
            ]
        )
    head = [
        "network",
        "pair",
        "GPUs",
        "pairs/s",
        "decoding cores a GPU",
        "found in memory",
        "GB/s a node",
        "GB/s all nodes",
        "first limit, from shared storage",
        "of a local disk",
        "to copy all to it, min",
        "training, fed, min",
    ]
    pairs = inputs["pairs"]
    line = (
        f"Simulated, not measured: {assumed['epochs']} epochs over "
        f"{assumed['target_images']:,} target images with {assumed['source_images']:,} source "
        f"images, {assumed['gpus_per_node']} GPUs a node, page caches of "
        f"{assumed['cache_gb_of_a_node']:,} GB a node ({assumed['cache_gb_of_one_gpu']} GB for a "
        f"single GPU). From committed results ({inputs['machine_of_gpu']}): ResNet-50 "
        f"{inputs['images_per_s']['ResNet-50']:,.0f} images/s, a core "
        f"{pairs['jpg + jpg']['pairs_per_s_of_a_core']:,.0f} pairs/s of jpg + jpg and "
        f"{pairs['raw + jpg']['pairs_per_s_of_a_core']:,.0f} of raw + jpg, JPEGs of "
        f"{pairs['jpg + jpg']['source_bytes'] / 1000:.0f} KB. Assumed: ViT-B/16 "
        f"{assumed['vit_b_images_per_s']:,} images/s, {assumed['cores_per_gpu']} cores a GPU, "
        f"{assumed['network_gb_per_s_of_a_node']} GB/s of network a node, "
        f"{assumed['storage_gb_per_s']:.0f} GB/s of shared storage, a local disk of "
        f"{assumed['disk_gb_per_s_of_a_node']:.0f} GB/s."
    )
    return table(head, rows, line)
