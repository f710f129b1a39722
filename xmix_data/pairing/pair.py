"""Centroids to a pairing: each target class with source classes of its own (XMixup, Eq. 2).

Comes in: target and source `Centroids` of one model. Goes out: a `Pairing`, and its table for the
terminal.

Eq. 2 minimises a distance that the paper defines as a cosine; its text ("most similar") and its
Table 3 show that the similarity is maximised, and so it is here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from xmix_data.options import MAX_SEED, truth, whole_number
from xmix_data.pairing.centroids import Centroids
from xmix_data.pairing.matching import (
    COSINE_DECIMALS,
    METHODS,
    RANDOM_IMAGES,
    Choice,
    Cosines,
    cosine_similarity,
    grow,
    random_images,
    select_rounds,
    shrink,
)
from xmix_data.pairing.paired import MATRIX_DECIMALS, PairedClass, Similarity, shown_classes
from xmix_data.pairing.pairing import Pairing

__all__ = ["check_options", "needs_features", "pair_classes", "pairs_table"]


_COUNTS = ("rounds", "min_images", "num_images")
_MAX_PAIRS_ASSIGNED = 25_000_000


def pair_classes(
    target: Centroids,
    source: Centroids,
    *,
    method: str = "greedy",
    rounds: int | None = None,
    min_images: int | None = None,
    num_images: int | None = None,
    strict: bool = False,
    seed: int = 0,
) -> Pairing:
    """Pair each target class with source classes of its own by the centroids' cosine (Eq. 2).

    A round is one-to-one: it gives every target class one source class that no other has. Further
    rounds draw from the source classes that are still unused.

    Args:
        target: n target centroids.
        source: m source centroids of the same model. Random source classes need no features:
            values (C, 0) will do, and the pairs have the cosine NaN then.
        method: ``"greedy"``: the best remaining pair first, ties by (target, source) id.
            ``"in-order"``: target class after target class, each with the best remaining source
            class. ``"optimal"``: the assignment with the largest sum of cosines. ``"random"``:
            random source classes. ``"random-images"``: random images, whatever their class, each
            with one target class; as many as the greedy method would select (the last two are
            the paper's Table 3).
        rounds: How many rounds; default one.
        min_images: Instead of ``rounds``: as many rounds as select at least this many source
            images (the paper takes 100,000 for Dogs, 200,000 otherwise). The last round is
            finished, so that no target class is left out.
        num_images: Make it exactly this many source images afterwards (the paper's Fig. 3): fewer
            by sampling images, at least one for each target class; more by adding the unused
            source class that is most similar to any target class, again and again.
        strict: With ``min_images``: stop within the round, at the pair that reaches it. A target
            class without a source class then shares the most similar one that was selected.
        seed: Seed of everything random.

    Raises:
        ValueError: An option is impossible, a centroid is unusable, the dimensions differ, or
            there are too few source classes.
        MissingDependencyError: FAISS is not installed.

    Examples:
        >>> target = Centroids(np.array([[2, 0], [0, 1]]), np.array([9, 7]), ["t0", "t1"])
        >>> values = np.array([[1, 1], [0, 3], [1, 0]])
        >>> source = Centroids(values, np.array([50, 40, 60]), ["s0", "s1", "s2"])
        >>> pairing = pair_classes(target, source)
        >>> pairing
        Pairing(2 target classes, 2 source classes, 100 source images)
        >>> pairing.pairs["t0"]
        [PairedClass(name='s2', cosine=1.0, images=60, first=None, domain=0)]
    """
    check_options(method, rounds, min_images, num_images, strict, seed)
    rounds, min_images, num_images = (
        None if value is None else whole_number(name, value, 1)
        for name, value in zip(_COUNTS, (rounds, min_images, num_images), strict=True)
    )
    strict, seed = truth("strict", strict), int(seed)
    _check_fit(target, source, 0 if strict else rounds or 1)
    featureless = target.values.shape[1] == 0
    if featureless and needs_features(method, num_images, strict):
        raise ValueError(
            "the centroids have no features, which only pairs of random source classes do without; "
            "compute them with class_centroids"
        )
    shape = len(target.class_names), len(source.class_names)
    cosines = (
        np.full(shape, np.nan, np.float32)
        if featureless
        else cosine_similarity(target.values, source.values)
    )
    random = np.random.Philox(key=np.array([seed, 0], np.uint64))
    choose = METHODS.get(method, METHODS["greedy"])
    chosen, finished = select_rounds(
        cosines, source.counts, choose, random, rounds, min_images, strict
    )
    if method == RANDOM_IMAGES:
        size = num_images or int(source.counts[np.concatenate(chosen)].sum())
        parts = random_images(len(chosen), source.counts, size, random)
    else:
        parts = [[(s, None, int(source.counts[s])) for s in of_one] for of_one in chosen]
        if num_images is not None:
            selected = sum(images for part in parts for *_, images in part)
            if selected > num_images:
                parts = shrink(parts, num_images, random)
            else:
                grow(parts, cosines, source.counts, num_images)
    pairs = {
        name: [
            PairedClass(
                source.class_names[s],
                math.nan if featureless else float(cosines[t, s]),
                images,
                first,
                int(source.domains[s]),
            )
            for s, first, images in parts[t]
        ]
        for t, name in enumerate(target.class_names)
    }
    options = {
        "method": method,
        "rounds": finished,
        "min_images": min_images,
        "num_images": num_images,
        "strict": strict,
        "seed": seed,
    }
    firsts = [part[0][0] for part in parts]
    return Pairing(
        pairs,
        options,
        dict(target.provenance),
        dict(source.provenance),
        None if featureless else _similarity(cosines, firsts, seed),
    )


def needs_features(method: str, num_images: int | None, strict: bool) -> bool:
    """Return whether `pair_classes` looks at how similar classes are.

    Random source classes are drawn; only a strict stop, and a number of images, go on from there
    by similarity.
    """
    return method != "random" or strict or num_images is not None


def check_options(
    method: str,
    rounds: int | None,
    min_images: int | None,
    num_images: int | None,
    strict: bool,
    seed: int,
) -> None:
    """Check the options of `pair_classes`, as far as that is possible without the classes.

    Raises:
        ValueError: An option is impossible, or two exclude each other.
    """
    if method not in METHODS and method != RANDOM_IMAGES:
        known = ", ".join([*METHODS, RANDOM_IMAGES])
        raise ValueError(f"method is {method!r}; it must be one of {known}")
    whole_number("seed", seed, 0, MAX_SEED)
    if rounds is not None and min_images is not None:
        raise ValueError("rounds and min_images exclude each other; give one")
    for name, value in zip(_COUNTS, (rounds, min_images, num_images), strict=True):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; give at least 1")
    if strict and (min_images is None or num_images is not None or method == RANDOM_IMAGES):
        raise ValueError(
            "strict says where min_images stops a selection of classes; give min_images, and "
            "neither num_images nor random images"
        )


def _check_fit(target: Centroids, source: Centroids, rounds: int) -> None:
    if target.values.shape[1] != source.values.shape[1]:
        raise ValueError(
            f"target centroids have {target.values.shape[1]} dimensions, source centroids "
            f"{source.values.shape[1]}; compute both with the same model"
        )
    if len(set(target.class_names)) != len(target.class_names):
        twice = next(n for n in target.class_names if target.class_names.count(n) > 1)
        raise ValueError(
            f"two target classes are named {twice!r}; a pairing names them, rename one"
        )
    for kind, centroids in (("target", target), ("source", source)):
        _check_usable(kind, centroids)
    n, m = len(target.class_names), len(source.class_names)
    if m < n * rounds:
        raise ValueError(
            f"{rounds} round(s) for {n} target classes take {n * rounds} source classes, and "
            f"there are {m}; add source classes"
        )


def _check_usable(kind: str, centroids: Centroids) -> None:
    lengths = np.linalg.norm(centroids.values, axis=1) if centroids.values.size else np.ones(1)
    for problem, wrong in (
        ("has no images", centroids.counts < 1),
        ("has a centroid that is not finite", ~np.isfinite(lengths)),
        ("has a centroid of zeros", lengths == 0),
    ):
        if wrong.any():
            name = centroids.class_names[int(np.argmax(wrong))]
            raise ValueError(
                f"{kind} class {name!r} {problem}; add images, or check the model's weights"
            )


def _similarity(cosines: Cosines, firsts: Sequence[int], seed: int) -> Similarity:
    def mean_of(choose: Callable[[Cosines, np.random.Philox], Choice]) -> float:
        random = np.random.Philox(key=np.array([seed, 0], np.uint64))
        return float(np.mean([cosines[pair] for pair in choose(cosines, random)], dtype=np.float64))

    shown = shown_classes(len(cosines))
    return Similarity(
        float(cosines.mean(dtype=np.float64)),
        float(cosines.std(dtype=np.float64)),
        np.round(cosines[np.ix_(shown, np.asarray(firsts)[shown])], MATRIX_DECIMALS),
        {
            name: round(mean_of(choose), COSINE_DECIMALS)
            for name, choose in METHODS.items()
            if name != "optimal" or cosines.size <= _MAX_PAIRS_ASSIGNED
        },
    )


def pairs_table(pairing: Pairing, width: int = 28) -> Iterator[str]:
    """Yield the lines of a table for the terminal: target class, source classes, cosines."""
    domains = pairing.source.get("domains", ())

    def one(paired: PairedClass) -> str:
        where = f" of {domains[paired.domain]['files'][0]}" if len(domains) > 1 else ""
        return f"{paired.name}{where}" + (
            "" if math.isnan(paired.cosine) else f" ({paired.cosine:.3f})"
        )

    for name, paired in pairing.pairs.items():
        shown = ", ".join(map(one, paired[:_SHOWN]))
        more = f", and {len(paired) - _SHOWN} more" if len(paired) > _SHOWN else ""
        yield f"{name[:width]:<{width}}  {shown}{more}"


_SHOWN = 8
