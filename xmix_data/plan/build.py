"""From a loader's options to its `Plan`: which samples an epoch has, and what each draws from.

Comes in: opened domains, a pairing, a crop. Goes out: a `Plan`; what does not fit together is a
`ValueError` that says what to change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from xmix_data.beton import Domain
from xmix_data.names import same_forms
from xmix_data.options import MAX_SEED, real_number, whole_number
from xmix_data.pairing import Pairing
from xmix_data.plan.crops import Crop
from xmix_data.plan.epoch import Plan
from xmix_data.plan.pool import SourcePool
from xmix_data.plan.rows import ImageSizes

__all__ = ["check_beta", "image_plan", "paired_plan", "with_crop", "with_mix"]


def paired_plan(
    target: Domain,
    source: Domain,
    pairing: Pairing,
    *,
    crop: Crop,
    flip: bool,
    alpha: float,
    beta: float,
    seed: int,
) -> Plan:
    """Plan epochs over a target domain, each image with one of its paired source classes.

    Args:
        target, source: The domains.
        pairing: A pairing of their classes.
        crop, flip, alpha, beta, seed: As `XMixLoader` takes them.

    Raises:
        ValueError: They do not fit together; says what to change.
    """
    check_beta(alpha, beta)
    pool = _pool(pairing, target, source)
    for label, count in enumerate(pool.counts):
        if count == 0 and np.any(target.labels == label):
            raise ValueError(
                f"the source classes paired with {target.class_names[label]!r} have no "
                "images; pair again with betons that have some"
            )
    samples = np.arange(len(target))
    _check_crop(crop, target, samples)
    _check_crop(crop, source, pool.images)
    return Plan(
        seed=whole_number("seed", seed, 0, MAX_SEED),
        samples=samples,
        target_labels=target.labels,
        target_sizes=_sizes(target),
        crop=crop,
        flip=flip,
        shuffle=True,
        pool=pool,
        alpha=alpha,
        beta=beta,
    )


def image_plan(
    domain: Domain,
    *,
    crop: Crop,
    flip: bool,
    shuffle: bool,
    classes: Sequence[str] | None,
    pairing: Pairing | None,
    seed: int,
) -> Plan:
    """Plan epochs over one domain, or over a part of it.

    Args:
        domain: The images.
        crop, flip, shuffle, classes, pairing, seed: As `ImageLoader` takes them.

    Raises:
        ValueError: They do not fit together; says what to change.
    """
    if classes is not None and pairing is not None:
        raise ValueError("classes and pairing both say what to load; give one")
    samples = np.arange(len(domain))
    if classes is not None:
        samples = _samples_of(domain, classes)
    if pairing is not None:
        samples = np.unique(_pool(pairing, None, domain).images)
    _check_crop(crop, domain, samples)
    return Plan(
        seed=whole_number("seed", seed, 0, MAX_SEED),
        samples=samples,
        target_labels=domain.labels,
        target_sizes=_sizes(domain),
        crop=crop,
        flip=flip,
        shuffle=shuffle,
    )


def with_crop(plan: Plan, crop: Crop, target: Domain, source: Domain | None) -> Plan:
    """Give a plan another crop; all that is drawn but the boxes stays.

    Raises:
        ValueError: An image is smaller than the crop.
    """
    _check_crop(crop, target, plan.samples)
    if plan.pool is not None and source is not None:
        _check_crop(crop, source, plan.pool.images)
    return replace(plan, crop=crop)


def with_mix(plan: Plan, alpha: float, beta: float, *, mixes: bool) -> Plan:
    """Give a plan λ of another distribution, or λ = 1.

    Raises:
        ValueError: ``alpha`` or ``beta`` is not above 0.
    """
    check_beta(alpha, beta)
    return replace(plan, alpha=alpha, beta=beta, mixes=mixes)


def check_beta(alpha: float, beta: float) -> None:
    """Check the parameters of a beta distribution.

    Raises:
        ValueError: ``alpha`` or ``beta`` is no number, or not above 0.
    """
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not 0 < real_number(name, value) < float("inf"):
            raise ValueError(f"{name} is {value}; Beta(alpha, beta) needs a number above 0")


def _pool(pairing: Pairing, target: Domain | None, source: Domain) -> SourcePool:
    draws = pairing.draws(target, source)
    return SourcePool(source.labels, draws, _sizes(source), pairing.seed)


def _sizes(domain: Domain) -> ImageSizes:
    return ImageSizes(domain.heights, domain.widths)


def _samples_of(domain: Domain, classes: Sequence[str]) -> npt.NDArray[np.int64]:
    names = set(same_forms(classes))
    for name in sorted(names.difference(domain.class_names)):
        files = ", ".join(beton.origin for beton in domain.betons)
        remedy = domain.unnamed or "see `xmix inspect`"
        raise ValueError(f"class {name!r} is not in {files}; {remedy}")
    wanted = [label for label, name in enumerate(domain.class_names) if name in names]
    samples = np.flatnonzero(np.isin(domain.labels, wanted))
    if not len(samples):
        raise ValueError(f"the classes {list(classes)} have no images; name others")
    return samples


def _check_crop(crop: Crop, domain: Domain, samples: npt.NDArray[np.int64]) -> None:
    if not isinstance(crop, Crop):
        raise ValueError(
            f"crop is {crop!r}; give RandomCrop, CenterCrop or RandomResizedCrop of xmix_data, "
            "e.g. RandomCrop(224)"
        )
    if crop.resizes:
        return
    height, width = crop.shape
    small = (domain.heights[samples] < height) | (domain.widths[samples] < width)
    if small.any():
        index = int(samples[np.argmax(small)])
        raise ValueError(
            f"{domain.describe(index)} is {domain.widths[index]}x{domain.heights[index]}, smaller "
            f"than the crop {width}x{height}; crop less, convert with a larger image size, or use "
            "RandomResizedCrop"
        )
