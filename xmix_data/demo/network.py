"""The demo's network: small, and trained in seconds."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from xmix_data import Beton, CenterCrop, ImageLoader, MixedBatch, xmixup_loss
from xmix_data.demo.data import CROP

__all__ = ["SmallResNet", "TwoHeads", "accuracy_of", "mixed_loss", "plain_loss", "train"]


class SmallResNet(nn.Module):
    """A residual network of three blocks with a linear classifier ``fc``."""

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
    """Two convolutions beside a shortcut; halves the picture where the width changes."""

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


class TwoHeads(nn.Module):
    """A trained backbone with a new target head; its own classifier is the source head."""

    def __init__(self, backbone: SmallResNet, target_classes: int) -> None:
        super().__init__()
        self.body = deepcopy(backbone.body)
        self.source_head = deepcopy(backbone.fc)
        self.target_head = nn.Linear(backbone.fc.in_features, target_classes)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Target logits (B, n) and source logits (B, m)."""
        features = self.body(images)
        return self.target_head(features), self.source_head(features)


def plain_loss(network: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Cross-entropy of the target head."""
    images, labels = batch
    return functional.cross_entropy(network(images)[0], labels)


def mixed_loss(network: nn.Module, batch: MixedBatch) -> torch.Tensor:
    """XMixup's loss of both heads."""
    target_logits, source_logits = network(batch.images)
    return xmixup_loss(target_logits, source_logits, batch)


def train(
    network: nn.Module,
    loader: Any,
    loss_of: Callable[[Any], torch.Tensor],
    iterations: int,
    learning_rate: float,
) -> None:
    """SGD with momentum; the learning rate falls from the given one to 0 along a cosine."""
    network.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(
        network.parameters(), learning_rate, momentum=0.9, weight_decay=1e-4, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    for batch in itertools.islice(_endless(loader), iterations):
        optimizer.zero_grad()
        loss_of(batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()


def _endless(loader: Iterable[Any]) -> Iterator[Any]:
    while True:
        yield from loader


@torch.no_grad()
def accuracy_of(network: TwoHeads, test: Beton) -> float:
    """Share of the test images whose class the target head finds."""
    network.eval()
    right = 0
    with ImageLoader(test, batch_size=256, crop=CenterCrop(CROP)) as loader:
        for images, labels in loader:
            right += int((network(images)[0].argmax(1) == labels).sum())
    return right / len(test)
