"""Pairing: which source classes each target class is mixed with (XMixup, Eq. 2).

Comes in: target and source centroids. Goes out: a `Pairing`, kept as JSON, which names classes.

Eq. 2 minimises a distance that the paper defines as a cosine; its text ("most similar") and its
Table 3 show that the similarity is maximised, and so it is here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from xmix_data.centroids import Centroids
from xmix_data.errors import MissingDependencyError
from xmix_data.files import whole_file

__all__ = ["PairedClass", "Pairing", "cosine_similarity", "pair_classes"]

_FORMAT, _VERSION = "xmix_data.pairing", 1
_COSINE_DECIMALS = 6
"""Cosines are rounded before they are compared, so that ties do not depend on the summation
order of a matrix product (CPU, GPU, number of threads)."""


class PairedClass(NamedTuple):
    """One source class of a target class."""

    name: str
    cosine: float
    images: int
    """Images of the source class."""


@dataclass(frozen=True)
class Pairing:
    """For each target class its source classes, the most similar round first."""

    pairs: Mapping[str, Sequence[PairedClass]]
    """Target class name to its source classes."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """How it was made: method, rounds, min_images, seed."""
    target: Mapping[str, Any] = field(default_factory=dict)
    """Provenance of the target centroids: model, weights' hash, fingerprints of the betons."""
    source: Mapping[str, Any] = field(default_factory=dict)
    """Provenance of the source centroids."""

    @property
    def source_classes(self) -> list[str]:
        """Names of all source classes that are used, each once."""
        return list(dict.fromkeys(p.name for paired in self.pairs.values() for p in paired))

    @property
    def num_images(self) -> int:
        """How many source images the pairing selects."""
        return sum({p.name: p.images for ps in self.pairs.values() for p in ps}.values())

    @property
    def mean_cosine(self) -> float:
        """Mean over all pairs, in -1 .. 1."""
        return float(np.mean([p.cosine for paired in self.pairs.values() for p in paired]))

    def ids(self, target_names: Sequence[str], source_names: Sequence[str]) -> list[list[int]]:
        """The pairing in class ids of given domains.

        Args:
            target_names: Names of the target classes, by id.
            source_names: Names of the source classes, by id.

        Returns:
            For each target class id, the ids of its source classes.

        Raises:
            ValueError: A class is unknown, ambiguous, or unpaired.
        """
        known_targets, known_sources = set(target_names), _positions(source_names)
        for name in self.pairs:
            if name not in known_targets:
                raise ValueError(
                    f"the pairing's target class {name!r} is not in the target beton; "
                    "it was made for other betons: run `xmix pair` again"
                )
        result = []
        for name in target_names:
            if name not in self.pairs:
                raise ValueError(
                    f"target class {name!r} is not in the pairing; "
                    "it was made for other betons: run `xmix pair` again"
                )
            ids = []
            for paired in self.pairs[name]:
                places = known_sources.get(paired.name, [])
                if len(places) != 1:
                    problem = "in several source betons" if places else "in no source beton"
                    raise ValueError(
                        f"source class {paired.name!r}, paired with {name!r}, is {problem}; "
                        "give the betons that the pairing was made for, or run `xmix pair` again"
                    )
                ids.append(places[0])
            result.append(ids)
        return result

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the pairing as JSON; the file appears when whole."""
        document = {
            "format": _FORMAT,
            "version": _VERSION,
            "options": dict(self.options),
            "target": dict(self.target),
            "source": dict(self.source),
            "pairs": [
                {"target": name, "sources": [p._asdict() for p in paired]}
                for name, paired in self.pairs.items()
            ],
        }
        text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        with whole_file(path) as stream:
            stream.write(text.encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Pairing:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: No such file.
            ValueError: The file is damaged or of another kind; names what is wrong with it.
        """
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
            if not isinstance(document, dict) or document.get("format") != _FORMAT:
                raise ValueError(f"it is no document of format {_FORMAT!r}")
            if document["version"] != _VERSION:
                raise ValueError(f"its version is {document['version']}, known is {_VERSION}")
            return cls(
                _parse_pairs(document["pairs"]),
                dict(document["options"]),
                dict(document["target"]),
                dict(document["source"]),
            )
        except FileNotFoundError:
            raise FileNotFoundError(f"{path}: no such pairing; make one with `xmix pair`") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(
                f"{path}: damaged pairing ({reason}); run `xmix pair` again"
            ) from error

    def __repr__(self) -> str:
        return (
            f"Pairing({len(self.pairs)} target classes, {len(self.source_classes)} source classes, "
            f"{self.num_images} source images)"
        )


