"""The `Pairing`: for each target class its source classes, by name, and how it was made."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xmix_data.beton import Domain
from xmix_data.pairing import file, ids
from xmix_data.pairing.ids import Draw
from xmix_data.pairing.paired import PairedClass, Similarity

__all__ = ["Pairing", "log_provenance"]

_log = logging.getLogger("xmix_data")


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
        return ids.draws(self.pairs, self.source.get("domains", ()), target, source)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the pairing as JSON; the file appears when whole."""
        contents = file.Contents(
            self.pairs, self.options, self.target, self.source, self.similarity
        )
        file.write(path, contents)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Pairing:
        """Read what `save` wrote.

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


def log_provenance(pairing: Pairing, target: Domain, source: Domain) -> None:
    """Log where betons are not those that the pairing was made with, or are one and the same."""
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
