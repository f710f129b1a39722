"""Matching: which source classes, or images, each target class gets.

Comes in: cosines (n, m) of target and source classes, and how many images the source classes
have. Goes out: for each target class its source classes, or parts of them. A round is one-to-one.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from xmix_data.errors import MissingDependencyError

__all__ = [
    "COSINE_DECIMALS",
    "METHODS",
    "RANDOM_IMAGES",
    "Choice",
    "Cosines",
    "Part",
    "cosine_similarity",
    "grow",
    "random_images",
    "select_rounds",
    "shrink",
]


_log = logging.getLogger("xmix_data")

COSINE_DECIMALS = 6
"""Decimals that cosines are rounded to before they are compared.

So ties hardly depend on the summation order of a matrix product (CPU, GPU, number of threads).
"""
_GPU_SCRATCH = 64 << 20
"""Bytes of a GPU that FAISS keeps to work in; by default it takes more than a gigabyte."""
_CANDIDATES = 64
"""Number of source classes that are put in order at a time for a target class."""

Cosines = npt.NDArray[np.float32]
"""(n, m) cosines of target and source classes, rounded to `COSINE_DECIMALS`."""
Choice = Iterator[tuple[int, int]]
"""Pairs of class ids (target, source) in the order in which a method takes them."""
Part = tuple[int, int | None, int]
"""Part of a source class: class id, first image (``None``: all images), number of images."""


def cosine_similarity(
    target: npt.NDArray[np.float32], source: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Compute the cosines of all pairs by FAISS, on the GPU where FAISS finds one.

    Args:
        target: (n, D) float32 target centroids.
        source: (m, D) float32 source centroids.

    Returns:
        (n, m) float32 in -1 .. 1, rounded to 6 decimals.

    Raises:
        MissingDependencyError: FAISS is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise MissingDependencyError(
            f"FAISS cannot be imported ({error}): `pip install faiss-cpu`, or one built for GPUs"
        ) from error
    t, s = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (target, source))
    cosines = None
    if getattr(faiss, "get_num_gpus", int)() > 0:
        try:
            cosines = faiss.pairwise_distance_gpu(
                _gpu_resources(faiss), t, s, metric=faiss.METRIC_INNER_PRODUCT
            )
        except (RuntimeError, MemoryError) as error:  # another CUDA, no kernel, a full GPU
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
            _log.warning("FAISS cannot use the GPU, and computes on the CPU: %s", reason)
    if cosines is None:
        cosines = faiss.pairwise_distances(t, s, metric=faiss.METRIC_INNER_PRODUCT)
    np.round(cosines, COSINE_DECIMALS, out=cosines)
    return np.asarray(np.clip(cosines, -1, 1, out=cosines), np.float32)


@cache
def _gpu_resources(faiss: Any) -> Any:
    """Make, once, what FAISS works with on a GPU: it takes longer than the product itself."""
    resources = faiss.StandardGpuResources()
    resources.setPinnedMemory(0)  # 256 MB of the host, for copies that do not come
    resources.setTempMemory(_GPU_SCRATCH)
    return resources


def select_rounds(
    cosines: Cosines,
    counts: npt.NDArray[np.int64],
    choose: Callable[[Cosines, np.random.Philox], Choice],
    random: np.random.Philox,
    rounds: int | None,
    min_images: int | None,
    strict: bool,
) -> tuple[list[list[int]], int]:
    """Select source classes round after round, each from those that are still unused.

    Args:
        cosines: (n, m) cosines of target and source classes.
        counts: (m,) numbers of images of the source classes.
        choose: One of `METHODS`.
        random: Generator for ``choose``.
        rounds, min_images, strict: As for `pair_classes`.

    Returns:
        The source classes of each target class, and the number of rounds that were begun.

    Raises:
        ValueError: The source is exhausted before there are ``min_images``.
    """
    n, m = cosines.shape
    free = np.ones(m, bool)
    chosen: list[list[int]] = [[] for _ in range(n)]
    images = begun = 0
    while begun < (rounds or 1) if min_images is None else images < min_images:
        candidates = np.flatnonzero(free)
        if len(candidates) < (1 if strict else n):
            raise ValueError(
                f"the source is exhausted: {begun} rounds select {images} images, "
                f"{min_images} are wanted, and {len(candidates)} classes are left for {n} target "
                "classes; lower min_images or add source classes"
            )
        open_cosines = cosines if begun == 0 else cosines[:, candidates]
        for t, column in choose(open_cosines, random):
            s = int(candidates[column])
            chosen[t].append(s)
            free[s] = False
            images += int(counts[s])
            if strict and min_images is not None and images >= min_images:
                break
        begun += 1
    selected = np.flatnonzero(~free)
    for t, of_one in enumerate(chosen):
        if not of_one:  # left out by a strict stop
            of_one.append(int(selected[cosines[t, selected].argmax()]))
    return chosen, begun


def _greedy(cosines: Cosines, random: np.random.Philox) -> Choice:
    """Take the best remaining pair of all classes first; ties go by (target, source)."""
    free = np.ones(cosines.shape[1], bool)
    coming = [_most_similar(row, free) for row in cosines]
    heap = [(-float(cosines[t, s]), t, s) for t, of_one in enumerate(coming) for s in of_one[-1:]]
    heapq.heapify(heap)
    while heap:
        _, t, s = heapq.heappop(heap)
        if free[s]:
            free[s] = False
            yield t, s
            continue
        candidates = coming[t]
        while candidates and not free[candidates[-1]]:
            candidates.pop()
        if not candidates:
            candidates = coming[t] = _most_similar(cosines[t], free)
        if candidates:
            s = candidates[-1]
            heapq.heappush(heap, (-float(cosines[t, s]), t, s))


def _most_similar(row: npt.NDArray[np.float32], free: npt.NDArray[np.bool_]) -> list[int]:
    """Find the most similar free source classes of a target class, the best last; ties by id."""
    ids = np.flatnonzero(free)
    values = row[ids]
    if len(ids) > _CANDIDATES:
        # Those above a value are certain; of those that equal it, some would be left out.
        limit = np.partition(values, -_CANDIDATES)[-_CANDIDATES]
        best = np.flatnonzero(values > limit)
        if not len(best):
            best = values.argmax(axis=0, keepdims=True)
        ids, values = ids[best], values[best]
    order = np.lexsort((ids, -values))[::-1]
    result: list[int] = ids[order].tolist()
    return result


def _in_order(cosines: Cosines, random: np.random.Philox) -> Choice:
    free = np.ones(cosines.shape[1], bool)
    for t, row in enumerate(cosines[: len(free)]):
        s = int(np.where(free, row, -np.inf).argmax())
        free[s] = False
        yield t, s


def _optimal(cosines: Cosines, random: np.random.Philox) -> Choice:
    from scipy.optimize import linear_sum_assignment

    targets, sources = linear_sum_assignment(cosines, maximize=True)
    best_first = np.argsort(-cosines[targets, sources], kind="stable")
    return zip(targets[best_first].tolist(), sources[best_first].tolist(), strict=True)


def _random(cosines: Cosines, random: np.random.Philox) -> Choice:
    shuffled = np.argsort(random.random_raw(cosines.shape[1]), kind="stable")
    return zip(range(len(cosines)), shuffled.tolist(), strict=False)


METHODS: Mapping[str, Callable[[Cosines, np.random.Philox], Choice]] = {
    "greedy": _greedy,
    "in-order": _in_order,
    "optimal": _optimal,
    "random": _random,
}
"""Function that makes one round, by the name of the method."""
RANDOM_IMAGES = "random-images"
"""Name of the method that selects images and not classes."""


def random_images(
    targets: int, counts: npt.NDArray[np.int64], size: int, random: np.random.Philox
) -> list[list[Part]]:
    """Deal ``size`` random images of any class to the target classes, in equal shares.

    Args:
        targets: n, the number of target classes.
        counts: (m,) numbers of images of the source classes.
        size: Number of images to draw.
        random: Generator that draws them.

    Returns:
        The parts of source classes of each target class; no image is in two.

    Raises:
        ValueError: ``size`` is below n, or above the number of source images.
    """
    total = int(counts.sum())
    if not targets <= size <= total:
        raise ValueError(
            f"{size} random images are wanted for {targets} target classes, and the source has "
            f"{total}; change num_images"
        )
    labels = np.repeat(np.arange(len(counts)), counts)
    drawn = labels[np.argsort(random.random_raw(total), kind="stable")[:size]]
    taken = np.zeros(len(counts), np.int64)
    parts: list[list[Part]] = []
    for t in range(targets):
        share = np.bincount(
            drawn[size * t // targets : size * (t + 1) // targets], minlength=len(counts)
        )
        classes = np.flatnonzero(share)
        parts.append([(int(s), int(taken[s]), int(share[s])) for s in classes])
        taken += share
    return parts


def shrink(
    parts: Sequence[Sequence[Part]], size: int, random: np.random.Philox
) -> list[list[Part]]:
    """Keep ``size`` of the selected images, drawn at random, at least one a target class.

    Args:
        parts: The whole source classes of each target class.
        size: Number of images to keep, fewer than are selected.
        random: Generator that draws them.

    Returns:
        The parts that are kept; source classes without an image are left out.

    Raises:
        ValueError: ``size`` is below the number of target classes.
    """
    if size < len(parts):
        raise ValueError(
            f"num_images is {size}, and there are {len(parts)} target classes; "
            "give at least one image for each"
        )
    of_target = np.array([t for t, of_one in enumerate(parts) for _ in of_one])
    images = np.array([part[2] for of_one in parts for part in of_one])
    entry = np.repeat(np.arange(len(images)), images)
    shuffled = entry[np.argsort(random.random_raw(len(entry)), kind="stable")]
    _, one_each = np.unique(of_target[shuffled], return_index=True)
    rest = np.delete(np.arange(len(shuffled)), one_each)[: size - len(parts)]
    kept = np.bincount(shuffled[np.concatenate([one_each, rest])], minlength=len(images)).tolist()
    numbers = iter(kept)
    return [
        [
            (s, None if count == images else 0, count)
            for (s, _, images), count in zip(of_one, numbers, strict=False)
            if count
        ]
        for of_one in parts
    ]


def grow(
    parts: Sequence[list[Part]], cosines: Cosines, counts: npt.NDArray[np.int64], size: int
) -> None:
    """Add unused source classes, the most similar first, until ``size`` images are selected.

    Args:
        parts: The source classes of each target class; added to in place.
        cosines: (n, m) cosines of target and source classes.
        counts: (m,) numbers of images of the source classes.
        size: Number of images that there shall be; the last class gives what is missing.

    Raises:
        ValueError: The source has fewer images.
    """
    free = np.ones(cosines.shape[1], bool)
    free[[s for of_one in parts for s, *_ in of_one]] = False
    selected = sum(images for of_one in parts for *_, images in of_one)
    unused = np.flatnonzero(free)
    nearest = cosines[:, unused].argmax(axis=0)
    for place in np.lexsort((unused, nearest, -cosines[nearest, unused])):
        if selected == size:
            return
        s = int(unused[place])
        images = min(int(counts[s]), size - selected)
        parts[nearest[place]].append((s, None if images == counts[s] else 0, images))
        selected += images
    if selected < size:
        raise ValueError(
            f"num_images is {size}, and all {len(free)} source classes together have {selected}; "
            "lower it or add source classes"
        )
