"""The whole way on data that packages ship: fonts and handwritten digits, no download.

Comes in: an empty folder. Goes out: three betons, a pairing, its report, a contact sheet, and a
transcript in which every number is measured in this run.

The source domain is letters and digits drawn from matplotlib's fonts (36 classes); the target
domain is scikit-learn's handwritten digits, few of each class.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from xmix_data import (
    Beton,
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
from xmix_data.demo.network import SmallResNet, TwoHeads, accuracy_of, mixed_loss, plain_loss, train
from xmix_data.report import write_report

__all__ = ["run"]


@dataclass(frozen=True)
class _Settings:
    """What the demo does, but for the number of seeds."""

    variations: int = 10
    """Pictures of each character in each font."""
    per_class: int = 5
    """Target training images of each digit: few, as in the paper's target sets."""
    draw: int = 0
    """Which of the digits these are."""
    evaluate_on: str = "test"
    pretrain_epochs: int = 5
    iterations: int = 240
    batch_size: int = 50
    # Both chosen on the validation part, never on the test part: over 3 draws of the training
    # images and 2 backbones, alpha from 0.5 to 16 and a learning rate of 0.01 or 0.03. Plain
    # fine-tuning has nothing to choose but the learning rate, and hardly depends on it.
    learning_rate: float = 0.03
    alpha: float = 2.0
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
        ValueError: ``seeds`` is below 1.
        OSError: ``output`` is no folder, or not writable.
    """
    return _run(Path(output), seeds, _Settings())


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


@_half_of_torchs_threads()
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
    output.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()

    print("1/6 Draw and convert")
    source = _convert(glyphs, output / "source.beton", "jpg")
    target, test = (
        _convert(part, output / f"{name}.beton", "raw")
        for part, name in zip(parts, ("target", "test"), strict=True)
    )

    print(f"2/6 Train a small network on the {len(glyphs.classes)} glyphs, from random weights")
    backbone = _pretrain(source, settings)

    print("3/6 Pair each digit with the glyph whose centroid is most similar")
    named = Backbone(backbone, "a small residual network, trained on the glyphs")
    pairing = pair_classes(class_centroids(target, named), class_centroids(source, named))
    pairing.save(output / "pairing.json")
    own = _print_pairs(pairing)

    print(f"4/6 Fine-tune on {len(target)} digits, test on {len(test)} others")
    results = _compare(backbone, target, source, test, pairing, seeds, settings)

    print("5/6 Measure the loaders alone")
    with (
        ImageLoader(source, batch_size=settings.batch_size, crop=RandomCrop(CROP)) as images,
        XMixLoader(
            target,
            source,
            pairing,
            batch_size=settings.batch_size,
            crop=RandomCrop(CROP),
            flip=False,
            alpha=settings.alpha,
        ) as pairs,
    ):
        rates = {
            "images": _print_rate(images, len(source), "JPEGs decoded, cropped and normalised"),
            "pairs": _print_rate(
                pairs, settings.measured_pairs, "pairs decoded, cropped, normalised and mixed"
            ),
        }
        sheet = pairs.preview(8)

    print("6/6 Written")
    sheet.save(output / "mixed.png")
    write_report(
        pairing, target, source, output / "report.html", alpha=settings.alpha, overwrite=True
    )
    for name in (
        "source.beton",
        "target.beton",
        "test.beton",
        "pairing.json",
        "report.html",
        "mixed.png",
    ):
        print(f"    {output / name}")
    seconds = time.perf_counter() - began
    print(f"Done in {seconds:.0f} s.")
    plain, mixed = zip(*results, strict=True)
    return {
        "own_glyphs": own,
        "accuracy_percent": {"plain": plain, "xmixup": mixed},
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
    """Whole epochs, as many as deliver at least ``least`` samples."""
    samples, started = 0, time.perf_counter()
    while samples < least:
        samples += sum(len(batch[0]) for batch in loader)
    rate = samples / (time.perf_counter() - started)
    print(f"    {rate:,.0f} {what} a second")
    return rate


def _pretrain(source: Beton, settings: _Settings) -> SmallResNet:
    torch.manual_seed(0)
    network = SmallResNet(len(source.class_names))
    hits: list[float] = []

    def loss(batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        images, labels = batch
        logits = network(images)
        hits.append(float((logits.argmax(1) == labels).float().mean()))
        # Smoothing makes features of one class lie close together, and centroids tell more.
        return functional.cross_entropy(logits, labels, label_smoothing=0.1)

    started = time.perf_counter()
    with ImageLoader(
        source, batch_size=64, crop=RandomCrop(CROP), shuffle=True, drop_last=True
    ) as loader:
        train(network, loader, loss, settings.pretrain_epochs * len(loader), 0.05)
        last = float(np.mean(hits[-len(loader) :]))
    seconds = time.perf_counter() - started
    print(f"    {100 * last:.1f} % of the glyphs right in the last epoch; {seconds:.1f} s")
    return network


def _compare(
    backbone: SmallResNet,
    target: Beton,
    source: Beton,
    test: Beton,
    pairing: Pairing,
    seeds: int,
    settings: _Settings,
) -> list[tuple[float, float]]:
    """Test accuracy in percent of plain fine-tuning and of XMixup, for each seed."""
    options: dict[str, Any] = {
        "batch_size": settings.batch_size,
        "crop": RandomCrop(CROP),
        "flip": False,
        "drop_last": True,
    }
    results = []
    for seed in range(seeds):
        with (
            ImageLoader(target, shuffle=True, seed=seed, **options) as plain,
            XMixLoader(
                target, source, pairing, alpha=settings.alpha, seed=seed, **options
            ) as mixed,
        ):
            accuracies = [
                _fine_tune(backbone, loader, loss, test, seed, settings)
                for loader, loss in ((plain, plain_loss), (mixed, mixed_loss))
            ]
        results.append((accuracies[0], accuracies[1]))
        print(f"    seed {seed}: plain {accuracies[0]:.2f} %, XMixup {accuracies[1]:.2f} %")
    plain_, mixed_ = np.array(results).T
    print(f"    plain fine-tuning  {_spread(plain_)} %")
    print(f"    XMixup             {_spread(mixed_)} %")
    print(f"    XMixup - plain     {_spread(mixed_ - plain_, '+')} points")
    return results


def _spread(values: npt.NDArray[np.float64], sign: str = "") -> str:
    text = f"{values.mean():{sign}.2f}"
    return text if len(values) == 1 else f"{text} ± {values.std(ddof=1):.2f}"


def _fine_tune(
    backbone: SmallResNet,
    loader: Any,
    loss: Callable[[nn.Module, Any], torch.Tensor],
    test: Beton,
    seed: int,
    settings: _Settings,
) -> float:
    """Test accuracy in percent after the last iteration."""
    torch.manual_seed(seed)  # the same new target head for both methods
    network = TwoHeads(backbone, loader.num_target_classes)
    train(
        network,
        loader,
        functools.partial(loss, network),
        settings.iterations,
        settings.learning_rate,
    )
    return 100 * accuracy_of(network, test)
