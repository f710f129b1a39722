"""Top-1 accuracy over all processes of a job."""

from __future__ import annotations

import numpy as np
import torch
from torch import distributed, nn

from xmix_data.beton import Domain
from xmix_data.loader import ImageLoader
from xmix_data.ranks import get_world_size, require_group

__all__ = ["evaluate", "require_trained"]


@torch.no_grad()
def evaluate(network: nn.Module, loader: ImageLoader) -> float:
    """Measure top-1 accuracy by the target logits, over all processes of the job.

    Args:
        network: Module from images to `Outputs`; put into evaluation mode meanwhile.
        loader: Loader of clean images, and labels that are the target's (``classes_from``); one
            pass is taken.

    Returns:
        The accuracy in 0 .. 1.

    Examples:
        >>> head = torch.nn.Linear(12, 4)
        >>> head.bias.data[0] = 100  # a network that says "class 0" of every image
        >>> backbone = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())
        >>> loader = ImageLoader("target.beton", batch_size=8, crop=CenterCrop(32))
        >>> accuracy = evaluate(TransferNetwork(backbone, head), loader)
        >>> round(accuracy, 4)  # 9 of 27 images
        0.3333
    """
    require_group(loader.world_size)
    training = network.training
    network.eval()
    counts = torch.zeros(2, dtype=torch.float64, device=loader.device)
    for images, labels in loader:
        own = len(images) - loader.last_padding
        right = network(images).target_logits.argmax(1) == labels
        counts[0] += right[:own].sum()
        counts[1] += own
    network.train(training)
    if get_world_size() > 1:
        distributed.all_reduce(counts)
    return float(counts[0] / counts[1])


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
