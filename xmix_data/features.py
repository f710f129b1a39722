"""Features: a pre-trained backbone over a domain, summed up per class as they come.

Comes in: a beton and a model. Goes out: `Centroids`. Memory does not grow with the images.
"""

from __future__ import annotations

import hashlib
import os
import urllib.error
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from xmix_data.augment import CenterCrop
from xmix_data.beton import BetonLike, open_domain
from xmix_data.centroids import Centroids, CentroidSum
from xmix_data.loader import ImageLoader
from xmix_data.progress import Progress

__all__ = ["class_centroids", "load_backbone", "penultimate_features"]

_WITHOUT_LINEAR = "squeezenet"
"""Classifies by a convolution: what comes before it is no feature vector."""
_CROP = 224
"""Side of the centre crop, the test-time transform of the paper; smaller images are used whole."""


def class_centroids(
    beton: BetonLike | Sequence[BetonLike],
    model: str | nn.Module,
    *,
    device: str | torch.device = "cpu",
    batch_size: int = 256,
    num_workers: int | None = None,
    progress: bool = False,
) -> Centroids:
    """Mean penultimate feature vector of each class (Eq. 1), unnormalised, in eval mode.

    The test-time transform: the centre 224 x 224 of each stored image (the whole centre square
    where images are smaller), normalised with ImageNet's mean and standard deviation.

    Args:
        beton: A path, a `Beton`, or a list (several domains, or shards).
        model: Name of a torchvision classifier, taken with its default weights, or any module
            (B, 3, H, W) -> (B, anything). The features are the input of its last linear layer
            where that makes the output, else the output itself, averaged over space.
        device: Where the model runs.
        batch_size: Images of a batch.
        num_workers: Decoding threads.
        progress: Show progress on stderr.

    Returns:
        Centroids (C, D); classes without images have NaN and count 0.

    Raises:
        BetonError: The beton or one of its images is damaged.
        ValueError: No such model, or its features are no vectors.
    """
    name = model if isinstance(model, str) else type(model).__name__
    network = load_backbone(model, "default") if isinstance(model, str) else model
    domain = open_domain(beton)
    side = min(_CROP, int(domain.heights.min()), int(domain.widths.min()))
    total = CentroidSum(len(domain.class_names), device)
    weights_hash = state_hash(network)
    was_training = network.training
    network = network.to(device).eval()
    try:
        with (
            ImageLoader(
                domain.betons, batch_size=batch_size, crop=CenterCrop(side), device=device,
                num_workers=num_workers, rank=0, world_size=1,
            ) as loader,
            Progress("features", len(domain), enabled=progress) as bar,
        ):  # fmt: skip
            for images, labels in loader:
                total.add(penultimate_features(network, images), labels)
                bar.advance(len(images))
    finally:
        network.train(was_training)
    provenance = {
        "model": name,
        "weights_hash": weights_hash,
        "transform": f"center_crop_{side}",
        "betons": domain.fingerprints,
        "files": [beton.path.name for beton in domain.betons],
    }
    return total.centroids(domain.class_names, provenance)


@torch.no_grad()
def penultimate_features(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Features that a classifier's last linear layer sees.

    Args:
        model: A module in eval mode.
        images: (B, 3, H, W).

    Returns:
        (B, D): the input of the last linear layer where that layer makes the output; otherwise
        the output itself, averaged over space where it is (B, D, h, w).

    Raises:
        ValueError: The result is no vector per image.
    """
    last: dict[str, Any] = {}

    def remember(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: Any) -> None:
        last["input"], last["output"] = inputs[0], output

    hooks = [
        module.register_forward_hook(remember)
        for module in model.modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        output = model(images)
    finally:
        for hook in hooks:
            hook.remove()
    features = last["input"] if last and last["output"] is output else output
    if isinstance(features, torch.Tensor) and features.ndim == 4:
        features = features.mean((2, 3))
    if not isinstance(features, torch.Tensor) or features.shape != (
        len(images),
        features.shape[-1],
    ):
        shape = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features)
        raise ValueError(
            f"{type(model).__name__} makes {shape} of {len(images)} images; give a model that ends "
            "in a linear classifier or makes one feature vector an image"
        )
    return features


def load_backbone(name: str, weights: str | os.PathLike[str]) -> nn.Module:
    """A torchvision classifier by name, in eval mode.

    Args:
        name: E.g. ``"resnet50"``; see `torchvision.models.list_models`.
        weights: ``"default"`` (downloaded once), ``"none"`` (random, the same in every run), or
            a file with a state dict.

    Raises:
        ValueError: No such model, or the weights do not fit it.
        FileNotFoundError: The weights file does not exist.
        OSError: The weights could not be downloaded.
    """
    from torchvision import models

    known = [n for n in models.list_models(models) if not n.startswith(_WITHOUT_LINEAR)]
    if name not in known:
        close = [n for n in known if n[:4] == name[:4]] or ["resnet18", "resnet50"]
        raise ValueError(f"torchvision has no classifier {name!r}; there are {', '.join(close)}")
    if weights == "default":
        try:
            return models.get_model(name, weights="DEFAULT").eval()  # type: ignore[no-any-return]
        except (urllib.error.URLError, OSError) as error:
            raise OSError(
                f"the weights of {name} cannot be downloaded ({error}); check the network, or "
                "give a file (--weights FILE), or none (--weights none)"
            ) from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: nn.Module = models.get_model(name, weights=None)
    if weights != "none":
        _load_weights(network, Path(weights))
    return network.eval()


def _load_weights(network: nn.Module, path: Path) -> None:
    """Load a state dict; a classifier head of another size is left as it is, nothing else."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file; give a state dict, default or none")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises what the damage happens to lead to
        raise ValueError(
            f"{path}: no state dict that torch.load(weights_only=True) reads ({error})"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict):
        raise ValueError(f"{path}: holds a {type(state).__name__}, expected a state dict")
    state = {key.removeprefix("module."): value for key, value in state.items()}
    own = network.state_dict()
    head = _classifier_keys(network)
    state = {
        key: value
        for key, value in state.items()
        if key not in head or getattr(value, "shape", None) == own[key].shape
    }
    missing = [key for key in own if key not in state and key not in head]
    unexpected = [key for key in state if key not in own]
    wrong = [key for key in state if key in own and state[key].shape != own[key].shape]
    if missing or unexpected or wrong:
        kind, key = next(
            (kind, keys[0])
            for kind, keys in (
                ("lacks", missing),
                ("has unknown", unexpected),
                ("misshapes", wrong),
            )
            if keys
        )
        raise ValueError(
            f"{path}: {kind} {key!r}; the weights are not those of {type(network).__name__}"
        )
    network.load_state_dict(state, strict=False)


def _classifier_keys(network: nn.Module) -> set[str]:
    """State keys of the last linear layer."""
    linear = [name for name, m in network.named_modules() if isinstance(m, nn.Linear)]
    return {f"{linear[-1]}.weight", f"{linear[-1]}.bias"} if linear else set()


def state_hash(network: nn.Module) -> str:
    """SHA-256 of a module's parameters and buffers, names included."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        if isinstance(value, torch.Tensor):
            array = value.detach().cpu().contiguous().view(-1).view(torch.uint8)
            digest.update(array.numpy().data)
    return f"sha256:{digest.hexdigest()}"
