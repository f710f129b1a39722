"""Real photographs through the whole way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import reversed_pairing

from xmix_data import RandomCrop, RandomResizedCrop, XMixLoader, write_beton


@pytest.mark.parametrize("encoding", ["jpg", "keep"])
def test_photographs_decode_alike_in_every_backend(
    photographs: Path, tmp_path: Path, encoding: str
) -> None:
    """Original sizes and sampling factors, converted, verified, and compared with Pillow."""
    whole = write_beton(
        photographs,
        tmp_path / "whole.beton",
        encoding=encoding,
        image_size=None,
        crop="none",
        progress=False,
    )
    square = write_beton(photographs, tmp_path / "square.beton", progress=False)
    whole.verify()
    square.verify()
    counts = [len(list(folder.iterdir())) for folder in sorted(photographs.iterdir())]
    assert square.class_counts == whole.class_counts == counts
    assert (square.image_size, whole.image_size) == (256, None)
    for source, crop in ((square, RandomCrop(224)), (whole, RandomResizedCrop(224))):
        pairing = reversed_pairing(source, source)
        ours, reference = (
            XMixLoader(
                source,
                source,
                pairing,
                batch_size=24,
                crop=crop,
                mix=False,
                dtype=torch.uint8,
                backend=backend,
            )
            for backend in ("host", "reference")
        )
        for one, other in zip(ours, reference, strict=True):
            assert torch.equal(one.target_labels, other.target_labels)
            difference = one.target_images.int() - other.target_images.int()
            assert difference.abs().max() <= 2
