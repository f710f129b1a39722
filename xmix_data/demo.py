"""The whole way on data that packages ship: fonts and handwritten digits, no download.

Comes in: an empty folder. Goes out: three betons, a pairing, its report, a contact sheet, and a
transcript in which every number is measured in this run.

The source domain is letters and digits drawn from matplotlib's fonts (36 classes); the target
domain is scikit-learn's handwritten digits, few of each class.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from torch import nn
from torch.nn import functional

from xmix_data import (
    Beton,
    CenterCrop,
    ImageLoader,
    MissingDependencyError,
    MixedBatch,
    Pairing,
    RandomCrop,
    XMixLoader,
    class_centroids,
    pair_classes,
    write_beton,
    xmixup_loss,
)
from xmix_data.backbones import Backbone
from xmix_data.report import write_report

__all__ = ["Glyphs", "HandwrittenDigits", "run"]

CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_SIDE, _CROP = 32, 28
"""Pixels of a stored image and of what the network sees."""
_INK_HEIGHT = 24
"""Pixels that a glyph or a digit is high, before its variation."""


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
        ImageLoader(source, batch_size=settings.batch_size, crop=RandomCrop(_CROP)) as images,
        XMixLoader(
            target,
            source,
            pairing,
            batch_size=settings.batch_size,
            crop=RandomCrop(_CROP),
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
        dataset, path, image_size=_SIDE, encoding=encoding, progress=False, overwrite=True
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


class _Backbone(nn.Module):
    """A residual network of three blocks with a linear classifier ``fc``."""

    def __init__(self, classes: int, widths: Sequence[int] = (24, 48, 96)) -> None:
        super().__init__()
        stem = nn.Conv2d(3, widths[0], 3, stride=2, padding=1, bias=False)
        self.body = nn.Sequential(
            stem,
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
            *(_Block(i, o) for i, o in zip((widths[0], *widths), widths, strict=False)),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.fc = nn.Linear(widths[-1], classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(self.body(images))
        return logits


class _Block(nn.Module):
    """Two convolutions beside a shortcut; halves the picture where the width changes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.residual(x) + self.shortcut(x))


