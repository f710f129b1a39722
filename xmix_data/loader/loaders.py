"""The loaders: `XMixLoader` (target mixed with its paired source) and `ImageLoader` (one domain).

Comes in: betons, a pairing, and what to crop. Goes out: batches on the device.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from xmix_data.backends import Spec
from xmix_data.batch import MixedBatch, PairedBatch
from xmix_data.beton import ClassList, DomainLike, class_list, ids_in_domain, open_domain
from xmix_data.loader.base import Loader, Option
from xmix_data.loader.options import class_names, field_names, one_of
from xmix_data.normalise import IMAGENET_MEAN, IMAGENET_STD
from xmix_data.options import real_number, truth
from xmix_data.pairing import Pairing, log_provenance, open_pairing
from xmix_data.plan import CenterCrop, Crop, PlanRows, RandomCrop, image_plan, paired_plan, with_mix

__all__ = ["ImageLoader", "XMixLoader"]

_SOFT_FIELDS = ("images", "soft_labels")
_IMAGE_FIELDS = ("images", "labels")


class XMixLoader(Loader[Any]):
    """Target images, each mixed with a random image of its paired source class (XMixup).

    One epoch is one pass over the target. Batches belong to the caller.

    Args:
        target: The target domain: a path, a `Beton`, or a list (several domains, or shards).
        source: The source domain, likewise.
        pairing: A `Pairing` or the path of one.
        batch_size: Number of images of a batch, in each process.
        crop: Crop of both images, drawn independently.
        flip: Mirror each image with probability 1/2, independently.
        alpha, beta: λ ~ Beta(alpha, beta) per sample; λ weighs the target (Eq. 4). Its mean is
            alpha / (alpha + beta). Of sources that are not close to the target mix in little, as
            alpha=8 does: alpha=1 costs accuracy there (docs/methods.md).
        labels: ``"pair"`` yields `MixedBatch`; ``"dict"`` its fields by name, for frameworks that
            look for names; ``"soft"`` yields (images, soft_labels) with soft_labels (B, n + m)
            float32, for any criterion.
        names: A name for each field of a batch, in their order: batches are dicts with these keys,
            as in ``labels="soft", names=("pixel_values", "labels")``. ``None``: as ``labels`` says.
        label_smoothing: With soft labels: the share, in [0, 1), of each label that is spread over
            the classes of its own set, see `MixedBatch.soft_labels`.
        memory_format: ``torch.channels_last`` or ``torch.contiguous_format``, which is a copy.
        mix: ``False`` yields `PairedBatch`: both images, unmixed.
        device: Device that batches arrive on.
        dtype: float32, float16 or bfloat16; with ``mix=False`` also uint8, the crops as decoded.
        mean, std: Mean and standard deviation of each channel, in 0..1 units.
        seed: Seed, 0 .. 2**64 - 1; with the epoch it decides everything random.
        num_workers: Number of decoding threads; default the process's cores / the processes on
            this machine.
        prefetch: Number of batches made ahead.
        drop_last: Leave out an incomplete last batch; otherwise it is padded to a multiple of the
            number of processes from the start of the epoch's order.
        on_error: ``"raise"`` stops at a damaged image and names it. ``"replace"`` takes another
            image of its class (of a source class: one that the pairing draws), the same for any
            number of threads and ranks; names it in the log, counts it in ``stats()["replaced"]``,
            and stops above 1 % of this process's images of an epoch, and ten, in either domain.
        rank, world_size: Rank of this process, and number of processes; found from
            torch.distributed unless given.
        backend: ``"host"``, compiled kernels on this machine's cores; ``"dali"``: NVIDIA DALI
            decodes the JPEGs, on the GPU if ``device`` is one; ``"auto"``: one of these, said in
            the log; or ``"reference"``, plain and slow. (``"ffcv"`` and ``"torch"``, the earlier
            names of the first and the last, are accepted.)

    Raises:
        FileNotFoundError: A beton or the pairing does not exist.
        BetonError: A beton is damaged (at construction, or while iterating for an image).
        MissingDependencyError: The backend is not installed; says how to install it.
        ValueError: Options or files do not fit together; says what to change.

    Examples:
        >>> loader = XMixLoader(
        ...     "target.beton", "source.beton", "pairing.json", batch_size=8, crop=RandomCrop(32)
        ... )
        >>> for batch in loader:  # one epoch
        ...     print(batch.images.shape, batch.target_labels.shape, batch.lam.shape)
        torch.Size([8, 3, 32, 32]) torch.Size([8]) torch.Size([8])
        torch.Size([8, 3, 32, 32]) torch.Size([8]) torch.Size([8])
        torch.Size([8, 3, 32, 32]) torch.Size([8]) torch.Size([8])
        >>> len(loader), loader.epoch, loader.num_target_classes, loader.num_source_classes
        (3, 1, 4, 6)
    """

    alpha = Option()
    beta = Option()
    labels = Option()
    label_smoothing = Option()
    names = Option()
    mix = Option()

    def __init__(
        self,
        target: DomainLike,
        source: DomainLike,
        pairing: Pairing | str | os.PathLike[str],
        *,
        batch_size: int,
        crop: Crop = RandomCrop(224),
        flip: bool = True,
        alpha: float = 1.0,
        beta: float = 1.0,
        labels: str = "pair",
        names: Sequence[str] | None = None,
        label_smoothing: float = 0.0,
        memory_format: torch.memory_format = torch.channels_last,
        mix: bool = True,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        seed: int = 0,
        num_workers: int | None = None,
        prefetch: int = 3,
        drop_last: bool = True,
        on_error: str = "raise",
        rank: int | None = None,
        world_size: int | None = None,
        backend: str = "host",
    ) -> None:
        flip, mix = truth("flip", flip), truth("mix", mix)
        one_of("labels", labels, ("pair", "soft", "dict"))
        if labels == "soft" and not mix:
            raise ValueError("soft labels belong to mixed images; set mix=True or labels='pair'")
        fields: tuple[str, ...] = MixedBatch._fields if mix else PairedBatch._fields
        names = field_names(names, _SOFT_FIELDS if labels == "soft" else fields)
        if not 0 <= real_number("label_smoothing", label_smoothing) < 1:
            raise ValueError(f"label_smoothing is {label_smoothing}; give a share in [0, 1)")
        if label_smoothing and labels != "soft":
            raise ValueError(
                f"label_smoothing is of soft labels, and labels is {labels!r}; set labels='soft', "
                "or smooth in your loss"
            )
        if dtype == torch.uint8 and mix:
            raise ValueError("mixed images are no uint8; choose a float dtype, or set mix=False")
        targets, sources = open_domain(target), open_domain(source)
        pairing = open_pairing(pairing)
        plan = paired_plan(
            targets, sources, pairing, crop=crop, flip=flip, alpha=alpha, beta=beta, seed=seed
        )
        log_provenance(pairing, targets, sources)
        self._pairing = pairing
        options = {
            "batch_size": batch_size,
            "crop": crop,
            "flip": flip,
            "alpha": alpha,
            "beta": beta,
            "labels": labels,
            "names": names,
            "label_smoothing": label_smoothing,
            "memory_format": memory_format,
            "mix": mix,
            "device": device,
            "dtype": dtype,
            "mean": mean,
            "std": std,
            "seed": seed,
            "num_workers": num_workers,
            "prefetch": prefetch,
            "drop_last": drop_last,
            "on_error": on_error,
            "rank": rank,
            "world_size": world_size,
            "backend": backend,
        }
        super().__init__(plan, targets, sources, options)

    @property
    def pairing(self) -> Pairing:
        """Which source classes each target class is mixed with."""
        return self._pairing

    def set_mix(
        self,
        alpha: float | None = None,
        beta: float | None = None,
        enabled: bool | None = None,
    ) -> None:
        """Mix otherwise from the next pass on.

        Without mixing images are those of `ImageLoader`, λ is 1, labels keep their form, and no
        byte of a source image is read. As with `set_crop`, a state does not hold it, a copy does,
        and to set what is set already changes nothing.

        Args:
            alpha, beta: λ ~ Beta(alpha, beta); ``None`` leaves it as it is.
            enabled: Whether images are mixed; ``None`` leaves it as it is.

        Raises:
            ValueError: The loader gives images unmixed, or alpha or beta is not above 0.
            RuntimeError: The loader is closed.
        """
        self._require_open()
        if not self.mix:
            raise ValueError(
                "set_mix is about mixed images, and this loader was made with mix=False; "
                "make a new loader"
            )
        alpha = self.alpha if alpha is None else alpha
        beta = self.beta if beta is None else beta
        mixes = self._plan.mixes if enabled is None else truth("enabled", enabled)
        plan = with_mix(self._plan, alpha, beta, mixes=mixes)
        if (alpha, beta, mixes) != (self.alpha, self.beta, self._plan.mixes):
            self._change({"alpha": alpha, "beta": beta}, plan)

    def _spec(self) -> Spec:
        reads_source = self._plan.mixes or not self.mix
        return Spec(
            target=self._target,
            source=self._source if reads_source else None,
            crop=self.crop,
            mix=self.mix and self._plan.mixes,
            **self._shared_spec(),
        )

    def _packed_options(self) -> dict[str, Any]:
        pairing = replace(self._pairing, similarity=None)  # a matrix to look at
        domains = {"target": self._target, "source": self._source}
        return {**domains, "pairing": pairing, **self._given}

    def _packed_state(self) -> dict[str, Any]:
        return {**super()._packed_state(), "mixes": self._plan.mixes}

    def _restore(self, state: dict[str, Any]) -> None:
        if not state["mixes"]:
            self.set_mix(enabled=False)
        super()._restore(state)  # which may close it

    def _batch(self, rows: PlanRows, images: tuple[torch.Tensor, ...]) -> Any:
        assert self._source is not None and rows.source is not None
        source_ids = self._source.labels[rows.source]
        labels = self._target.labels[rows.target], source_ids
        if not self.mix:
            domains = self._source.domain_of_class(source_ids)
            batch: Any = PairedBatch(*images, *self._on_device(*labels, domains, rows.lam))
        else:
            batch = MixedBatch(*images, *self._on_device(*labels, rows.lam))
        if self.labels == "soft":
            both = self.num_target_classes, self.num_source_classes
            batch = batch.images, batch.soft_labels(*both, self.label_smoothing)
        elif self.labels == "dict" and self.names is None:
            return batch._asdict()
        return self._by_name(batch)


class ImageLoader(Loader[Any]):
    """Images of one domain with their labels: for evaluation, features and plain fine-tuning.

    Yields (images, labels): (B, 3, H, W) channels_last in ``dtype``, and (B,) int64.

    Args:
        beton: A path, a `Beton`, or a list (several domains, or shards).
        batch_size: Number of images of a batch, in each process.
        crop: Crop of each image.
        flip: Mirror each image with probability 1/2.
        shuffle: A new order each epoch; otherwise the beton's.
        classes: Names of the classes to load; the labels stay the beton's. Default all.
        classes_from: Count the labels as another data set does, found by class name: a beton (for
            a test set the one of its training set), its path, a `Domain`, a loader, or a list of
            names. ``num_target_classes`` and ``dataset`` are then of its classes. For a beton
            without class names a list is the names of its ids.
        names: Two names: batches are dicts of images and labels with these keys.
        pairing: Load only the source images that this pairing selects (its auxiliary set); the
            beton is its source.
        drop_last: As for `XMixLoader`, but off.
        memory_format, device, dtype, mean, std, seed, num_workers, prefetch, on_error, rank,
            world_size, backend: As for `XMixLoader`; dtype uint8 gives the crops as decoded.

    Raises:
        FileNotFoundError: The beton does not exist.
        BetonError: The beton is damaged (at construction, or while iterating for an image).
        ValueError: Options do not fit together, or ``classes_from`` lacks a class that has images
            to load; says what to change.

    Examples:
        >>> loader = ImageLoader("target.beton", batch_size=8, crop=CenterCrop(32))
        >>> for images, labels in loader:
        ...     print(images.shape, labels.shape)
        torch.Size([8, 3, 32, 32]) torch.Size([8])
        torch.Size([8, 3, 32, 32]) torch.Size([8])
        torch.Size([8, 3, 32, 32]) torch.Size([8])
        torch.Size([3, 3, 32, 32]) torch.Size([3])
        >>> names = ["other", "t3", "t2", "t1", "t0"]
        >>> loader = ImageLoader("target.beton", batch_size=27, crop=CenterCrop(32),
        ...     classes_from=names)
        >>> _, labels = next(iter(loader))
        >>> labels.bincount().tolist(), loader.num_target_classes
        ([0, 6, 5, 7, 9], 5)
    """

    classes = Option()
    names = Option()
    shuffle = Option()

    def __init__(
        self,
        beton: DomainLike,
        *,
        batch_size: int,
        crop: Crop = CenterCrop(224),
        flip: bool = False,
        shuffle: bool = False,
        classes: Sequence[str] | None = None,
        pairing: Pairing | str | os.PathLike[str] | None = None,
        classes_from: Any = None,
        names: Sequence[str] | None = None,
        drop_last: bool = False,
        memory_format: torch.memory_format = torch.channels_last,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        seed: int = 0,
        num_workers: int | None = None,
        prefetch: int = 3,
        on_error: str = "raise",
        rank: int | None = None,
        world_size: int | None = None,
        backend: str = "host",
    ) -> None:
        flip, shuffle = truth("flip", flip), truth("shuffle", shuffle)
        classes = class_names(classes)
        domain = open_domain(beton)
        pairing = None if pairing is None else open_pairing(pairing)
        plan = image_plan(
            domain,
            crop=crop,
            flip=flip,
            shuffle=shuffle,
            classes=classes,
            pairing=pairing,
            seed=seed,
        )
        self._pairing = pairing
        self._counted_by: ClassList | None = None
        if classes_from is not None:
            self._counted_by = class_list(classes_from)
            self._ids = ids_in_domain(self._counted_by, domain, plan.target_labels[plan.samples])
        options = {
            "batch_size": batch_size,
            "crop": crop,
            "flip": flip,
            "shuffle": shuffle,
            "classes": classes,
            "names": field_names(names, _IMAGE_FIELDS),
            "drop_last": drop_last,
            "memory_format": memory_format,
            "device": device,
            "dtype": dtype,
            "mean": mean,
            "std": std,
            "seed": seed,
            "num_workers": num_workers,
            "prefetch": prefetch,
            "on_error": on_error,
            "rank": rank,
            "world_size": world_size,
            "backend": backend,
        }
        super().__init__(plan, domain, None, options)

    @property
    def pairing(self) -> Pairing | None:
        """The pairing whose source images are loaded; ``None``: all of them, or some classes."""
        return self._pairing

    @property
    def classes_from(self) -> list[str] | None:
        """Name of each label, where another data set's are taken; ``None``: the beton's own."""
        return None if self._counted_by is None else list(self._counted_by.names)

    def _label_names(self) -> list[str]:
        return self._target.class_names if self._counted_by is None else self._counted_by.names

    def _delivered_labels(self, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return labels if self._counted_by is None else self._ids[labels]

    def _spec(self) -> Spec:
        return Spec(
            target=self._target, source=None, crop=self.crop, mix=False, **self._shared_spec()
        )

    def _packed_options(self) -> dict[str, Any]:
        pairing = None if self._pairing is None else replace(self._pairing, similarity=None)
        domain = {"beton": self._target, "classes_from": self._counted_by}
        return {**domain, "pairing": pairing, **self._given}

    def _batch(self, rows: PlanRows, images: tuple[torch.Tensor, ...]) -> Any:
        (labels,) = self._on_device(self._delivered_labels(self._target.labels[rows.target]))
        return self._by_name((images[0], labels))
