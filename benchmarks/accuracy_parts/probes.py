"""What fine-tuning leaves of the source, and what it does to features (Table 2 and Fig. 2).

Comes in: a network and betons. Goes out: the accuracy of a linear probe on the source's classes,
and the singular values of batches of target features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from xmix_data import ImageLoader
from xmix_data.backbones import penultimate_features

__all__ = ["features_of", "probed"]

Features = tuple[torch.Tensor, torch.Tensor]
"""(N, D) features and (N,) labels."""
BATCH = 48
STEPS = 300


def probed(
    train: Features,
    test: Features,
    target: Features,
    groups: Mapping[str, Sequence[int]],
    device: str,
) -> dict[str, Any]:
    """Accuracy of the probe among the source classes of each group, and the singular values."""
    features, _ = target
    batches = features[torch.randperm(len(features), generator=torch.Generator().manual_seed(0))]
    whole = [batch for batch in batches.split(BATCH) if len(batch) == BATCH]
    values = torch.stack([torch.linalg.svdvals(batch) for batch in whole]).mean(0)
    return {
        "probe": {
            group: probe(train, test, ids, device) for group, ids in groups.items() if len(ids)
        },
        "singular_values": values.tolist(),
    }


@torch.no_grad()
def features_of(network: nn.Module, path: Path | Sequence[Path], **options: Any) -> Features:
    """Features of the images of betons; options are those of `ImageLoader`."""
    network = deepcopy(network).eval().to(options.get("device", "cpu"))
    with ImageLoader(path, batch_size=256, **options) as loader:
        pairs = [(penultimate_features(network, x).cpu(), y.cpu()) for x, y in loader]
    features, labels = (torch.cat(part) for part in zip(*pairs, strict=True))
    return features, labels


def probe(train: Features, test: Features, ids: Sequence[int], device: str) -> float:
    """Accuracy of multinomial regression on standardised features, among some classes."""
    position = torch.full((int(train[1].max()) + 1,), -1)
    position[list(ids)] = torch.arange(len(ids))

    def of(part: Features) -> Features:
        kept = position[part[1]] >= 0
        return part[0][kept].to(device), position[part[1][kept]].to(device)

    (x, y), (x_test, y_test) = of(train), of(test)
    mean, std = x.mean(0), x.std(0) + 1e-6
    x, x_test = (x - mean) / std, (x_test - mean) / std
    torch.manual_seed(0)
    layer = nn.Linear(x.shape[1], len(ids)).to(device)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=STEPS, history_size=10)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(layer(x), y) + 1e-3 * layer.weight.square().sum() / 2
        loss.backward()
        return loss

    optimizer.step(closure)
    return float((layer(x_test).argmax(1) == y_test).float().mean())