class _TwoHeads(nn.Module):
    """A trained backbone with a new target head; its own classifier is the source head."""

    def __init__(self, backbone: _Backbone, target_classes: int) -> None:
        super().__init__()
        self.body = deepcopy(backbone.body)
        self.source_head = deepcopy(backbone.fc)
        self.target_head = nn.Linear(backbone.fc.in_features, target_classes)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Target logits (B, n) and source logits (B, m)."""
        features = self.body(images)
        return self.target_head(features), self.source_head(features)


def _pretrain(source: Beton, settings: _Settings) -> _Backbone:
    torch.manual_seed(0)
    network = _Backbone(len(source.class_names))
    hits: list[float] = []

    def loss(batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        images, labels = batch
        logits = network(images)
        hits.append(float((logits.argmax(1) == labels).float().mean()))
        # Smoothing makes features of one class lie close together, and centroids tell more.
        return functional.cross_entropy(logits, labels, label_smoothing=0.1)

    started = time.perf_counter()
    with ImageLoader(
        source, batch_size=64, crop=RandomCrop(_CROP), shuffle=True, drop_last=True
    ) as loader:
        _train(network, loader, loss, settings.pretrain_epochs * len(loader), 0.05)
        last = float(np.mean(hits[-len(loader) :]))
    seconds = time.perf_counter() - started
    print(f"    {100 * last:.1f} % of the glyphs right in the last epoch; {seconds:.1f} s")
    return network


def _compare(
    backbone: _Backbone,
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
        "crop": RandomCrop(_CROP),
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
                for loader, loss in ((plain, _plain_loss), (mixed, _mixed_loss))
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


def _plain_loss(network: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    images, labels = batch
    return functional.cross_entropy(network(images)[0], labels)


def _mixed_loss(network: nn.Module, batch: MixedBatch) -> torch.Tensor:
    target_logits, source_logits = network(batch.images)
    return xmixup_loss(target_logits, source_logits, batch)


def _fine_tune(
    backbone: _Backbone,
    loader: Any,
    loss: Callable[[nn.Module, Any], torch.Tensor],
    test: Beton,
    seed: int,
    settings: _Settings,
) -> float:
    """Test accuracy in percent after the last iteration."""
    torch.manual_seed(seed)  # the same new target head for both methods
    network = _TwoHeads(backbone, loader.num_target_classes)
    _train(
        network,
        loader,
        functools.partial(loss, network),
        settings.iterations,
        settings.learning_rate,
    )
    return 100 * _accuracy(network, test)


def _train(
    network: nn.Module,
    loader: Any,
    loss_of: Callable[[Any], torch.Tensor],
    iterations: int,
    learning_rate: float,
) -> None:
    """SGD with momentum; the learning rate falls from the given one to 0 along a cosine."""
    network.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(
        network.parameters(), learning_rate, momentum=0.9, weight_decay=1e-4, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    for batch in itertools.islice(_endless(loader), iterations):
        optimizer.zero_grad()
        loss_of(batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()


def _endless(loader: Iterable[Any]) -> Iterator[Any]:
    while True:
        yield from loader


@torch.no_grad()
def _accuracy(network: _TwoHeads, test: Beton) -> float:
    network.eval()
    right = 0
    with ImageLoader(test, batch_size=256, crop=CenterCrop(_CROP)) as loader:
        for images, labels in loader:
            right += int((network(images)[0].argmax(1) == labels).sum())
    return right / len(test)


class Glyphs:
    """Letters and digits in matplotlib's fonts, each varied: a map-style dataset.

    ``[i]`` is (PIL image, 32 x 32, light ink on black; class id). The same index gives the same
    picture in every run.

    Args:
        variations: Pictures of each character in each font.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """

    classes: tuple[str, ...] = tuple(CHARACTERS)

    def __init__(self, variations: int = 10) -> None:
        self.fonts = _legible_fonts(_font_folder())
        self._variations = variations

    def __len__(self) -> int:
        return len(self.classes) * len(self.fonts) * self._variations

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        label, rest = divmod(index, len(self.fonts) * self._variations)
        font, _ = divmod(rest, self._variations)
        random = np.random.default_rng([0, index])
        return _varied(_glyph(self.fonts[font], self.classes[label]), random), label


def _font_folder() -> Path:
    try:
        import matplotlib
    except ImportError:
        raise _missing("matplotlib", "fonts") from None
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def _missing(package: str, what: str) -> MissingDependencyError:
    return MissingDependencyError(
        f"the demo takes its {what} from {package}, which is not installed: "
        "pip install 'xmix_data[demo]'"
    )


def _legible_fonts(folder: Path) -> list[Path]:
    """Fonts in which at least half of the characters look most like themselves in DejaVu Sans.

    A symbol font has other pictures, empty ones, or the same box in the places of letters and
    digits. Half, because slant, serifs and weight make pairs like 0 and O trade places.
    """
    reference = _flattened(folder / "DejaVuSans.ttf")
    own = np.arange(len(CHARACTERS))
    return [
        font
        for font in sorted(folder.glob("*.ttf"))
        if np.mean((_flattened(font) @ reference.T).argmax(1) == own) >= 0.5
    ]


def _flattened(font: Path) -> npt.NDArray[np.float64]:
    """(36, pixels): every character as a vector of mean 0 and length 1, or 0 if it is empty."""
    pixels = np.stack([np.asarray(_glyph(font, c), np.float64).ravel() for c in CHARACTERS])
    pixels -= pixels.mean(1, keepdims=True)
    return np.asarray(pixels / np.maximum(np.linalg.norm(pixels, axis=1, keepdims=True), 1e-9))


_OVERSAMPLING = 4
"""Glyphs are drawn and varied this much larger, and then made small in one step."""
_PATCHES = 2
"""A glyph is bent by moving the corners of as many patches along each edge."""


@functools.cache
def _glyph(font: Path, character: str) -> Image.Image:
    """One character, mode L, centred; as high as a digit of the target, whatever its font."""
    side, height = _SIDE * _OVERSAMPLING, _INK_HEIGHT * _OVERSAMPLING
    canvas = Image.new("L", (side, side))
    typeface = ImageFont.truetype(font, height)
    left, top, right, bottom = (round(edge) for edge in typeface.getbbox(character))
    if right <= left or bottom <= top:
        return canvas
    ink = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(ink).text((-left, -top), character, 255, typeface)
    width = min(side, round(height * ink.width / ink.height))
    ink = ink.resize((width, height), Image.Resampling.BICUBIC)
    canvas.paste(ink, ((side - width) // 2, (side - height) // 2))
    return canvas


def _varied(glyph: Image.Image, random: np.random.Generator) -> Image.Image:
    """The glyph as hands might write it: turned, slanted, stretched, bent, thin or thick.

    The bending matters: without it, the network reads fonts by details that no hand repeats.
    """
    side = glyph.width
    angle, slant = np.deg2rad(random.uniform(-12, 12)), random.uniform(-0.2, 0.2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    stretch = np.array([[random.uniform(0.9, 1.4), slant], [0, random.uniform(0.95, 1.25)]])
    edges = np.linspace(0, side, _PATCHES + 1)
    nodes = np.stack(np.meshgrid(edges, edges), axis=-1) - side / 2
    shift, bend = random.uniform(-1.5, 1.5, 2), random.uniform(-2, 2, nodes.shape)
    nodes = nodes @ (turn @ stretch).T + side / 2 + (shift + bend) * _OVERSAMPLING
    patches = [
        (
            tuple(round(edge) for edge in (edges[c], edges[r], edges[c + 1], edges[r + 1])),
            (*nodes[r, c], *nodes[r + 1, c], *nodes[r + 1, c + 1], *nodes[r, c + 1]),
        )
        for r in range(_PATCHES)
        for c in range(_PATCHES)
    ]
    picture = glyph.transform(glyph.size, Image.Transform.MESH, patches, Image.Resampling.BILINEAR)
    picture = picture.filter(ImageFilter.MaxFilter(int(random.choice([1, 3, 5, 7]))))
    picture = picture.filter(ImageFilter.GaussianBlur(random.uniform(0.6, 1.2) * _OVERSAMPLING))
    return picture.resize((_SIDE, _SIDE), Image.Resampling.BOX)


class HandwrittenDigits:
    """Scikit-learn's handwritten digits in three parts that do not overlap: a map-style dataset.

    ``[i]`` is (PIL image, 32 x 32, light ink on black; class id).

    The data set's second half is the test part. Its first half holds the training images, drawn
    at random, and in what they leave the validation part.

    Args:
        part: ``"train"``, ``"validation"`` or ``"test"``.
        per_class: Training images of each digit.
        draw: Another number draws other training images.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
        ValueError: No such part.
    """

    classes: tuple[str, ...] = tuple(f"digit {i}" for i in range(10))

    def __init__(self, part: str, per_class: int = 10, draw: int = 0) -> None:
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise _missing("scikit-learn", "digits") from None
        data = load_digits()
        half = len(data.target) // 2
        shuffled = np.random.default_rng(draw).permutation(half)
        digits = data.target[shuffled]
        chosen = [shuffled[digits == digit][:per_class] for digit in range(len(self.classes))]
        train = np.sort(np.concatenate(chosen))
        parts = {
            "train": train,
            "validation": np.setdiff1d(shuffled, train),
            "test": np.arange(half, len(data.target)),
        }
        if part not in parts:
            raise ValueError(f"part is {part!r}; it must be one of {', '.join(parts)}")
        self.indices: npt.NDArray[np.int64] = parts[part]
        """(N,) which of the data set's images these are."""
        self.targets: list[int] = data.target[self.indices].tolist()
        self._pixels = data.images[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        pixels = np.rint(self._pixels[index] * (255 / 16)).astype(np.uint8)
        ink = Image.fromarray(pixels).resize((_INK_HEIGHT, _INK_HEIGHT), Image.Resampling.BICUBIC)
        picture = Image.new("L", (_SIDE, _SIDE))
        picture.paste(ink, ((_SIDE - _INK_HEIGHT) // 2,) * 2)
        # The 8 x 8 pixels would still show, as a lattice that no glyph has.
        return picture.filter(ImageFilter.GaussianBlur(0.5)), self.targets[index]
