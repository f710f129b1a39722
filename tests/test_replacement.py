"""Damaged images while training: ``on_error="replace"``."""

from __future__ import annotations

import io
import logging
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from pictures import Images, written
from PIL import Image

from xmix_data import (
    Beton,
    BetonError,
    CenterCrop,
    ImageLoader,
    PairedClass,
    Pairing,
    RandomCrop,
    RandomResizedCrop,
    XMixLoader,
)

TARGETS = 300
BAD_TARGETS, BAD_SOURCES = (7, 150, 299), (3, 31)


class Pair(NamedTuple):
    """The same two betons, sound and damaged."""

    target: Beton
    source: Beton
    bad_target: Beton
    bad_source: Beton
    pairing: Pairing


def spoiled(beton: Beton, indices: Sequence[int], path: Path) -> Beton:
    """A copy whose images at ``indices`` are no JPEGs."""
    shutil.copy(beton.path, path)
    shutil.copy(f"{beton.path}.json", f"{path}.json")
    with path.open("r+b") as stream:
        for index in indices:
            stream.seek(int(beton.pointers[index]))
            stream.write(b"no")
    return Beton(path)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("pair")
    target, source = (
        written(
            Images(counts, name, (24, 24), seed=len(name)),
            folder / f"{name}.beton",
            image_size=None,
        )
        for name, counts in (("target", [100, 80, 120]), ("source", [120, 150, 130, 60]))
    )
    # Class 0 draws from two source classes, and from half of the second.
    pairing = Pairing(
        {
            "target0": [PairedClass("source0", 0.9, 120), PairedClass("source1", 0.8, 75, 0)],
            "target1": [PairedClass("source2", 0.7, 130)],
            "target2": [PairedClass("source3", 0.6, 60)],
        }
    )
    return Pair(
        target,
        source,
        spoiled(target, BAD_TARGETS, folder / "bad-target.beton"),
        spoiled(source, BAD_SOURCES, folder / "bad-source.beton"),
        pairing,
    )


def loaders(pair: Pair, *, damaged: bool = True, **options: Any) -> XMixLoader:
    domains = (pair.bad_target, pair.bad_source) if damaged else (pair.target, pair.source)
    settings = {
        "batch_size": 10,
        "crop": RandomCrop(16),
        "seed": 2,
        "num_workers": 2,
        "on_error": "replace",
        "drop_last": False,
        **options,
    }
    return XMixLoader(*domains, pair.pairing, **settings)


def epoch(loader: XMixLoader) -> tuple[list[torch.Tensor], list[Any]]:
    """All batches of an epoch as columns, and the rows of each batch."""
    batches, rows = [], []
    for batch in loader:
        batches.append(batch)
        rows.append(loader.last_rows)
    return [torch.cat(column) for column in zip(*batches, strict=True)], rows


def drawn(rows: list[Any], side: str) -> list[int]:
    return [i for part in rows for i in getattr(part, side).tolist()]


def crop_of(beton: Beton, index: int, box: Sequence[int], flip: bool) -> np.ndarray:
    image = np.asarray(Image.open(io.BytesIO(beton.data(index).tobytes())))
    top, left, height, width = box
    crop = image[top : top + height, left : left + width]
    return crop[:, ::-1] if flip else crop