def _positions(names: Sequence[str]) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for position, name in enumerate(names):
        places.setdefault(name, []).append(position)
    return places


def _parse_pairs(entries: Any) -> dict[str, list[PairedClass]]:
    pairs: dict[str, list[PairedClass]] = {}
    used: dict[str, str] = {}
    for entry in entries:
        name = entry["target"]
        if not isinstance(name, str) or name in pairs:
            raise ValueError(f"target class {name!r} stands there twice or is no name")
        paired = [
            PairedClass(str(s["name"]), float(s["cosine"]), int(s["images"]))
            for s in entry["sources"]
        ]
        if not paired:
            raise ValueError(f"target class {name!r} has no source classes")
        for source in paired:
            if not -1 <= source.cosine <= 1 or source.images < 0:
                raise ValueError(f"source class {source.name!r} has impossible numbers")
            other = used.setdefault(source.name, name)
            if other != name or [p.name for p in paired].count(source.name) > 1:
                raise ValueError(
                    f"source class {source.name!r} is paired with {other!r} and again with {name!r}"
                )
        pairs[name] = paired
    if not pairs:
        raise ValueError("it pairs no classes")
    return pairs


def pair_classes(
    target: Centroids,
    source: Centroids,
    *,
    method: str = "greedy",
    rounds: int | None = None,
    min_images: int | None = None,
    seed: int = 0,
) -> Pairing:
    """Pair each target class with source classes of its own by the centroids' cosine (Eq. 2).

    A round is one-to-one: it gives every target class one source class that no other has. Further
    rounds draw from the source classes that are still unused.

    Args:
        target: n target centroids.
        source: m source centroids of the same model.
        method: ``"greedy"``: the best remaining pair first, ties by (target, source) id.
            ``"optimal"``: the assignment with the largest sum of cosines. ``"random"``: random
            source classes (the paper's Table 3).
        rounds: How many rounds; default one.
        min_images: Instead of ``rounds``: as many rounds as select at least this many source
            images (the paper takes 100,000 for Dogs, 200,000 otherwise). The last round is
            finished, so that no target class is left out.
        seed: For ``"random"``.

    Raises:
        ValueError: An option is impossible, a centroid is unusable, the dimensions differ, or
            there are too few source classes.
        MissingDependencyError: FAISS is not installed.
    """
    choose = _METHODS.get(method)
    if choose is None:
        raise ValueError(f"method is {method!r}; it must be one of {', '.join(_METHODS)}")
    if rounds is not None and min_images is not None:
        raise ValueError("rounds and min_images exclude each other; give one")
    if min((x for x in (rounds, min_images) if x is not None), default=1) < 1:
        raise ValueError(f"rounds is {rounds} and min_images is {min_images}; give at least 1")
    if target.values.shape[1] != source.values.shape[1]:
        raise ValueError(
            f"target centroids have {target.values.shape[1]} dimensions, source centroids "
            f"{source.values.shape[1]}; compute both with the same model"
        )
    for kind, centroids in (("target", target), ("source", source)):
        _check_usable(kind, centroids)
    n, m = len(target.class_names), len(source.class_names)
    needed = n * (rounds or 1)
    if m < needed:
        raise ValueError(
            f"{rounds or 1} round(s) for {n} target classes take {needed} source classes, and "
            f"there are {m}; add source classes"
        )
    cosines = cosine_similarity(target.values, source.values)
    random = np.random.Philox(key=np.array([seed, 0], np.uint64))
    free = np.ones(m, bool)
    chosen: list[list[int]] = [[] for _ in range(n)]
    images = finished = 0
    while finished < (rounds or 1) if min_images is None else images < min_images:
        candidates = np.flatnonzero(free)
        if len(candidates) < n:
            raise ValueError(
                f"the source is exhausted: {finished} rounds select {images} images, "
                f"{min_images} are wanted, and {len(candidates)} classes are left for {n} target "
                "classes; lower min_images or add source classes"
            )
        picked = candidates[choose(cosines[:, candidates], random)]
        for t, s in enumerate(picked.tolist()):
            chosen[t].append(s)
        free[picked] = False
        images += int(source.counts[picked].sum())
        finished += 1
    return Pairing(
        {
            name: [
                PairedClass(source.class_names[s], float(cosines[t, s]), int(source.counts[s]))
                for s in chosen[t]
            ]
            for t, name in enumerate(target.class_names)
        },
        {"method": method, "rounds": finished, "min_images": min_images, "seed": seed},
        dict(target.provenance),
        dict(source.provenance),
    )


