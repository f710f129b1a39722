"""Features: a pre-trained backbone over a domain, summed up per class as they come.

Comes in: betons and a backbone. Goes out: `Centroids`. Memory does not grow with the images. The
processes of a torch.distributed job share the work. What was summed up is kept in a cache, if one
is given: finished centroids for the next pairing, and unfinished sums to go on with.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

from xmix_data.augment import CenterCrop, Crop, RandomResizedCrop
from xmix_data.backbones import Backbone, load_backbone, penultimate_features
from xmix_data.beton import BetonLike, Domain, open_domain
from xmix_data.centroids import Centroids, CentroidSum
from xmix_data.errors import XMixError
from xmix_data.loader import ImageLoader
from xmix_data.progress import Progress

__all__ = ["class_centroids"]

_log = logging.getLogger("xmix_data")

_SECONDS_BETWEEN_SAVES = 30.0
_SAVE_SHARE = 0.02
"""Sums of many classes are large: saving them takes at most this share of the time."""


def class_centroids(
    beton: BetonLike | Sequence[BetonLike],
    model: str | nn.Module | Backbone,
    *,
    device: str | torch.device = "cpu",
    batch_size: int = 256,
    num_workers: int | None = None,
    crop: Crop | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Centroids:
    """Mean penultimate feature vector of each class (Eq. 1), unnormalised, in eval mode.

    Under torch.distributed every process calls it and gets the centroids of all images.

    Args:
        beton: A path, a `Beton`, or a list (several domains, or shards).
        model: Name of a torchvision classifier (of timm: ``"timm:NAME"``), taken with its default
            weights; a `Backbone`; or any module (B, 3, H, W) -> (B, anything). The features are
            the input of its last linear layer where that makes the output, else the output itself,
            averaged over space.
        device: Where the model runs.
        batch_size: Images of a batch, in each process.
        num_workers: Decoding threads.
        crop: The test-time transform; default the centre square that the model was trained for,
            224 x 224 for most. Smaller images are used whole, and enlarged only for models that
            take one size only. Normalised with the model's mean and standard deviation.
        cache: A folder. Centroids that were computed before, of the same content by the same
            weights and transform, are read from it; interrupted work is taken up again.
        progress: Show progress on stderr.

    Returns:
        Centroids (C, D); classes without images have NaN and count 0.

    Raises:
        BetonError: The beton or one of its images is damaged.
        ValueError: No such model, its features are no vectors, or the cache is damaged.
        XMixError: Another process of the job ended.
    """
    backbone = _backbone(model)
    domain = open_domain(beton)
    if crop is None:
        crop = _test_crop(domain, backbone)
    folder = None if cache is None else _folder(Path(cache))
    network = backbone.network
    modes = [(module, module.training) for module in network.modules()]
    backbone.network.to(device).eval()
    try:
        parts = [
            _Extraction(
                part,
                backbone,
                crop,
                torch.device(device),
                batch_size,
                num_workers,
                folder,
                progress,
            ).centroids()
            for part in domain.parts
        ]
    finally:
        for module, training in modes:
            module.training = training
    return Centroids.joined(parts)


def _backbone(model: str | nn.Module | Backbone) -> Backbone:
    if isinstance(model, Backbone):
        return model
    if isinstance(model, str):
        return load_backbone(model, "default")
    return Backbone(model, type(model).__name__)


def _test_crop(domain: Domain, backbone: Backbone) -> Crop:
    smallest = min(int(domain.heights.min()), int(domain.widths.min()))
    if smallest >= backbone.size:
        return CenterCrop(backbone.size)
    if backbone.one_size:  # all of a square image
        return RandomResizedCrop(backbone.size, scale=(1, 1), ratio=(1, 1))
    return CenterCrop(smallest)


def _folder(path: Path) -> Path | None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _log.warning("features are not cached: %s: %s", path, error.strerror)
        return None
    return path


class _Extraction:
    """The centroids of one domain: read, or summed up by all processes of the job."""

    def __init__(
        self,
        domain: Domain,
        backbone: Backbone,
        crop: Crop,
        device: torch.device,
        batch_size: int,
        num_workers: int | None,
        folder: Path | None,
        progress: bool,
    ) -> None:
        self._domain, self._backbone, self._device = domain, backbone, device
        self._progress = progress
        self._provenance = {
            "model": backbone.name,
            "weights_hash": backbone.weights_hash,
            "transform": repr(crop),
            "domains": domain.provenance,
        }
        self._loader = ImageLoader(
            domain.betons, batch_size=batch_size, crop=crop, device=device,
            num_workers=num_workers, mean=backbone.mean, std=backbone.std,
        )  # fmt: skip
        self._name = ", ".join(beton.path.name for beton in domain.betons)
        kind = type(backbone.network)
        content = [beton.fingerprint for beton in domain.betons]
        self._key = json.dumps([
            f"{kind.__module__}.{kind.__qualname__}", backbone.weights_hash, repr(crop),
            backbone.mean, backbone.std, content,
        ])  # fmt: skip
        self._finished = self._unfinished = None
        # Without a manifest nothing tells two contents of the same sizes apart.
        if folder is not None and all(beton.manifest is not None for beton in domain.betons):
            stem = hashlib.sha256(self._key.encode()).hexdigest()[:32]
            rank, world_size = self._loader.rank, self._loader.world_size
            self._finished = folder / f"{stem}.npz"
            self._unfinished = folder / f"{stem}.{rank}-of-{world_size}.unfinished.npz"

    def centroids(self) -> Centroids:
        with self._loader, _named_loss_of_a_process():
            made = self._read() if self._loader.rank == 0 else None
            made = _from_first_process(made)
            if made is None:
                total = self._sum()
                _add_up(total.tensors())
                made = total.centroids(self._domain.class_names, self._provenance)
                self._keep(made)
        return made

    def _read(self) -> Centroids | None:
        if self._finished is None or not self._finished.exists():
            return None
        made = Centroids.load(self._finished)
        if made.class_names != self._domain.class_names or made.provenance.get("key") != self._key:
            raise ValueError(
                f"{self._finished}: is of other features than its name says; delete it, and run "
                "again"
            )
        _log.info("features of %s: read from %s", self._name, self._finished)
        return Centroids(made.values, made.counts, made.class_names, self._provenance, made.domains)

    def _keep(self, made: Centroids) -> None:
        if self._finished is None or self._unfinished is None:
            return
        if self._loader.rank == 0:
            keyed = {**self._provenance, "key": self._key}
            Centroids(made.values, made.counts, made.class_names, keyed).save(self._finished)
        self._unfinished.unlink(missing_ok=True)

    def _sum(self) -> CentroidSum:
        """This process's share of the sums."""
        total = CentroidSum(len(self._domain.class_names), self._device)
        loader, done = self._loader, 0
        if self._unfinished is not None and self._unfinished.exists():
            done = total.load(self._unfinished, self._key)
            loader.load_state_dict({**loader.state_dict(), "position": done})
        saved, last_save = time.monotonic(), 0.0
        share = -(-len(self._domain) // loader.world_size)
        with Progress(f"features of {self._name}", share, enabled=self._progress) as bar:
            bar.advance(done // loader.world_size)
            try:
                for images, labels in loader:
                    own = len(images) - loader.last_padding
                    features = penultimate_features(self._backbone.network, images)
                    total.add(features[:own], labels[:own])
                    done = loader.state_dict()["position"]
                    bar.advance(len(images))
                    waited = time.monotonic() - saved
                    if waited > max(_SECONDS_BETWEEN_SAVES, last_save / _SAVE_SHARE):
                        last_save = self._save(total, done)
                        saved = time.monotonic()
            except BaseException:
                if done:
                    self._save(total, done)
                raise
        if loader.world_size > 1:  # the others may not come to their end
            self._save(total, done)
        return total

    def _save(self, total: CentroidSum, done: int) -> float:
        """Seconds that it took."""
        started = time.monotonic()
        if self._unfinished is not None:
            total.save(self._unfinished, done, self._key)
        return time.monotonic() - started


def _in_a_job() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _from_first_process(value: Any) -> Any:
    if not _in_a_job():
        return value
    values = [value]
    distributed.broadcast_object_list(values)
    return values[0]


def _add_up(tensors: Sequence[torch.Tensor]) -> None:
    """Sum tensors over all processes, in place."""
    if not _in_a_job():
        return
    on_gpu = distributed.get_backend() == "nccl"
    for tensor in tensors:
        moved = tensor.cuda() if on_gpu else tensor.cpu()
        distributed.all_reduce(moved)
        tensor.copy_(moved)


@contextlib.contextmanager
def _named_loss_of_a_process() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not _in_a_job() or isinstance(error, XMixError):
            raise
        raise XMixError(
            f"rank {distributed.get_rank()} lost the other processes of this job "
            f"({str(error).splitlines()[0]}); see what they say, and run again: what was computed "
            "so far is in the cache, if there is one"
        ) from error
