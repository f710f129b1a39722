"""The loaders of a training: what each phase of a method is fed with.

Comes in: a phase, domains and a recipe. Goes out: loaders, and their batches without end.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from xmix_data.beton import Domain
from xmix_data.loader import ImageLoader, XMixLoader
from xmix_data.methods import Phase
from xmix_data.pairing import Pairing
from xmix_data.plan import RandomCrop
from xmix_data.training.recipe import Recipe

__all__ = ["phase_loaders", "without_end"]


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
