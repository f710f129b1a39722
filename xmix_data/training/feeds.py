"""The loaders of a training: what each phase of a method is fed with.

Comes in: a phase, domains and a recipe. Goes out: loaders, and their batches without end.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from xmix_data.beton import Domain
from xmix_data.loader import ImageLoader, XMixLoader
from xmix_data.methods import Method, Phase
from xmix_data.pairing import Pairing
from xmix_data.plan import RandomCrop
from xmix_data.training.recipe import Recipe

__all__ = ["needs_source", "phase_loaders", "require_data", "without_end"]


def needs_source(method: Method) -> bool:
    """Return whether a method trains on source images."""
    if method.keeps_classifier:
        return False
    return any(phase.batches != "target" or phase.heads != ("target",) for phase in method.phases)


def require_data(method: Method, source: object, pairing: object, unlabelled: object) -> None:
    """Check that what a method trains on is given, before anything is opened or downloaded.

    Args:
        method: Method with its options.
        source, pairing, unlabelled: What the caller gave; ``None`` for nothing.

    Raises:
        ValueError: Something is missing, or of no use.
    """
    if needs_source(method) and (source is None or pairing is None):
        raise ValueError(
            f"{method.name} trains on source images too; give a source and a pairing "
            "(--source, --pairing)"
        )
    if unlabelled is not None and not method.unlabelled:
        raise ValueError(f"{method.name} has no use for unlabelled images; leave them out")


def phase_loaders(
    phase: Phase,
    recipe: Recipe,
    target: Domain,
    source: Domain | None,
    pairing: Pairing | None,
    unlabelled: Domain | None,
    **options: Any,
) -> list[ImageLoader | XMixLoader]:
    """Make the loaders of a phase: of its batches and, where there are some, unlabelled images.

    Args:
        phase: Phase, which names the kind of batches.
        recipe: Recipe: crop, flip, λ, seed, and what becomes of damage.
        target, source, pairing: The domains and their pairing; the last two where the kind of
            batches needs them.
        unlabelled: Target images whose labels are not looked at.
        options: Further options of every loader.
    """
    options |= {
        "crop": RandomCrop(recipe.crop),
        "flip": recipe.flip,
        "seed": recipe.seed,
        "drop_last": True,
        "on_error": recipe.on_error,
    }
    loaders: list[ImageLoader | XMixLoader] = []
    if phase.batches == "target":
        loaders.append(ImageLoader(target, shuffle=True, **options))
    else:
        assert source is not None and pairing is not None
        if phase.batches == "auxiliary":
            loaders.append(ImageLoader(source, shuffle=True, pairing=pairing, **options))
        else:
            loaders.append(
                XMixLoader(
                    target,
                    source,
                    pairing,
                    mix=phase.batches == "mixed",
                    alpha=recipe.alpha,
                    beta=recipe.beta,
                    **options,
                )
            )
    if unlabelled is not None:
        loaders.append(ImageLoader(unlabelled, shuffle=True, **options))
    return loaders


def without_end(loader: Any, done: int = 0, unmixed_from: int | None = None) -> Iterator[Any]:
    """Yield the batches of epoch after epoch.

    Args:
        loader: The loader.
        done: Number of batches that an earlier run had.
        unmixed_from: Number of batches, at an epoch's end, after which a loader that mixes mixes no
            longer.
    """
    mixes = isinstance(loader, XMixLoader) and loader.mix
    while True:
        if mixes and unmixed_from is not None and done >= unmixed_from:
            loader.set_mix(enabled=False)
            mixes = False
        for batch in loader:
            yield batch
            done += 1
