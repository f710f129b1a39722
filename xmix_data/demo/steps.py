"""The whole way on data that packages ship: fonts and handwritten digits, no download.

Comes in: an empty folder. Goes out: three betons, a pairing, its report, a contact sheet, and a
transcript in which every number is measured in this run.

The source domain is letters and digits drawn from matplotlib's fonts (36 classes); the target
domain is scikit-learn's handwritten digits, few of each class.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from xmix_data import (
    Beton,
    CenterCrop,
    ImageLoader,
    Pairing,
    RandomCrop,
    XMixLoader,
    class_centroids,
    pair_classes,
    write_beton,
)
from xmix_data.backbones import Backbone
from xmix_data.demo.data import CROP, SIDE, Glyphs, HandwrittenDigits
from xmix_data.demo.network import SmallResNet
from xmix_data.methods import FineTune, XMixup
from xmix_data.outputs import local_path
from xmix_data.report import write_report
from xmix_data.training import Recipe, Result, evaluate, fit

__all__ = ["run"]


# Both were chosen on the validation part, never on the test part, by the mean accuracy over 3 draws
# of the training images and 3 seeds. Pre-training for three epochs instead of five makes plain
# fine-tuning worse by a point; 240 iterations of fine-tuning instead of 120 gain less than 0.5
# points. With 2 backbones, plain fine-tuning is best at a learning rate of 0.01 and XMixup at 0.03;
# 0.02 is within 0.3 points of both. An alpha of 1, 2 or 4 makes less than 0.5 points, and another
# seed of the pre-training more than all of these.
_PRETRAINING = Recipe(iterations=590, batch_size=64, learning_rate=0.05, crop=CROP, flip=False)
_FINE_TUNING = Recipe(
    iterations=120, batch_size=50, learning_rate=0.02, crop=CROP, flip=False, alpha=2.0
)


@dataclass(frozen=True)
class _Settings:
    """Say what the demo does, but for the number of seeds."""

    variations: int = 10
    """Pictures of each character in each font."""
    per_class: int = 5
    """Target training images of each digit: few, as in the paper's target sets."""
    draw: int = 0
    """Which of the digits these are."""
    evaluate_on: str = "test"
    pretraining: Recipe = _PRETRAINING
    fine_tuning: Recipe = _FINE_TUNING
    measured_pairs: int = 20_000


def run(output: Path, *, seeds: int = 3) -> dict[str, Any]:
    """Do the whole job and print what happens.

    Args:
        output: Folder for betons, pairing and pictures; made if missing, earlier results replaced.
        seeds: Fine-tuning runs of each method.

    Returns:
        What was measured: ``own_glyphs`` of the digits found, ``accuracy_percent`` of ``plain`` and
        ``xmixup`` by seed, ``per_second`` of the loaders' ``images`` and ``pairs``, ``seconds``.

    Raises:
        MissingDependencyError: matplotlib or scikit-learn is not installed.
        ValueError: ``seeds`` is below 1, or ``output`` is a URL.
        OSError: ``output`` is no folder, or not writable.
    """
    return _run(local_path(output), seeds, _Settings())