def test_another_image_of_the_class_takes_the_place(pair: Pair, backend: str) -> None:
    """Its pixels, its label; everything else is as if nothing were damaged."""
    options = {"mix": False, "dtype": torch.uint8, "backend": backend}
    loader = loaders(pair, **options)
    whole, rows = epoch(loader)
    sound, sound_rows = epoch(loaders(pair, damaged=False, **options))
    drawn_before = {side: drawn(sound_rows, side) for side in ("target", "source")}
    drawn_now = {side: drawn(rows, side) for side in ("target", "source")}
    replaced = 0
    for side, bad, beton in (
        ("target", BAD_TARGETS, pair.target),
        ("source", BAD_SOURCES, pair.source),
    ):
        images, sound_images = (
            columns[("target", "source").index(side)] for columns in (whole, sound)
        )
        crops = [
            (box, flip)
            for part in rows
            for box, flip in zip(
                getattr(part, f"{side}_crops").boxes,
                getattr(part, f"{side}_crops").flips,
                strict=True,
            )
        ]
        for position, (before, now) in enumerate(
            zip(drawn_before[side], drawn_now[side], strict=True)
        ):
            assert (before == now) == (before not in bad)
            if before == now:
                assert torch.equal(images[position], sound_images[position])
                continue
            replaced += 1
            assert now not in bad and beton.labels[now] == beton.labels[before]
            expected = crop_of(beton, now, *crops[position])
            assert np.array_equal(images[position].permute(1, 2, 0), expected)
    assert loader.stats()["replaced"] == replaced >= len(BAD_TARGETS) + 1
    for column in (2, 3, 4, 5):  # labels, domains, λ
        assert torch.equal(whole[column], sound[column])
    # A source class of which only a part is drawn lends only that part.
    lent = loader._plan.pool
    assert lent is not None and set(drawn_now["source"]) <= set(lent.images.tolist())


@pytest.mark.parametrize("crop", [RandomCrop(16), RandomResizedCrop(12)], ids=repr)
@pytest.mark.parametrize("mix", [True, False])
def test_backends_replace_alike(pair: Pair, crop: Any, mix: bool) -> None:
    ours, reference = (
        epoch(loaders(pair, crop=crop, mix=mix, backend=name))[0] for name in ("host", "reference")
    )
    for one, other in zip(ours, reference, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [{"num_workers": 1}, {"num_workers": 8, "prefetch": 8}, {"batch_size": 7}, {"batch_size": 64}],
    ids=str,
)
def test_threads_and_batches_change_nothing(pair: Pair, options: dict[str, Any]) -> None:
    for one, other in zip(epoch(loaders(pair))[0], epoch(loaders(pair, **options))[0], strict=True):
        assert torch.equal(one, other)


def test_ranks_replace_alike(pair: Pair) -> None:
    one, _ = epoch(loaders(pair, batch_size=20))
    ranks = [list(loaders(pair, rank=rank, world_size=2)) for rank in range(2)]
    together = [batch for step in zip(*ranks, strict=True) for batch in step]
    for column, whole in zip(zip(*together, strict=True), one, strict=True):
        assert torch.equal(torch.cat(column), whole)


def test_a_resumed_epoch_replaces_alike(pair: Pair) -> None:
    loader = loaders(pair)
    iterator = iter(loader)
    first = [next(iterator) for _ in range(13)]
    resumed = loaders(pair, batch_size=17)
    resumed.load_state_dict(loader.state_dict())
    columns = [torch.cat(column) for column in zip(*first, *resumed, strict=True)]
    for one, other in zip(columns, epoch(loaders(pair))[0], strict=True):
        assert torch.equal(one, other)


def test_every_epoch_draws_another_replacement(pair: Pair) -> None:
    loader = ImageLoader(
        pair.bad_target, batch_size=50, crop=CenterCrop(16), shuffle=True, on_error="replace"
    )
    stand_ins = []
    for _ in range(40):
        rows = []
        for _ in loader:
            assert loader.last_rows is not None
            rows += loader.last_rows.target.tolist()
        (extra,) = [
            i for i, n in Counter(rows).items() if n > 1 and pair.target.labels[i] == 0
        ]  # image 7 is the only damaged one of class 0
        stand_ins.append(extra)
    assert loader.stats()["replaced"] == 40 * len(BAD_TARGETS)
    assert len(set(stand_ins)) > 25 and 7 not in stand_ins


