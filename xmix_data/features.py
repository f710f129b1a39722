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
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from xmix_data.backbones import Backbone, as_backbone, in_eval_mode, penultimate_features
from xmix_data.beton import Domain, DomainLike, open_domain
from xmix_data.errors import XMixError
from xmix_data.loader import ImageLoader, usable_device
from xmix_data.outputs import local_path
from xmix_data.pairing import Centroids, CentroidSum
from xmix_data.plan import CenterCrop, Crop, RandomResizedCrop
from xmix_data.progress import Progress
from xmix_data.ranks import from_first_process, require_group, sum_in_place

__all__ = ["class_centroids"]


_log = logging.getLogger("xmix_data")

_VERSION = 1
"""Version of how features are computed; another one finds nothing in earlier caches."""
_SECONDS_BETWEEN_SAVES = 30.0
_SAVE_SHARE = 0.02
"""Largest share of the time that goes into saving sums, which are large with many classes."""


def class_centroids(
    beton: DomainLike,
    model: str | nn.Module | Backbone,
    *,
    device: str | torch.device = "cpu",
    batch_size: int = 256,
    num_workers: int | None = None,
    crop: Crop | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Centroids:
    """Compute the mean penultimate feature vector of each class (Eq. 1), not normalised.

    The model is in evaluation mode meanwhile.

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
            224 x 224 for most. Where all images are smaller they are used whole, and enlarged only
            for models that take one size only; where some are, the centre square of every image is
            resized. Normalised with the model's mean and standard deviation.
        cache: A folder. Centroids that were computed before, of the same content by the same
            network, weights and transform, are read from it; interrupted work is taken up again.
            (A network is known by its `repr`: delete the cache after changing a ``forward``.)
        progress: Show progress on stderr.

    Returns:
        Centroids (C, D); classes without images have NaN and count 0.

    Raises:
        BetonError: The beton or one of its images is damaged.
        ValueError: No such model or device, its features are no vectors, or the cache is damaged
            or a URL.
        XMixError: Another process of the job ended, or has other images, weights or options.

    Examples:
        >>> pool = torch.nn.AdaptiveAvgPool2d(2)  # stands for a pre-trained model, e.g. "resnet50"
        >>> model = torch.nn.Sequential(pool, torch.nn.Flatten(), torch.nn.Linear(12, 10))
        >>> centroids = class_centroids("target.beton", model)
        >>> centroids.values.shape, centroids.counts
        ((4, 12), array([9, 7, 5, 6]))
    """
    device = usable_device(device)
    place = None if cache is None else local_path(cache)
    backbone = as_backbone(model)
    domain = open_domain(beton)
    if crop is None:
        crop = _test_crop(domain, backbone)
    folder = None if place is None else _folder(place)
    network, weights_hash = backbone.network, backbone.weights_hash
    with in_eval_mode(network.to(device)):
        parts = [
            _Extraction(
                part,
                backbone,
                crop,
                device,
                batch_size,
                num_workers,
                folder,
                progress,
                weights_hash,
            ).centroids()
            for part in domain.parts
        ]
    return Centroids.joined(parts)


def _test_crop(domain: Domain, backbone: Backbone) -> Crop:
    shorter = np.minimum(domain.heights, domain.widths)
    smallest, largest = int(shorter.min()), int(shorter.max())
    if smallest >= backbone.size:
        return CenterCrop(backbone.size)
    if backbone.one_size or smallest < largest:  # one small image must not decide for all
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
    """Extraction of one domain's centroids: read, or summed up by all processes of the job."""

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
        weights_hash: str,
    ) -> None:
        self._domain, self._backbone, self._device = domain, backbone, device
        self._progress = progress
        self._provenance = {
            "model": backbone.name,
            "weights_hash": weights_hash,
            "transform": repr(crop),
            "domains": domain.provenance,
        }
        self._loader = ImageLoader(
            domain,
            batch_size=batch_size,
            crop=crop,
            device=device,
            num_workers=num_workers,
            mean=backbone.mean,
            std=backbone.std,
        )
        require_group(self._loader.world_size)
        self._name = ", ".join(beton.path.name for beton in domain.betons)
        self._key = json.dumps(
            [
                _VERSION,
                backbone.name,
                repr(backbone.network),
                weights_hash,
                repr(crop),
                backbone.mean,
                backbone.std,
                [beton.fingerprint for beton in domain.betons],
            ]
        )
        self._finished = self._unfinished = None
        # Without a manifest nothing tells two contents of the same sizes apart.
        if folder is not None and all(beton.manifest is not None for beton in domain.betons):
            stem = hashlib.sha256(self._key.encode()).hexdigest()[:32]
            rank, world_size = self._loader.rank, self._loader.world_size
            # Which images are a rank's own depends on the batch size, where there are several.
            share = f"{rank}-of-{world_size}" + (f"-by-{batch_size}" if world_size > 1 else "")
            self._finished = folder / f"{stem}.npz"
            self._unfinished = folder / f"{stem}.{share}.unfinished.npz"

    def centroids(self) -> Centroids:
        """Return the centroids, read from the cache or computed now."""
        with self._loader:
            made: Centroids | None
            key, made = from_first_process((self._key, self._read()))
            if key != self._key:
                raise XMixError(
                    f"rank {self._loader.rank} has other images, weights or options than rank 0; "
                    "give all processes the same betons, and a model with the same weights"
                )
            if made is None:
                total = self._sum()
                sums = total.tensors()
                sum_in_place(sums)
                if not np.array_equal(sums[1].cpu().numpy(), self._counts()):
                    raise XMixError(
                        f"features of {self._name}: not every image was counted once; delete "
                        f"{self._unfinished or 'the cache'}, and run again"
                    )
                made = total.centroids(self._domain.class_names, self._provenance)
                self._keep(made)
        return made

    def _counts(self) -> npt.NDArray[np.int64]:
        """Count the images of each class, (C,) int64."""
        return np.bincount(self._domain.labels, minlength=len(self._domain.class_names))

    def _read(self) -> Centroids | None:
        """Read, in the first process, the centroids that were computed before, if there are any."""
        if self._finished is None or self._loader.rank > 0:
            return None
        try:
            made = Centroids.load(self._finished)
        except FileNotFoundError:
            return None
        if made.provenance.get("key") != self._key or not np.array_equal(
            made.counts, self._counts()
        ):
            raise ValueError(
                f"{self._finished}: is of other features than its name says; delete it, and run "
                "again"
            )
        _log.info("features of %s: read from %s", self._name, self._finished)
        return Centroids(made.values, made.counts, self._domain.class_names, self._provenance)

    def _keep(self, made: Centroids) -> None:
        if self._finished is None or self._unfinished is None:
            return
        if self._loader.rank == 0:
            keyed = {**self._provenance, "key": self._key}
            named = Centroids(made.values, made.counts, made.class_names, keyed)
            with _only_logged():
                named.save(self._finished)
        with contextlib.suppress(OSError):
            self._unfinished.unlink()

    def _sum(self) -> CentroidSum:
        """Sum up this process's share of the features."""
        total = CentroidSum(len(self._domain.class_names), self._device)
        loader, done = self._loader, 0
        if self._unfinished is not None:
            with contextlib.suppress(FileNotFoundError):
                done = total.load(self._unfinished, self._key)
                try:
                    loader.load_state_dict({**loader.state_dict(), "position": done})
                except ValueError as error:
                    raise ValueError(
                        f"{self._unfinished}: {error}; delete it, and run again"
                    ) from error
        saved, last_save, consistent = time.monotonic(), 0.0, True
        share = -(-len(self._domain) // loader.world_size)
        with Progress(f"features of {self._name}", share, enabled=self._progress) as bar:
            bar.advance(done // loader.world_size)
            try:
                for images, labels in loader:
                    own = len(images) - loader.last_padding
                    with _in_float32(self._device):
                        features = penultimate_features(self._backbone.network, images)
                    consistent = False  # an interruption may come between any two lines
                    total.add(features[:own], labels[:own])
                    done = loader.state_dict()["position"]
                    consistent = True
                    bar.advance(len(images))
                    waited = time.monotonic() - saved
                    if waited > max(_SECONDS_BETWEEN_SAVES, last_save / _SAVE_SHARE):
                        last_save = self._save(total, done)
                        saved = time.monotonic()
            except BaseException:
                if done and consistent:
                    self._save(total, done)
                raise
        if loader.world_size > 1:  # the others may not come to their end
            self._save(total, done)
        return total

    def _save(self, total: CentroidSum, done: int) -> float:
        """Save unfinished sums, and return the seconds that it took."""
        started = time.monotonic()
        if self._unfinished is not None:
            with _only_logged():
                total.save(self._unfinished, done, self._key)
        return time.monotonic() - started


@contextlib.contextmanager
def _in_float32(device: torch.device) -> Iterator[None]:
    """Compute in float32 as a CPU does: centroids of a GPU have the same name in a cache.

    By default torch lets a GPU round to TensorFloat-32 in convolutions; 10 bits are left.
    """
    settings: list[tuple[object, str, object]] = []
    if device.type == "cuda":
        matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        if hasattr(cudnn, "conv"):  # torch 2.9, where reading the older names may be an error
            settings = [(part, "fp32_precision", "ieee") for part in (matmul, cudnn.conv)]
        else:
            settings = [(part, "allow_tf32", False) for part in (matmul, cudnn)]
    with ExitStack() as stack, torch.autocast(device.type, enabled=False):
        for part, name, value in settings:
            stack.callback(setattr, part, name, getattr(part, name))
            setattr(part, name, value)
        yield


@contextlib.contextmanager
def _only_logged() -> Iterator[None]:
    """Log, and do not raise, that the cache cannot be written or that another job is writing it.

    So a cache that fails costs no work.
    """
    try:
        yield
    except OSError as error:
        _log.warning("features are not cached: %s", error)
