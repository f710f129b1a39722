"""The `Pairing`: for each target class its source classes, by name, and how it was made."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xmix_data.beton import Domain
from xmix_data.names import first_repeated, same_form, same_forms
from xmix_data.pairing import file, ids
from xmix_data.pairing.ids import Draw
from xmix_data.pairing.paired import PairedClass, Similarity

__all__ = ["Pairing", "log_provenance"]

_log = logging.getLogger("xmix_data")


@dataclass(frozen=True)
class Pairing:
    """Source classes of each target class, by name, in the order of their selection.

    Examples:
        >>> pairs = {"t0": [PairedClass("s1", 0.75, 3)], "t1": [PairedClass("s0", 0.5, 8)]}
        >>> Pairing(pairs).save("by-hand.json")
        >>> pairing = Pairing.load("by-hand.json")
        >>> pairing
        Pairing(2 target classes, 2 source classes, 11 source images)
        >>> pairing.source_classes, pairing.mean_cosine
        (['s1', 's0'], 0.625)
    """

    pairs: Mapping[str, Sequence[PairedClass]]
    """Source classes of each target class, by the name of the target class."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of `pair_classes` that the pairing was made with."""
    target: Mapping[str, Any] = field(default_factory=dict)
    """Provenance of the target centroids: model, weights' hash, files and fingerprints."""
    source: Mapping[str, Any] = field(default_factory=dict)
    """Provenance of the source centroids: model, weights' hash, files and fingerprints."""
    similarity: Similarity | None = field(default=None, compare=False)
    """How similar the classes are; ``None`` in a pairing that was made by hand."""

    def __post_init__(self) -> None:
        """Bring names into Unicode's NFC form, as those of betons are.

        Raises:
            ValueError: Two target classes then have one name.
        """
        pairs = {
            same_form(name): [p._replace(name=same_form(p.name)) for p in paired]
            for name, paired in self.pairs.items()
        }
        if len(pairs) < len(self.pairs):
            twice = first_repeated(same_forms(self.pairs))
            name = list(self.pairs)[twice[0] if twice else 0]
            raise ValueError(
                f"two target classes are named {name!r}; a pairing names them, rename one"
            )
        object.__setattr__(self, "pairs", pairs)

    @property
    def source_classes(self) -> list[str]:
        """Names of all source classes that are used, each once."""
        return list(dict.fromkeys(p.name for paired in self.pairs.values() for p in paired))

    @property
    def num_images(self) -> int:
        """Number of source images that the pairing selects."""
        return sum({(p.domain, p.name, p.first): p.images for p in self._paired()}.values())

    @property
    def mean_cosine(self) -> float:
        """Mean cosine of all pairs, in -1 .. 1; NaN for random pairs without features."""
        return float(np.mean([p.cosine for p in self._paired()]))

    def _paired(self) -> Iterator[PairedClass]:
        return (p for paired in self.pairs.values() for p in paired)

    @property
    def seed(self) -> int:
        """Seed of the random order in which `PairedClass.first` counts images."""
        return int(self.options.get("seed", 0))

    def classes_in(self, names: Sequence[str] | None, fingerprint: str) -> list[str]:
        """Find the source classes of one source that the pairing uses: to convert only these.

        Args:
            names: Names of the source's classes.
            fingerprint: Fingerprint of the source. It tells which of the pairing's sources this
                is, if the pairing was made over several betons.

        Returns:
            Their names, each once.

        Raises:
            ValueError: It cannot be told which of the pairing's sources this is.
        """
        domains = self.source.get("domains", ())
        if len(domains) < 2:
            return self.source_classes
        by_domain: dict[int, list[str]] = {}
        for paired in self._paired():
            by_domain.setdefault(paired.domain, []).append(paired.name)
        known = set(same_forms(names or ()))
        fitting = [i for i, used in by_domain.items() if set(used) <= known]
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
        """Translate the pairing into the class ids of given domains.

        Args:
            target: The target domain; ``None`` numbers the target classes in the pairing's order.
            source: The source domain, or several in one.

        Returns:
            For each target class id the source classes that it draws from.

        Raises:
            ValueError: A class is unknown, ambiguous or unpaired, has too few images, or the
                pairing was made over another number of sources.
        """
        return ids.draws(self.pairs, self.source.get("domains", ()), target, source)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the pairing as JSON (docs/formats.md); the file appears when whole.

        Raises:
            OSError: The disk is full or not writable.
            ValueError: `load` would not take it: a source class has two target classes, say.
        """
        contents = file.Contents(
            self.pairs, self.options, self.target, self.source, self.similarity
        )
        file.write(path, contents)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Pairing:
        """Read a pairing that `save` wrote.

        Raises:
            FileNotFoundError: No such file.
            ValueError: The file is damaged or of another kind; names what is wrong with it.
        """
        return cls(*file.read(path))

    def __repr__(self) -> str:
        return (
            f"Pairing({len(self.pairs)} target classes, {len(self.source_classes)} source classes, "
            f"{self.num_images} source images)"
        )


def open_pairing(pairing: Pairing | str | os.PathLike[str]) -> Pairing:
    """Read a pairing from its path or URL; a `Pairing` is one already.

    Raises:
        FileNotFoundError: No such file.
        ValueError: It is neither, or the file is damaged or of another kind.
    """
    if isinstance(pairing, Pairing):
        return pairing
    if not isinstance(pairing, (str, os.PathLike)):
        raise ValueError(
            f"a {type(pairing).__name__} is no pairing; give a Pairing, or the path of one that "
            "`xmix pair` or Pairing.save wrote"
        )
    return Pairing.load(pairing)


def log_provenance(pairing: Pairing, target: Domain, source: Domain) -> None:
    """Log that betons are not those of the pairing, or that one is target and source at once."""
    for kind, provenance, domain in (
        ("target", pairing.target, target),
        ("source", pairing.source, source),
    ):
        known = provenance.get("domains")
        if known is not None and not all(
            part["fingerprints"] in [given["fingerprints"] for given in domain.provenance]
            for part in known
        ):
            _log.warning("the pairing was made with other %s betons than those given", kind)
    shared = {b.path.resolve() for b in target.betons} & {b.path.resolve() for b in source.betons}
    for path in sorted(shared):
        _log.info("%s is target and source at once", path)
