"""The committed results, and what tables and figures both say of them.

Comes in: a file of `benchmarks/results`. Goes out: its document, its hash, the line that names its
machine, and the words for its rows. `figures` and `tables` import this, and this imports neither.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
FIGURES = ROOT / "docs" / "figures"

OURS = {
    "jpg + jpg, mixed": "**XMixLoader**, jpg target + jpg source",
    "raw + jpg, mixed": "**XMixLoader**, raw target + jpg source",
    "raw + raw, mixed": "**XMixLoader**, raw target + raw source",
    "ImageLoader, jpg": "**ImageLoader**, one domain, nothing mixed",
}
PEERS = {
    "XMixLoader, DALI": '**XMixLoader**, jpg + jpg, `backend="dali"`',
    "FFCV, xmix_data.ffcv": "FFCV with `xmix_data.ffcv`, mixed",
    "FFCV, one domain": "FFCV, one domain, nothing mixed",
    "FFCV, one domain, uint8": "FFCV, one domain, nothing mixed, uint8",
    "FFCV, two zipped": "FFCV, two loaders zipped",
    "TurboLoader, one domain": "TurboLoader, one domain, nothing mixed",
    "TurboLoader, two zipped": "TurboLoader, two loaders zipped",
    "DALI, CPU": "DALI on the CPU",
    "SPDL": "SPDL, its own decoder",
    "SPDL, TorchCodec": "SPDL around TorchCodec",
    "torch DataLoader, TorchCodec": "torch DataLoader, TorchCodec, tuned",
    "torch DataLoader, Pillow": "torch DataLoader, Pillow",
}


def result(name: str) -> dict[str, Any]:
    """One result file."""
    document: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return document


def digest(name: str) -> str:
    """The hash of a result file and of what draws it, which its plots name."""
    parts = RESULTS / f"{name}.json", Path(__file__).with_name("figures.py")
    return hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest()


def machine_line(document: dict[str, Any], measured: str) -> str:
    """The machine, versions and n under a table."""
    machine = document["machine"]
    versions = machine["versions"]
    packages = ", ".join(
        f"{name} {versions[name]}"
        for name in (
            "torch",
            "ffcv",
            "numba",
            "pillow",
            "nvidia-dali-cuda130",
            "spdl",
            "torchcodec",
            "turboloader",
        )
        if versions.get(name)
    )
    gpu = machine["gpu"] or "no GPU"
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {gpu}; {measured}; {machine['system']}, "
        f"{packages}."
    )


def measured_rounds(document: dict[str, Any]) -> str:
    setup = document["configuration"]
    return (
        f"{setup['images']} JPEGs of {setup['jpg_bytes_per_image'] / 1000:.0f} KB, "
        f"{setup['image_size']} px, batch {setup['batch_size']}, {setup['threads']} threads, "
        f"median and range of n = {setup['rounds']} interleaved rounds"
    )


def accuracy_line(document: dict[str, Any]) -> str:
    """How the accuracies were measured."""
    setup = document["configuration"]
    pretraining = setup["pretraining"]
    measured = (
        f"a residual network of widths {', '.join(map(str, setup['widths']))} at {setup['crop']} "
        f"px, trained from scratch on the source ({100 * document['pretrained']:.1f} % there); "
        f"{setup['iterations']} iterations of batch 48 for every method, last iterate; six "
        f"combinations of options for each, chosen on {setup['validation']} held-out images a "
        f"class, the best three on {setup['folds']} such parts (GradMix on one: its step costs "
        f"four); n = {setup['seeds']} seeds of a method, {setup['sweep_seeds']} of all else; "
        f"pre-training {pretraining['iterations']} iterations of batch {pretraining['batch_size']}"
    )
    return machine_line(document, measured)
