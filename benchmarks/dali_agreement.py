"""How far pixels of ``backend="dali"`` are from the reference's, on a folder of photographs.

    python benchmarks/dali_agreement.py FOLDER [--device cpu] [--epochs 4] [--json FILE]

FOLDER is a class folder of photographs in their own sizes. Each crop is compared on JPEGs as they
are, and on those that `write_beton` makes of them at 256 pixels; the plan gives both backends the
same boxes, so what is left is decoding and resizing.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import torch

from xmix_data import Beton, ImageLoader, RandomCrop, RandomResizedCrop, write_beton
from xmix_data.bench import machine
from xmix_data.decode import dct_fractions
from xmix_data.plan import Crop

STORED: dict[str, dict[str, Any]] = {
    "256 px": {"image_size": 256},
    "as they are": {"image_size": None, "crop": "none", "encoding": "keep"},
}
CROPS: dict[str, tuple[Crop, ...]] = {
    "256 px": (RandomCrop(224), RandomResizedCrop(224), RandomResizedCrop(64)),
    "as they are": (RandomResizedCrop(224), RandomResizedCrop(64)),
}
EDGE = 3
"""Pixels from the border where the filters treat what lies outside of the window differently."""


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/dali_agreement.json"))
    options = parser.parse_args()
    cases = []
    with tempfile.TemporaryDirectory() as scratch:
        for stored, how in STORED.items():
            beton = write_beton(options.folder, Path(scratch) / f"{len(cases)}.beton", **how)
            cases += [
                {"stored": stored, **row}
                for crop in CROPS[stored]
                for row in compare(beton, crop, options.device, options.epochs)
            ]
    result = {
        "benchmark": "dali_agreement",
        "machine": machine.describe(),
        "configuration": {
            "device": options.device,
            "images": beton.num_samples,
            "rounds": options.epochs,
        },
        "cases": cases,
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    for case in cases:
        print(case)


def compare(beton: Beton, crop: Crop, device: str, epochs: int) -> list[dict[str, Any]]:
    """Errors over some epochs; those of windows that the reference decodes at a fraction apart."""
    settings: dict[str, Any] = {
        "batch_size": 32,
        "crop": crop,
        "flip": True,
        "shuffle": True,
        "dtype": torch.uint8,
    }
    ours = ImageLoader(beton, backend="dali", device=device, **settings)
    reference = ImageLoader(beton, backend="reference", **settings)
    errors: dict[bool, list[torch.Tensor]] = {False: [], True: []}
    for _ in range(epochs):
        for (one, _), (other, _) in zip(ours, reference, strict=True):
            rows = reference.last_rows
            assert rows is not None
            fractions = dct_fractions(rows.target_crops.boxes, crop.shape)
            difference = (one.cpu().int() - other.int()).abs().to(torch.uint8)
            for at_a_fraction, parts in errors.items():
                parts.append(difference[torch.from_numpy((fractions > 1) == at_a_fraction)])
    found = []
    name = f"{type(crop).__name__}({crop.shape[0]})"
    for at_a_fraction, parts in errors.items():
        together = torch.cat(parts)
        if len(together):
            found.append({"crop": name, "at_a_fraction": at_a_fraction, **summary(together)})
    return found


def summary(errors: torch.Tensor) -> dict[str, Any]:
    """Of absolute differences (N, 3, H, W) uint8, in grey levels; PSNR in dB, ``None`` if equal."""
    squares = errors.double().square().mean(dim=(1, 2, 3))
    inner = errors[:, :, EDGE:-EDGE, EDGE:-EDGE]
    return {
        "images": len(errors),
        "psnr": psnr(float(squares.mean())),
        "worst_image_psnr": psnr(float(squares.max())),
        "mean": float(errors.double().mean()),
        "largest": int(errors.max()),
        "largest_inside": int(inner.max()),
        "share_above_1": float((errors > 1).double().mean()),
    }


def psnr(square: float) -> float | None:
    return round(10 * math.log10(255**2 / square), 2) if square else None


if __name__ == "__main__":
    main()
