"""The demo's network: small, and trained in seconds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

__all__ = ["SmallResNet"]


class SmallResNet(nn.Module):
    """Classify images (B, 3, H, W) by three residual blocks and a linear layer ``fc``."""

    def __init__(self, classes: int, widths: Sequence[int] = (24, 48, 96)) -> None:
        super().__init__()
        stem = nn.Conv2d(3, widths[0], 3, stride=2, padding=1, bias=False)
        self.body = nn.Sequential(
            stem,
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
            *(_Block(i, o) for i, o in zip((widths[0], *widths), widths, strict=False)),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.fc = nn.Linear(widths[-1], classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(self.body(images))
        return logits


class _Block(nn.Module):
    """Add two convolutions to a shortcut; halve the picture where the width changes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.residual(x) + self.shortcut(x))