def _check_usable(kind: str, centroids: Centroids) -> None:
    lengths = np.linalg.norm(centroids.values, axis=1)
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


def cosine_similarity(
    target: npt.NDArray[np.float32], source: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Cosines of all pairs by FAISS, on the GPU where FAISS finds one.

    Args:
        target: (n, D) float32.
        source: (m, D) float32.

    Returns:
        (n, m) float32 in -1 .. 1, rounded to 6 decimals.

    Raises:
        MissingDependencyError: FAISS is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise MissingDependencyError(
            f"FAISS cannot be imported ({error}): `pip install faiss-gpu` (Linux x86-64, with or "
            "without a GPU) or `pip install faiss-cpu`"
        ) from error
    t, s = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (target, source))
    if getattr(faiss, "get_num_gpus", int)() > 0:
        cosines = faiss.pairwise_distance_gpu(
            faiss.StandardGpuResources(), t, s, metric=faiss.METRIC_INNER_PRODUCT
        )
    else:
        cosines = faiss.pairwise_distances(t, s, metric=faiss.METRIC_INNER_PRODUCT)
    return np.asarray(np.clip(np.round(cosines, _COSINE_DECIMALS), -1, 1), np.float32)


def _greedy(cosines: npt.NDArray[np.float32], random: np.random.Philox) -> npt.NDArray[np.int64]:
    """Globally best remaining pair first; argmax takes the lowest id among equals."""
    free = cosines.copy()
    best_source = free.argmax(axis=1)
    best = free[np.arange(len(free)), best_source]
    chosen = np.full(len(free), -1, np.int64)
    for _ in range(len(free)):
        t = int(best.argmax())
        s = best_source[t]
        chosen[t], best[t] = s, -np.inf
        free[:, s] = -np.inf
        for other in np.flatnonzero((best_source == s) & (chosen < 0)):
            best_source[other] = free[other].argmax()
            best[other] = free[other, best_source[other]]
    return chosen


def _optimal(cosines: npt.NDArray[np.float32], random: np.random.Philox) -> npt.NDArray[np.int64]:
    from scipy.optimize import linear_sum_assignment

    return np.asarray(linear_sum_assignment(cosines, maximize=True)[1])


def _random(cosines: npt.NDArray[np.float32], random: np.random.Philox) -> npt.NDArray[np.int64]:
    keys = random.random_raw(cosines.shape[1])
    return np.argsort(keys, kind="stable")[: len(cosines)]


_METHODS: Mapping[
    str, Callable[[npt.NDArray[np.float32], np.random.Philox], npt.NDArray[np.int64]]
] = {"greedy": _greedy, "optimal": _optimal, "random": _random}


def pairs_table(pairing: Pairing, width: int = 28) -> Iterator[str]:
    """Lines of a table for the terminal: target class, source classes, cosines."""
    for name, paired in pairing.pairs.items():
        sources = ", ".join(f"{p.name} ({p.cosine:.3f})" for p in paired)
        yield f"{name[:width]:<{width}}  {sources}"
