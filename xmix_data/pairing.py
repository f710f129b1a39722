"""Pairing: which source classes each target class is mixed with (XMixup, Eq. 2).

Comes in: target and source centroids. Goes out: a `Pairing`, kept as JSON, which names classes.

Eq. 2 minimises a distance that the paper defines as a cosine; its text ("most similar") and its
Table 3 show that the similarity is maximised, and so it is here.
"""

from __future__ import annotations

import itertools
import json
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from xmix_data.beton import Domain
from xmix_data.centroids import Centroids
from xmix_data.files import whole_file
from xmix_data.matching import (
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

__all__ = [
    "Draw",
    "PairedClass",
    "Pairing",
    "Similarity",
    "check_options",
    "pair_classes",
    "pairs_table",
    "shown_classes",
]

_FORMAT, _VERSION = "xmix_data.pairing", 1
_UNTRAINED = 0.9
"""A mean of all cosines above which the features hardly tell classes apart."""
_MOST_SHOWN = 1000
_MOST_PAIRS_ASSIGNED = 25_000_000
_MATRIX_DECIMALS = 3
"""Of the cosines that are kept for looking at."""


class PairedClass(NamedTuple):
    """One source class of a target class."""

    name: str
    cosine: float
    images: int
    """Images of the source class that are drawn from."""
    first: int | None = None
    """``None``: all images of the class. Otherwise images ``first .. first + images - 1`` of the
    class in the random order that the pairing's seed gives them."""
    domain: int = 0
    """Which source of the list the class comes from."""


class Draw(NamedTuple):
    """A paired class in a loader's terms."""

    label: int
    """Class id in the source domain."""
    first: int | None
    images: int
    """As in `PairedClass`."""


@dataclass(frozen=True, eq=False)
class Similarity:
    """How similar target and source classes are, to judge a pairing by."""

    mean: float
    std: float
    """Over all n * m cosines."""
    matrix: npt.NDArray[np.float32]
    """(k, k): each target class by the first source class of each target class, rounded to 3
    decimals; the pairs stand on the diagonal. Of `shown_classes`: all, or 1,000 of more."""
    by_method: Mapping[str, float]
    """Mean cosine of one round by each method; without ``"optimal"``, whose time grows fastest,
    where there are more than 25 million pairs of classes."""

    @property
    def tells_classes_apart(self) -> bool:
        """Whether arbitrary classes differ; those of an untrained backbone hardly do."""
        return self.mean <= _UNTRAINED


@dataclass(frozen=True)
class Pairing:
    """For each target class its source classes, in the order in which they were selected."""

    pairs: Mapping[str, Sequence[PairedClass]]
    """Target class name to its source classes."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """How it was made: the arguments of `pair_classes`."""
    target: Mapping[str, Any] = field(default_factory=dict)
    """Provenance of the target centroids: model, weights' hash, files and fingerprints."""
    source: Mapping[str, Any] = field(default_factory=dict)
    """Provenance of the source centroids."""
    similarity: Similarity | None = field(default=None, compare=False)
    """``None`` in a pairing that was made by hand."""

    @property
    def source_classes(self) -> list[str]:
        """Names of all source classes that are used, each once."""
        return list(dict.fromkeys(p.name for paired in self.pairs.values() for p in paired))

    @property
    def num_images(self) -> int:
        """How many source images the pairing selects."""
        return sum({(p.domain, p.name, p.first): p.images for p in self._paired()}.values())

    @property
    def mean_cosine(self) -> float:
        """Mean over all pairs, in -1 .. 1."""
        return float(np.mean([p.cosine for p in self._paired()]))

    def _paired(self) -> Iterator[PairedClass]:
        return (p for paired in self.pairs.values() for p in paired)

    @property
    def seed(self) -> int:
        """Of the random order that `PairedClass.first` counts in."""
        return int(self.options.get("seed", 0))

    def classes_in(self, names: Sequence[str] | None, fingerprint: str) -> list[str]:
        """Names of the source classes that are used of one source: to convert only these.

        Args:
            names: The source's classes.
            fingerprint: The source's; tells which of the pairing's sources it is, if it is one of
                several betons that the pairing was made over.

        Raises:
            ValueError: It cannot be told which of the pairing's sources this is.
        """
        domains = self.source.get("domains", ())
        if len(domains) < 2:
            return self.source_classes
        by_domain: dict[int, list[str]] = {}
        for paired in self._paired():
            by_domain.setdefault(paired.domain, []).append(paired.name)
        fitting = [i for i, used in by_domain.items() if set(used) <= set(names or ())]
        exact = [i for i, d in enumerate(domains) if fingerprint in d["fingerprints"]]
        if len(exact) == 1:
            fitting = exact
        if len(fitting) != 1:
            files = "; ".join(", ".join(domain["files"]) for domain in domains)
            raise ValueError(
                f"the pairing was made over {len(domains)} sources ({files}), and the classes of "
                f"{len(fitting)} of them are in this one; convert the betons that it was made over"
            )
        return list(dict.fromkeys(by_domain.get(fitting[0], [])))

    def draws(self, target: Domain | None, source: Domain) -> list[list[Draw]]:
        """The pairing in class ids of given domains.

        Args:
            target: ``None``: whatever has the pairing's target classes, in its order.
            source: The source, or the list of them.

        Returns:
            For each target class id, what it draws from.

        Raises:
            ValueError: A class is unknown, ambiguous or unpaired, has too few images, or the
                pairing was made over another number of sources.
        """
        names = list(self.pairs) if target is None else target.class_names
        known = set(names)
        for name in self.pairs:
            if name not in known:
                raise ValueError(
                    f"the pairing's target class {name!r} is not in the target beton; "
                    "it was made for other betons: run `xmix pair` again"
                )
        for name in names:
            if name not in self.pairs:
                raise ValueError(
                    f"target class {name!r} is not in the pairing; "
                    "it was made for other betons: run `xmix pair` again"
                )
        find = self._class_ids(source)
        result = [
            [Draw(find(p, name), p.first, p.images) for p in self.pairs[name]] for name in names
        ]
        if any(p.first is not None for p in self._paired()):
            self._check_parts(result, source)
        return result

    def _class_ids(self, source: Domain) -> Callable[[PairedClass, str], int]:
        """From a paired class and its target class to its class id in the given source."""
        places: dict[str, dict[int, int]] = {}
        part_of = source.domain_of_class(np.arange(len(source.class_names))).tolist()
        for label, name in enumerate(source.class_names):
            places.setdefault(name, {})[part_of[label]] = label
        parts = self._parts(source)

        def find(paired: PairedClass, target_name: str) -> int:
            found = places.get(paired.name, {})
            if parts is not None:
                found = {k: v for k, v in found.items() if k == parts[paired.domain]}
            if len(found) == 1:
                return next(iter(found.values()))
            problem = "in several source betons" if found else "in no source beton"
            if parts is not None:
                files = source.provenance[parts[paired.domain]]["files"]
                problem = f"not in {', '.join(files)}"
            raise ValueError(
                f"source class {paired.name!r}, paired with {target_name!r}, is {problem}; "
                "give the betons that the pairing was made for, or run `xmix pair` again"
            )

        return find

    def _parts(self, source: Domain) -> list[int] | None:
        """Where the given list has each source of the pairing; ``None`` if it has only one."""
        recorded = self.source.get("domains", ())
        if len(recorded) < 2:
            return None
        given = [part["fingerprints"] for part in source.provenance]
        wanted = [part["fingerprints"] for part in recorded]
        found = {
            i: given.index(fingerprints)
            for i, fingerprints in enumerate(wanted)
            if given.count(fingerprints) == 1
        }
        used = sorted({paired.domain for paired in self._paired()})
        unknown = [i for i in used if i not in found]
        if unknown and len(given) == len(wanted) and all(i == j for i, j in found.items()):
            found |= {i: i for i in unknown}  # converted again: known by their places
        elif unknown and len(given) == len(used) and len(unknown) == 1:
            left = set(range(len(given))) - set(found.values())
            found[unknown[0]] = left.pop()
        elif unknown:
            files = "; ".join(", ".join(part["files"]) for part in recorded)
            raise ValueError(
                f"the pairing was made over {len(wanted)} sources ({files}), and of the "
                f"{len(given)} that are given not all are known; give as many, in that order"
            )
        return [found.get(i, -1) for i in range(len(wanted))]

    def _check_parts(self, draws: Iterable[Iterable[Draw]], source: Domain) -> None:
        counts = np.bincount(source.labels, minlength=len(source.class_names))
        for draw in (draw for drawn in draws for draw in drawn):
            if draw.first is not None and draw.first + draw.images > counts[draw.label]:
                raise ValueError(
                    f"the pairing draws from images {draw.first} to "
                    f"{draw.first + draw.images - 1} of source class "
                    f"{source.class_names[draw.label]!r}, which has {counts[draw.label]}; "
                    "give the betons that the pairing was made for, or run `xmix pair` again"
                )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the pairing as JSON; the file appears when whole."""
        document = {
            "format": _FORMAT,
            "version": _VERSION,
            "options": dict(self.options),
            "target": dict(self.target),
            "source": dict(self.source),
            "pairs": [
                {"target": name, "sources": [_entry(p) for p in paired]}
                for name, paired in self.pairs.items()
            ],
        }
        if self.similarity is not None:
            document["similarity"] = _similarity_entry(self.similarity)
        text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        with whole_file(path) as stream:
            stream.write(text.encode(errors="surrogateescape"))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Pairing:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: No such file.
            ValueError: The file is damaged or of another kind; names what is wrong with it.
        """
        try:
            document = json.loads(Path(path).read_text("utf-8", "surrogateescape"))
            if not isinstance(document, dict) or document.get("format") != _FORMAT:
                raise ValueError(f"it is no document of format {_FORMAT!r}")
            if document["version"] != _VERSION:
                raise ValueError(f"its version is {document['version']!r}, known is {_VERSION}")
            options, target, source = (
                _parse_mapping(key, document[key]) for key in ("options", "target", "source")
            )
            _check_seed(options.get("seed", 0))
            shared = options.get("strict", False)
            if not isinstance(shared, bool):
                raise ValueError(f"strict is {shared!r}, neither true nor false")
            pairs = _parse_pairs(document["pairs"], shared=shared)
            for provenance in (target, source):
                _check_domains(provenance)
            _check_sources(pairs, len(source.get("domains", ())))
            similarity = document.get("similarity")
            parsed = None if similarity is None else _parse_similarity(similarity, len(pairs))
            return cls(pairs, options, target, source, parsed)
        except FileNotFoundError:
            raise FileNotFoundError(f"{path}: no such pairing; make one with `xmix pair`") from None
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            RecursionError,
            OverflowError,
        ) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
            raise ValueError(
                f"{path}: damaged pairing ({reason}); run `xmix pair` again"
            ) from error

    def __repr__(self) -> str:
        return (
            f"Pairing({len(self.pairs)} target classes, {len(self.source_classes)} source classes, "
            f"{self.num_images} source images)"
        )


