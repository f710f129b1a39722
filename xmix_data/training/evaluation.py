"""Top-1 accuracy over all processes of a job."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import distributed, nn

from xmix_data.backbones import in_eval_mode
from xmix_data.beton import Domain
from xmix_data.loader import ImageLoader
from xmix_data.methods import Outputs
from xmix_data.ranks import get_world_size, require_group

__all__ = ["evaluate", "require_trained"]


@torch.no_grad()
def evaluate(network: nn.Module, loader: ImageLoader) -> float:
    """Measure top-1 accuracy by the target logits, over all processes of the job.

    Args:
        network: Module from images to `Outputs`, or to target logits (B, n), as one that ends in
            a `JointHead`; put into evaluation mode meanwhile.
        loader: Loader of clean images, and labels that are the target's (``classes_from``); one
            pass is taken.

    Returns:
        The accuracy in 0 .. 1.

    Raises:
        ValueError: The loader or the network is of another kind, or their numbers of classes
            differ; says what to give.

    Examples:
        >>> head = torch.nn.Linear(12, 4)
        >>> head.bias.data[0] = 100  # a network that says "class 0" of every image
        >>> backbone = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())
        >>> loader = ImageLoader("target.beton", batch_size=8, crop=CenterCrop(32))
        >>> accuracy = evaluate(TransferNetwork(backbone, head), loader)
        >>> round(accuracy, 4)  # 9 of 27 images
        0.3333
    """
    if not isinstance(loader, ImageLoader):
        raise ValueError(
            f"loader is a {type(loader).__name__}; give an ImageLoader of the test set: "
            'ImageLoader("test.beton", batch_size=256, classes_from=training_loader)'
        )
    require_group(loader.world_size)
    counts = torch.zeros(2, dtype=torch.float64, device=loader.device)
    with in_eval_mode(network):
        for batch in loader:
            images, labels = batch.values() if isinstance(batch, dict) else batch
            own = len(images) - loader.last_padding
            logits = _target_logits(network(images), loader.num_target_classes)
            counts[0] += (logits.argmax(1) == labels)[:own].sum()
            counts[1] += own
    if get_world_size() > 1:
        distributed.all_reduce(counts)
    return float(counts[0] / counts[1])


def _target_logits(outputs: Any, classes: int) -> torch.Tensor:
    logits = outputs.target_logits if isinstance(outputs, Outputs) else outputs
    if not isinstance(logits, torch.Tensor):
        found = (
            "without a target head" if logits is None else f"that gives a {type(logits).__name__}"
        )
        raise ValueError(
            f"network is one {found}; give a module from images to a tensor of target logits, or "
            "a TransferNetwork with a target_head"
        )
    if logits.shape[1:] != (classes,):
        raise ValueError(
            f"the network gives logits of shape {tuple(logits.shape)}, and the loader counts "
            f"{classes} classes; make its last layer a JointHead or one of the target's classes, "
            "and give the ImageLoader classes_from=training_loader"
        )
    return logits


def require_trained(test: Domain, target: Domain) -> None:
    """Check that the classes of a test set were trained on.

    Raises:
        ValueError: A class with test images has no training image, or is in several betons.
    """
    present = {target.class_names[label] for label in np.unique(target.labels)}
    for label in np.unique(test.labels):
        name = test.class_names[label]
        if target.class_names.count(name) > 1:
            raise ValueError(
                f"test class {name!r} ({test.betons[0].origin}) is in several target betons; "
                "convert them with different class names"
            )
        if name not in present:
            remedy = test.unnamed or target.unnamed or "give the test set of the same classes"
            raise ValueError(
                f"test class {name!r} ({test.betons[0].origin}) has no training image in the "
                f"target; {remedy}"
            )