@contextmanager
def _half_of_torchs_threads() -> Iterator[None]:
    """Leave the loader's threads a core.

    torch's threads wait for each other in a spin: beside another busy process a small network
    trains many times slower on all cores than on one.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // 2))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _warnings_alone() -> Iterator[None]:
    """Hold back what the trainer says of every run: the transcript says it once."""
    log = logging.getLogger("xmix_data")
    level = log.level
    log.setLevel(max(level, logging.WARNING))
    try:
        yield
    finally:
        log.setLevel(level)


@_half_of_torchs_threads()
@_warnings_alone()
def _run(output: Path, seeds: int, settings: _Settings) -> dict[str, Any]:
    if seeds < 1:
        raise ValueError(f"seeds is {seeds}; it must be at least 1")
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"{output}: is a file; choose a folder for the results")
    glyphs = Glyphs(settings.variations)
    parts = [
        HandwrittenDigits(part, settings.per_class, settings.draw)
        for part in ("train", settings.evaluate_on)
    ]
    recipe = settings.fine_tuning
    output.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()

    print("1/6 Draw and convert")
    source = _convert(glyphs, output / "source.beton", "jpg")
    target, test = (
        _convert(part, output / f"{name}.beton", "raw")
        for part, name in zip(parts, ("target", "test"), strict=True)
    )

    print(f"2/6 Train a small network on the {len(glyphs.classes)} glyphs, from random weights")
    backbone = _pretrain(source, settings.pretraining)

    print("3/6 Pair each digit with the glyph whose centroid is most similar")
    pairing = pair_classes(class_centroids(target, backbone), class_centroids(source, backbone))
    pairing.save(output / "pairing.json")
    own = _print_pairs(pairing)

    print(f"4/6 Fine-tune on {len(target)} digits, test on {len(test)} others")
    accuracies = _compare(backbone, target, source, test, pairing, seeds, recipe)

    print("5/6 Measure the loaders alone")
    with (
        ImageLoader(source, batch_size=recipe.batch_size, crop=RandomCrop(CROP)) as images,
        XMixLoader(
            target,
            source,
            pairing,
            batch_size=recipe.batch_size,
            crop=RandomCrop(CROP),
            flip=False,
            alpha=recipe.alpha,
        ) as pairs,
    ):
        rates = {
            "images": _print_rate(images, len(source), "JPEGs decoded, cropped and normalised"),
            "pairs": _print_rate(
                pairs, settings.measured_pairs, "pairs decoded, cropped, normalised and mixed"
            ),
        }
        sheet = pairs.preview(8)

    print("6/6 Draw")
    sheet.save(output / "mixed.png")
    write_report(
        pairing, target, source, output / "report.html", alpha=recipe.alpha, overwrite=True
    )
    seconds = time.perf_counter() - began
    print(f"    betons and pairing.json are in {output}")
    print(f"Done in {seconds:.0f} s. Now open")
    print(f"    {output / 'report.html'}  the pairs, and how similar they are")
    print(f"    {output / 'mixed.png'}    samples: target, source, and what the network gets")
    print("and run `xmix` without arguments: it says how to begin with images of your own.")
    return {
        "own_glyphs": own,
        "accuracy_percent": accuracies,
        "per_second": rates,
        "seconds": seconds,
    }


def _convert(dataset: Any, path: Path, encoding: str) -> Beton:
    beton = write_beton(
        dataset, path, image_size=SIDE, encoding=encoding, progress=False, overwrite=True
    )
    print(f"    {beton!r}")
    return beton


def _print_pairs(pairing: Pairing) -> int:
    print("    digit   glyph  cosine")
    own = 0
    for (digit, paired), name in zip(pairing.pairs.items(), HandwrittenDigits.classes, strict=True):
        glyph = paired[0]
        found = name == f"digit {glyph.name}"
        own += found
        print(f"    {digit}   {glyph.name}    {glyph.cosine:.3f}  {'its own' if found else '-'}")
    print(f"    {own} of {len(pairing.pairs)} digits found their own glyph")
    return own


def _print_rate(loader: Any, least: int, what: str) -> float:
    """Time whole epochs, as many as deliver at least ``least`` samples."""
    samples, started = 0, time.perf_counter()
    while samples < least:
        samples += sum(len(batch[0]) for batch in loader)
    rate = samples / (time.perf_counter() - started)
    print(f"    {rate:,.0f} {what} a second")
    return rate


def _pretrain(source: Beton, recipe: Recipe) -> Backbone:
    """Train the network on the glyphs; its classifier's rows are the source's classes in order."""
    torch.manual_seed(0)
    started = time.perf_counter()
    network = SmallResNet(len(source.class_names))
    result = fit(FineTune(), network, source, recipe=recipe, progress=True)
    options: dict[str, Any] = {"batch_size": recipe.batch_size, "crop": CenterCrop(CROP)}
    with ImageLoader(source, **options) as pictures:
        right = 100 * evaluate(result.network, pictures)
    seconds = time.perf_counter() - started
    print(f"    {right:.1f} % of their {len(source):,} pictures right; {seconds:.1f} s")
    assert result.network.target_head is not None
    trained = nn.Sequential(result.network.backbone, result.network.target_head)
    return Backbone(trained, "a small residual network, trained on the glyphs", CROP)


def _compare(
    backbone: Backbone,
    target: Beton,
    source: Beton,
    test: Beton,
    pairing: Pairing,
    seeds: int,
    recipe: Recipe,
) -> dict[str, list[float]]:
    """Fine-tune by both methods; return their test accuracy in percent, by seed."""
    plain: list[float] = []
    mixed: list[float] = []
    for seed in range(seeds):
        for method, accuracies in ((FineTune(), plain), (XMixup(), mixed)):
            result = fit(
                method,
                backbone,
                target,
                source=source,
                pairing=pairing,
                test=test,
                source_rows=range(len(source.class_names)),
                recipe=replace(recipe, seed=seed),
            )
            accuracies.append(_percent(result))
        print(f"    seed {seed}: plain {plain[-1]:.2f} %, XMixup {mixed[-1]:.2f} %")
    print(f"    plain fine-tuning  {_spread(plain)} %")
    print(f"    XMixup             {_spread(mixed)} %")
    print(f"    XMixup - plain     {_difference(plain, mixed)}")
    return {"plain": plain, "xmixup": mixed}


def _percent(result: Result) -> float:
    assert result.accuracy is not None
    return 100 * result.accuracy


def _spread(values: npt.ArrayLike) -> str:
    numbers = np.asarray(values, np.float64)
    text = f"{numbers.mean():.2f}"
    return text if numbers.size == 1 else f"{text} ± {numbers.std(ddof=1):.2f}"


def _difference(plain: list[float], mixed: list[float]) -> str:
    """Say what XMixup gains, seed by seed, and whether so many seeds can tell."""
    gains = np.subtract(mixed, plain)
    text = f"{gains.mean():+.2f} points"
    if len(gains) == 1:
        return f"{text}; one seed cannot tell them apart"
    from scipy import stats

    half = stats.t.ppf(0.975, len(gains) - 1) * gains.std(ddof=1) / len(gains) ** 0.5
    low, high = gains.mean() - half, gains.mean() + half
    told = "these seeds cannot tell them apart"
    if low > 0 or high < 0:
        told = f"{'XMixup' if low > 0 else 'plain fine-tuning'} is better here"
    return f"{text} (95 % interval {low:+.2f} to {high:+.2f}): {told}"