def _entry(paired: PairedClass) -> dict[str, Any]:
    """Without what is as usual."""
    entry: dict[str, Any] = {"name": paired.name, "cosine": paired.cosine, "images": paired.images}
    if paired.first is not None:
        entry["first"] = paired.first
    if paired.domain:
        entry["domain"] = paired.domain
    return entry


def _check_seed(seed: int) -> None:
    if not 0 <= operator.index(seed) < 1 << 64:
        raise ValueError(f"seed is {seed}; it must lie in 0 .. 2**64 - 1")


def _parse_mapping(key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{key} is no object")
    return value


def _parse_pairs(entries: Any, *, shared: bool) -> dict[str, list[PairedClass]]:
    pairs: dict[str, list[PairedClass]] = {}
    used: dict[tuple[int, str], list[tuple[str, PairedClass]]] = {}
    for entry in entries:
        name = entry["target"]
        if not isinstance(name, str) or name in pairs:
            raise ValueError(f"target class {name!r} stands there twice or is no name")
        pairs[name] = [_parse_paired(source) for source in entry["sources"]]
        if not pairs[name]:
            raise ValueError(f"target class {name!r} has no source classes")
        for source in pairs[name]:
            used.setdefault((source.domain, source.name), []).append((name, source))
    if not pairs:
        raise ValueError("it pairs no classes")
    for (_, source_name), users in used.items():
        users.sort(key=lambda user: user[1].first or 0)
        for (one, earlier), (other, later) in itertools.pairwise(users):
            if (one == other or not shared) and _overlap(earlier, later):
                raise ValueError(
                    f"source class {source_name!r} is paired with {one!r} and again with {other!r}"
                )
    return pairs


def _parse_paired(entry: Any) -> PairedClass:
    name, cosine = entry["name"], entry["cosine"]
    numbers = (entry["images"], entry.get("domain", 0), entry.get("first"))
    if not isinstance(name, str):
        raise ValueError(f"source class {name!r} is no name")
    strange = set(entry) - {*PairedClass._fields}
    if strange:
        raise ValueError(f"source class {name!r} has the unknown key {min(strange)!r}")
    if any(isinstance(number, bool) for number in (cosine, *numbers)):
        raise ValueError(f"source class {name!r} has true or false for a number")
    images, domain, first = (None if n is None else operator.index(n) for n in numbers)
    if images is None or domain is None or not isinstance(cosine, (int, float)):
        raise ValueError(f"source class {name!r} lacks a number")
    if not -1 <= cosine <= 1 or images < 1 or (first or 0) < 0 or domain < 0:
        raise ValueError(f"source class {name!r} has impossible numbers")
    return PairedClass(name, float(cosine), images, first, domain)


def _overlap(one: PairedClass, other: PairedClass) -> bool:
    """Of two parts of a class, in the order of their first images."""
    return one.first is None or other.first is None or other.first < one.first + one.images


def _check_domains(provenance: Mapping[str, Any]) -> None:
    for domain in provenance.get("domains", ()):
        for key in ("files", "fingerprints"):
            texts = domain[key]
            if (
                not texts
                or not isinstance(texts, list)
                or not all(isinstance(t, str) for t in texts)
            ):
                raise ValueError(f"domains have no list of {key}")


def _check_sources(pairs: Mapping[str, Sequence[PairedClass]], sources: int) -> None:
    for paired in (p for ps in pairs.values() for p in ps):
        if paired.domain >= max(1, sources):
            raise ValueError(
                f"source class {paired.name!r} is of source {paired.domain}, and it knows {sources}"
            )


def _similarity_entry(similarity: Similarity) -> dict[str, Any]:
    return {
        "mean": similarity.mean,
        "std": similarity.std,
        "by_method": dict(similarity.by_method),
        "matrix": [
            " ".join(f"{cosine:.{_MATRIX_DECIMALS}f}" for cosine in row)
            for row in similarity.matrix.tolist()
        ],
    }


def _parse_similarity(entry: Any, classes: int) -> Similarity:
    classes = len(shown_classes(classes))
    matrix = np.array([row.split() for row in entry["matrix"]], np.float32)
    by_method = {str(name): float(value) for name, value in entry["by_method"].items()}
    similarity = Similarity(float(entry["mean"]), float(entry["std"]), matrix, by_method)
    numbers = [similarity.mean, similarity.std, *by_method.values()]
    if (
        matrix.shape != (classes, classes)
        or not all(-1 <= number <= 1 for number in numbers)
        or similarity.std < 0
        or not np.all(np.abs(matrix) <= 1)
    ):
        raise ValueError("similarity has impossible numbers")
    return similarity


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
        source: m source centroids of the same model.
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
        seed: Of everything random.

    Raises:
        ValueError: An option is impossible, a centroid is unusable, the dimensions differ, or
            there are too few source classes.
        MissingDependencyError: FAISS is not installed.
    """
    check_options(method, rounds, min_images, num_images, strict, seed)
    _check_fit(target, source, rounds or 1)
    cosines = cosine_similarity(target.values, source.values)
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
                source.class_names[s], float(cosines[t, s]), images, first, int(source.domains[s])
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
        _similarity(cosines, firsts, seed),
    )


def check_options(
    method: str,
    rounds: int | None,
    min_images: int | None,
    num_images: int | None,
    strict: bool,
    seed: int,
) -> None:
    """What `pair_classes` says of its options without knowing the classes."""
    if method not in METHODS and method != RANDOM_IMAGES:
        known = ", ".join([*METHODS, RANDOM_IMAGES])
        raise ValueError(f"method is {method!r}; it must be one of {known}")
    _check_seed(seed)
    if rounds is not None and min_images is not None:
        raise ValueError("rounds and min_images exclude each other; give one")
    for name, value in (("rounds", rounds), ("min_images", min_images), ("num_images", num_images)):
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


def _similarity(cosines: Cosines, firsts: Sequence[int], seed: int) -> Similarity:
    def mean_of(choose: Callable[[Cosines, np.random.Philox], Choice]) -> float:
        random = np.random.Philox(key=np.array([seed, 0], np.uint64))
        return float(np.mean([cosines[pair] for pair in choose(cosines, random)], dtype=np.float64))

    shown = shown_classes(len(cosines))
    return Similarity(
        float(cosines.mean(dtype=np.float64)),
        float(cosines.std(dtype=np.float64)),
        np.round(cosines[np.ix_(shown, np.asarray(firsts)[shown])], _MATRIX_DECIMALS),
        {
            name: round(mean_of(choose), COSINE_DECIMALS)
            for name, choose in METHODS.items()
            if name != "optimal" or cosines.size <= _MOST_PAIRS_ASSIGNED
        },
    )


def shown_classes(classes: int) -> npt.NDArray[np.int64]:
    """Positions of the target classes in `Similarity.matrix`: all, or 1,000 spread over them."""
    return np.unique(np.linspace(0, classes - 1, min(classes, _MOST_SHOWN)).astype(np.int64))


def pairs_table(pairing: Pairing, width: int = 28) -> Iterator[str]:
    """Lines of a table for the terminal: target class, source classes, cosines."""
    domains = pairing.source.get("domains", ())

    def one(paired: PairedClass) -> str:
        where = f" of {domains[paired.domain]['files'][0]}" if len(domains) > 1 else ""
        return f"{paired.name}{where} ({paired.cosine:.3f})"

    for name, paired in pairing.pairs.items():
        shown = ", ".join(map(one, paired[:_SHOWN]))
        more = f", and {len(paired) - _SHOWN} more" if len(paired) > _SHOWN else ""
        yield f"{name[:width]:<{width}}  {shown}{more}"


_SHOWN = 8