def test_damaged_images_are_named_once(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    loader = ImageLoader(pair.bad_target, batch_size=50, crop=CenterCrop(16), on_error="replace")
    with caplog.at_level(logging.WARNING, "xmix_data"):
        for _ in range(3):
            assert sum(len(labels) for _, labels in loader) == TARGETS
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == len(BAD_TARGETS)
    for index, line in zip(BAD_TARGETS, lines, strict=True):
        assert f"bad-target.beton: image {index} (class 'target" in line


def test_raise_is_the_default(pair: Pair, backend: str) -> None:
    loader = ImageLoader(pair.bad_target, batch_size=50, crop=CenterCrop(16), backend=backend)
    with pytest.raises(BetonError, match=r"bad-target\.beton: image 7 \(class 'target0'\)"):
        list(loader)


def test_much_damage_stops_the_epoch(pair: Pair, backend: str, tmp_path: Path) -> None:
    """More than 1 %, and than ten: in the same batch for all."""
    beton = spoiled(pair.target, range(0, TARGETS, 20), tmp_path / "worse.beton")
    loader = ImageLoader(
        beton, batch_size=50, crop=CenterCrop(16), on_error="replace", backend=backend
    )
    with pytest.raises(BetonError, match=r"image \d+ .* and 10 images before it .* more than 1%"):
        list(loader)
    assert 2 <= loader.stats()["batches"] <= 4
    assert loader.stats()["replaced"] == 11


def test_a_class_without_a_sound_image_is_named(backend: str, tmp_path: Path) -> None:
    sound = written(Images([300, 3], "c", (24, 24)), tmp_path / "sound.beton", image_size=None)
    options: dict[str, Any] = {"batch_size": 101, "crop": CenterCrop(16), "backend": backend}
    one_left = spoiled(sound, (300, 302), tmp_path / "one-left.beton")
    loader = ImageLoader(one_left, on_error="replace", **options)
    *_, last = loader
    assert last[1].tolist() == [0] * 98 + [1] * 3
    assert loader.last_rows is not None and loader.last_rows.target[-3:].tolist() == [301] * 3
    none_left = spoiled(sound, (300, 301, 302), tmp_path / "none-left.beton")
    with pytest.raises(BetonError, match=r"class 'c1'\) cannot be decoded, .* the 2 others"):
        list(ImageLoader(none_left, on_error="replace", **options))


def test_a_preview_shows_the_replacement(pair: Pair) -> None:
    loader = loaders(pair, batch_size=TARGETS)
    rows = loader._plan.epoch(0).rows(0, TARGETS)
    place = int(np.flatnonzero(np.isin(rows.target, BAD_TARGETS))[0])
    assert loader.preview(place + 1).size[1] > 0


def test_replacements_are_equally_likely(pair: Pair) -> None:
    """Over positions; and by attempts each other image comes once."""
    plan = ImageLoader(
        pair.target, batch_size=1, crop=CenterCrop(16), classes=["target1"], shuffle=True
    )._plan
    first: Counter[int] = Counter()
    for number in range(60):
        one = plan.epoch(number)
        rows = one.rows(0, 80)
        for item in range(80):
            first[int(one.replaced(rows, 0, item, 0).target[item])] += 1
    assert len(first) == 80
    expected = 60 * 80 / 80
    chi_squared = sum((n - expected) ** 2 / expected for n in first.values())
    assert chi_squared < 79 + 5 * (2 * 79) ** 0.5
    tries = [int(one.replaced(rows, 0, 3, attempt).target[3]) for attempt in range(79)]
    assert sorted([*tries, int(rows.target[3])]) == sorted(plan.samples.tolist())
    with pytest.raises(IndexError):
        one.replaced(rows, 0, 3, 79)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mix", [True, False])
def test_replacements_reach_the_gpu(pair: Pair, mix: bool) -> None:
    """Made before the batch is copied, mirrored where the plan says."""
    ours, _ = epoch(loaders(pair, mix=mix, device="cuda"))
    reference, _ = epoch(loaders(pair, mix=mix, backend="reference"))
    for one, other in zip(ours, reference, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=0, atol=1e-6)
