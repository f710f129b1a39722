"""A vision transformer of three layers, as a folder that ``from_pretrained`` reads.

Comes in: the folder that `tiny.make` made. Goes out, in it: ``vit``.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import ViTConfig, ViTImageProcessor, ViTModel

SIDE = 64


def make(folder: Path) -> None:
    """Make it; the same weights each time."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=192,
        image_size=SIDE,
        patch_size=16,
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder / "vit")
    size = {"height": SIDE, "width": SIDE}
    ViTImageProcessor(size=size).save_pretrained(folder / "vit")
