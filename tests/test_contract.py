"""The loaders' semantics, one check a promise, over every backend; `torch` is the oracle."""

from __future__ import annotations

import itertools
import json
import logging
import pickle
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
import torch
from conftest import Betons, NumberedBetons, reversed_pairing
from pictures import Images, Numbered, written

import xmix_data
from xmix_data import (
    Beton,
    CenterCrop,
    ImageLoader,
    MixedBatch,
    PairedBatch,
    PairedClass,
    Pairing,
    RandomCrop,
    RandomResizedCrop,
    XMixLoader,
    write_beton,
)
from xmix_data.beton import open_domain, open_images
from xmix_data.images import select

FP32_TOLERANCE = 1e-6
JPEG_TOLERANCE = 2
"""Grey levels by which JPEG decoders may differ; libjpeg-turbo's accurate DCT gives 0."""
DALI_RESIZE_TOLERANCE = 8
"""The same where DALI resizes: it rounds once instead of twice, and repeats the pixels at the edges
that Pillow leaves out."""

CROPS = [
    RandomCrop(32),
    CenterCrop(32),
    CenterCrop((28, 20), ratio=0.8),
    RandomResizedCrop((20, 28)),
    RandomCrop((40, 17)),
]


def mixed(betons: Betons, **options: Any) -> XMixLoader:
    settings = {"batch_size": 8, "crop": RandomCrop(32), "seed": 3, "num_workers": 2, **options}
    return XMixLoader(betons.target_raw, betons.source_raw, betons.pairing, **settings)


def crops(numbered: NumberedBetons, **options: Any) -> XMixLoader:
    """Unmixed uint8 batches whose pictures tell their indices."""
    settings = {"batch_size": 4, "crop": RandomCrop(8), "seed": 5, "num_workers": 2, **options}
    return XMixLoader(
        numbered.target, numbered.source, numbered.pairing, mix=False, dtype=torch.uint8, **settings
    )


def assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b)


def targets_of(batches: list[Any]) -> list[int]:
    return [i for batch in batches for i in Numbered.indices(batch.target_images)]


def test_mixed_batch_has_the_promised_shapes_and_types(betons: Betons, backend: str) -> None:
    loader = mixed(betons, backend=backend)
    batch = next(iter(loader))
    assert isinstance(batch, MixedBatch)
    assert batch.images.shape == (8, 3, 32, 32)
    assert batch.images.dtype == torch.float32
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.target_labels.dtype == batch.source_labels.dtype == torch.int64
    assert batch.lam.dtype == torch.float32
    assert batch.lam.shape == batch.target_labels.shape == batch.source_labels.shape == (8,)
    assert (loader.num_target_classes, loader.num_source_classes) == (4, 6)
    assert len(loader) == 27 // 8


def test_mixed_images_are_the_stated_formula(betons: Betons, backend: str) -> None:
    """Eq. 4 on the crops that the same plan gives unmixed."""
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    pairs = mixed(betons, mix=False, dtype=torch.uint8, backend="reference")
    loader = mixed(betons, mean=mean, std=std, backend=backend)
    shift, scale = (torch.tensor(x, dtype=torch.float64)[None, :, None, None] for x in (mean, std))
    for pair, batch in zip(pairs, loader, strict=True):
        lam = batch.lam.double()[:, None, None, None]
        both = lam * pair.target_images / 255 + (1 - lam) * pair.source_images / 255
        assert torch.equal(pair.lam, batch.lam)
        assert (batch.images - (both - shift) / scale).abs().max() < FP32_TOLERANCE


def test_labels_and_sources_follow_the_pairing(numbered: NumberedBetons, backend: str) -> None:
    target, source = Numbered([12, 10, 15], "t").targets, Numbered([40, 30, 5, 25], "s").targets
    for batch in crops(numbered, backend=backend):
        assert isinstance(batch, PairedBatch)
        shown = Numbered.indices(batch.target_images)
        assert [target[i] for i in shown] == batch.target_labels.tolist()
        shown = Numbered.indices(batch.source_images)
        assert [source[i] for i in shown] == batch.source_labels.tolist()
        assert (batch.source_labels == 3 - batch.target_labels).all()
        assert (batch.source_domains == 0).all()


def test_soft_labels_put_lam_on_the_target_block(betons: Betons, backend: str) -> None:
    hard, soft = mixed(betons, backend=backend), mixed(betons, labels="soft", backend=backend)
    for batch, (images, labels) in zip(hard, soft, strict=True):
        assert torch.equal(images, batch.images)
        assert labels.shape == (8, 4 + 6)
        assert torch.allclose(labels.sum(1), torch.ones(8))
        rows = torch.arange(8)
        assert torch.equal(labels[rows, batch.target_labels], batch.lam)
        assert torch.equal(labels[rows, 4 + batch.source_labels], 1 - batch.lam)


def test_label_smoothing_stays_within_each_label_set(betons: Betons, backend: str) -> None:
    ε, n, m = 0.1, 4, 6
    hard = mixed(betons, backend=backend)
    soft = mixed(betons, labels="soft", label_smoothing=ε, backend=backend)
    assert soft.label_smoothing == ε
    for batch, (_, labels) in zip(hard, soft, strict=True):
        lam = batch.lam[:, None]
        target = (1 - ε) * torch.eye(n)[batch.target_labels] + ε / n
        source = (1 - ε) * torch.eye(m)[batch.source_labels] + ε / m
        torch.testing.assert_close(labels, torch.cat([lam * target, (1 - lam) * source], 1))


@pytest.mark.parametrize("mix", [True, False])
def test_a_dict_has_the_fields_by_name(betons: Betons, backend: str, mix: bool) -> None:
    options = {"backend": backend, "mix": mix}
    for batch, named in zip(
        mixed(betons, **options), mixed(betons, labels="dict", **options), strict=True
    ):
        assert type(named) is dict and list(named) == list(batch._fields)
        assert_same(type(batch)(**named), batch)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"labels": "soft"}, ("pixel_values", "labels")),
        ({}, ("x", "t", "s", "weight")),
        ({"labels": "dict"}, ("x", "t", "s", "weight")),
        ({"mix": False}, ("x_t", "x_s", "t", "s", "domain", "weight")),
    ],
    ids=str,
)
def test_fields_may_have_other_names(
    betons: Betons, options: dict[str, Any], names: tuple[str, ...]
) -> None:
    loader = mixed(betons, **options, names=list(names))
    assert loader.names == names == pickle.loads(pickle.dumps(loader)).names
    assert list(loader.peek()) == list(names)
    for batch, named in zip(mixed(betons, **options), loader, strict=True):
        fields = batch.values() if isinstance(batch, dict) else batch
        assert list(named) == list(names)
        assert_same(tuple(named.values()), tuple(fields))


def test_images_and_labels_may_have_other_names(betons: Betons) -> None:
    settings: dict[str, Any] = {"batch_size": 8, "crop": CenterCrop(32)}
    named = ImageLoader(betons.target_raw, **settings, names=("image", "label"))
    for batch, other in zip(named, ImageLoader(betons.target_raw, **settings), strict=True):
        assert list(batch) == ["image", "label"]
        assert_same(tuple(batch.values()), other)
    with pytest.raises(ValueError, match="names is 'image'; give 2 different names, for images, l"):
        ImageLoader(betons.target_raw, **settings, names="image")


@pytest.mark.parametrize("mix", [True, False])
def test_memory_format_changes_the_layout_alone(betons: Betons, backend: str, mix: bool) -> None:
    options = {"backend": backend, "mix": mix}
    plain = mixed(betons, memory_format=torch.contiguous_format, **options)
    assert plain.memory_format == torch.contiguous_format
    assert_same(plain.peek(), mixed(betons, **options).peek())
    for batch, expected in zip(plain, mixed(betons, **options), strict=True):
        assert_same(batch, expected)
        for image, other in zip(batch, expected, strict=True):
            if image.ndim == 4:
                assert image.is_contiguous() and other.is_contiguous(
                    memory_format=torch.channels_last
                )
    loader = ImageLoader(
        betons.target_raw,
        batch_size=8,
        crop=CenterCrop(32),
        backend=backend,
        memory_format=torch.contiguous_format,
    )
    assert next(iter(loader))[0].is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mix", [True, False])
def test_half_precision_is_the_rounded_fp32(
    betons: Betons, backend: str, dtype: torch.dtype, mix: bool
) -> None:
    exact = next(iter(mixed(betons, backend=backend, mix=mix)))
    half = next(iter(mixed(betons, backend=backend, mix=mix, dtype=dtype)))
    assert half[0].dtype == dtype
    assert half[0].is_contiguous(memory_format=torch.channels_last)
    step = 2**-8 if dtype == torch.bfloat16 else 2**-11
    assert ((half[0].float() - exact[0]).abs() <= step * exact[0].abs() + 1e-6).all()


def test_batches_belong_to_the_caller(betons: Betons, backend: str) -> None:
    for mix in (True, False):
        held = list(mixed(betons, backend=backend, mix=mix, prefetch=1))
        copies = [type(b)(*(x.clone() for x in b)) for b in mixed(betons, backend=backend, mix=mix)]
        for one, other in zip(held, copies, strict=True):
            assert_same(one, other)


@pytest.mark.parametrize(
    "change", [{"num_workers": 1}, {"num_workers": 5}, {"prefetch": 1}, {"prefetch": 9}]
)
def test_threads_and_prefetch_change_nothing(
    betons: Betons, backend: str, change: dict[str, int]
) -> None:
    for one, other in zip(
        mixed(betons, backend=backend), mixed(betons, backend=backend, **change), strict=True
    ):
        assert_same(one, other)


def test_an_epoch_is_one_pass_over_the_target(numbered: NumberedBetons, backend: str) -> None:
    loader = crops(numbered, backend=backend, drop_last=False)
    orders = [targets_of(list(loader)) for _ in range(3)]
    assert all(sorted(order) == list(range(37)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert loader.epoch == 3


def test_seed_and_epoch_are_all_that_is_random(betons: Betons, backend: str) -> None:
    again, later = mixed(betons, backend=backend), mixed(betons, backend=backend)
    first, second = list(again), list(again)
    later.set_epoch(1)
    for one, other in zip(second, later, strict=True):
        assert_same(one, other)
    assert not torch.equal(first[0].images, second[0].images)
    other_seed = next(iter(mixed(betons, backend=backend, seed=4)))
    assert not torch.equal(first[0].images, other_seed.images)


def test_batch_size_does_not_change_the_sequence(numbered: NumberedBetons, backend: str) -> None:
    small = list(crops(numbered, backend=backend, batch_size=3, drop_last=False))
    large = list(crops(numbered, backend=backend, batch_size=11, drop_last=False))
    for field in range(len(small[0])):
        one, other = (torch.cat([batch[field] for batch in b]) for b in (small, large))
        assert torch.equal(one, other)


@pytest.mark.parametrize("crop", CROPS, ids=repr)
@pytest.mark.parametrize("flip", [True, False])
def test_raw_crops_are_equal_bit_for_bit(
    betons: Betons, crop: Any, flip: bool, fast_backend: str
) -> None:
    options = {"crop": crop, "flip": flip, "mix": False, "dtype": torch.uint8}
    for one, other in zip(
        mixed(betons, backend=fast_backend, **options),
        mixed(betons, backend="reference", **options),
        strict=True,
    ):
        assert one.target_images.dtype == torch.uint8
        assert_same(one, other)


@pytest.mark.parametrize("crop", CROPS, ids=repr)
@pytest.mark.parametrize("mix", [True, False])
def test_fp32_of_raw_images_agrees(betons: Betons, crop: Any, mix: bool, fast_backend: str) -> None:
    for one, other in zip(
        mixed(betons, backend=fast_backend, crop=crop, mix=mix),
        mixed(betons, backend="reference", crop=crop, mix=mix),
        strict=True,
    ):
        for a, b in zip(one, other, strict=True):
            if a.ndim == 4:
                assert (a - b).abs().max() < FP32_TOLERANCE
            else:
                assert torch.equal(a, b)


@pytest.mark.parametrize("crop", CROPS, ids=repr)
@pytest.mark.parametrize("encodings", [("jpg", "jpg"), ("raw", "jpg"), ("jpg", "raw")])
def test_jpeg_agrees_within_the_decoder_tolerance(
    betons: Betons, crop: Any, encodings: tuple[str, str], fast_backend: str
) -> None:
    resized = fast_backend == "dali" and crop.resizes
    tolerance = DALI_RESIZE_TOLERANCE if resized else JPEG_TOLERANCE
    target = getattr(betons, f"target_{encodings[0]}")
    source = getattr(betons, f"source_{encodings[1]}")
    loaders = [
        XMixLoader(
            target,
            source,
            betons.pairing,
            batch_size=9,
            crop=crop,
            mix=False,
            dtype=torch.uint8,
            backend=backend,
        )
        for backend in (fast_backend, "reference")
    ]
    for one, other in zip(*loaders, strict=True):
        for a, b in zip(one, other, strict=True):
            assert (a.int() - b.int()).abs().max() <= (tolerance if a.ndim == 4 else 0)


def test_images_of_many_sizes_are_cropped_alike(tmp_path: Path, fast_backend: str) -> None:
    class Varied(Images):
        def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
            image, label = super().__getitem__(index)
            return image[: 33 + index % 8, : 40 - index % 7], label

    options = {"image_size": None, "crop": "none", "num_workers": 0, "progress": False}
    target = write_beton(Varied([9, 9], "t"), tmp_path / "t.beton", encoding="raw", **options)
    source = write_beton(Varied([9, 9], "s"), tmp_path / "s.beton", encoding="jpg", **options)
    assert target.image_size is None
    for crop in (RandomCrop(32), RandomResizedCrop(24)):
        batches = [
            next(
                iter(
                    XMixLoader(
                        target,
                        source,
                        reversed_pairing(target, source),
                        batch_size=18,
                        crop=crop,
                        mix=False,
                        dtype=torch.uint8,
                        backend=backend,
                    )
                )
            )
            for backend in (fast_backend, "reference")
        ]
        assert torch.equal(batches[0].target_images, batches[1].target_images)
        difference = batches[0].source_images.int() - batches[1].source_images.int()
        resized = fast_backend == "dali" and crop.resizes
        assert difference.abs().max() <= (DALI_RESIZE_TOLERANCE if resized else JPEG_TOLERANCE)


def test_exhausting_a_pass_begins_the_next_epoch(numbered: NumberedBetons, backend: str) -> None:
    loader = crops(numbered, backend=backend)
    for epoch in range(3):
        assert loader.epoch == epoch
        assert len(list(loader)) == len(loader) == 9
    assert loader.epoch == 3


def test_iter_after_a_partial_pass_is_the_next_epoch(
    numbered: NumberedBetons, backend: str
) -> None:
    loader = crops(numbered, backend=backend)
    older = iter(loader)
    next(older)
    newer = iter(loader)
    assert loader.epoch == 1
    with pytest.raises(RuntimeError, match="closed"):
        next(older)
    fresh = crops(numbered, backend=backend)
    fresh.set_epoch(1)
    assert_same(next(newer), next(iter(fresh)))


def test_a_stream_that_is_over_stays_over(betons: Betons, backend: str) -> None:
    """Whoever asks once more is told, and does not wait for ever."""
    loader = mixed(betons, backend=backend)
    plan = loader._plan.epoch(0)
    stream = loader._backend.stream(iter([plan.rows(0, 9), plan.rows(9, 18)]))
    answers: list[Any] = []
    asks = threading.Thread(
        target=lambda: answers.extend(next(stream, None) for _ in range(4)), daemon=True
    )
    asks.start()
    asks.join(60)
    stream.close()
    assert [answer is None for answer in answers] == [False, False, True, True]


def test_iter_before_any_batch_stays_in_the_epoch(numbered: NumberedBetons, backend: str) -> None:
    loader = crops(numbered, backend=backend)
    iter(loader)
    iter(loader)
    assert loader.epoch == 0


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_a_loaded_state_yields_the_rest_of_the_epoch(
    numbered: NumberedBetons, backend: str, taken: int
) -> None:
    loader = crops(numbered, backend=backend)
    list(loader)
    iterator = iter(loader)
    for _ in range(taken):
        next(iterator)
    state = json.loads(json.dumps(loader.state_dict()))
    assert (state["epoch"], state["position"]) == (1, 4 * taken)
    rest = list(iterator)

    resumed = crops(numbered, backend=backend)
    resumed.load_state_dict(state)
    again = list(resumed)
    assert len(again) == len(rest) == 9 - taken
    for one, other in zip(rest, again, strict=True):
        assert_same(one, other)
    assert resumed.epoch == 2
    assert_same(next(iter(loader)), next(iter(resumed)))


def test_a_state_without_a_batch_left_leads_to_the_next_epoch(
    numbered: NumberedBetons, backend: str
) -> None:
    """The state stays what was received; only the next iteration is the next epoch's."""
    loader = crops(numbered, backend=backend)
    list(loader)
    iterator = iter(loader)
    for _ in range(len(loader)):
        next(iterator)
    state = loader.state_dict()
    assert (state["epoch"], state["position"]) == (1, 36)  # of 37: drop_last leaves one out
    expected = list(loader)  # the consumer stopped after len() batches

    resumed = crops(numbered, backend=backend)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    again = list(resumed)
    assert len(again) == len(expected) == 9 and resumed.epoch == 3
    for one, other in zip(expected, again, strict=True):
        assert_same(one, other)

    finer = crops(numbered, backend=backend, batch_size=1)  # which still has one
    finer.load_state_dict(state)
    assert len(list(finer)) == 1 and finer.epoch == 2


def test_prefetched_batches_do_not_count(numbered: NumberedBetons, backend: str) -> None:
    loader = crops(numbered, backend=backend, prefetch=8)
    next(iter(loader))
    assert loader.state_dict()["position"] == 4


def test_another_batch_size_continues_the_sequence(numbered: NumberedBetons, backend: str) -> None:
    loader = crops(numbered, backend=backend, drop_last=False)
    iterator = iter(loader)
    first = [next(iterator), next(iterator)]
    resumed = crops(numbered, backend=backend, batch_size=7, drop_last=False)
    resumed.load_state_dict(loader.state_dict())
    whole = targets_of(list(crops(numbered, backend=backend, drop_last=False)))
    assert targets_of(first) + targets_of(list(resumed)) == whole


OLD_ORDERS = [
    [int(place) for place in order.split()]
    for order in (
        "2 32 13 17 8 20 16 29 25 11 31 33 14 19 21 28 23 4"
        " 34 36 24 5 22 6 18 15 27 35 10 30 0 9 26 1 12 3",
        "3 29 1 2 16 25 31 21 11 19 10 9 6 15 24 23 33 0"
        " 22 26 5 36 7 28 14 20 18 13 8 30 4 35 32 17 12 27",
    )
]
"""Targets of the first two epochs, as version 1 of the plan had them."""


def test_a_state_of_the_first_version_goes_on_with_its_order(
    numbered: NumberedBetons, backend: str
) -> None:
    loader = crops(numbered, backend=backend)
    new = {**loader.state_dict(), "position": 8}
    loader.load_state_dict({**new, "version": 1})
    assert loader.state_dict() == {**new, "version": 1}
    assert targets_of([loader.peek()]) == OLD_ORDERS[0][8:12]
    travelled = pickle.loads(pickle.dumps(loader))
    ranks = [crops(numbered, backend=backend, batch_size=1, rank=r, world_size=2) for r in (0, 1)]
    for rank in ranks:
        rank.load_state_dict(loader.state_dict())
    assert targets_of(list(loader)) == targets_of(list(travelled)) == OLD_ORDERS[0][8:]
    together = [batch for step in zip(*ranks, strict=True) for batch in step]
    assert targets_of(together)[: 36 - 8] == OLD_ORDERS[0][8:]
    loader.set_crop(CenterCrop(8))  # another plan, of the same version
    travelled.set_epoch(1)
    assert targets_of(list(loader)) == targets_of(list(travelled)) == OLD_ORDERS[1]
    assert loader.state_dict()["version"] == 1

    loader.load_state_dict(new)
    rest = targets_of(list(loader))
    assert rest == targets_of(list(crops(numbered, backend=backend)))[8:] != OLD_ORDERS[0][8:]
    assert loader.state_dict()["version"] == 2
    for version in (0, 3, None):
        with pytest.raises(ValueError, match="no loader state of version 1 or 2"):
            loader.load_state_dict({**new, "version": version})


def test_a_state_of_another_loader_is_refused(numbered: NumberedBetons, backend: str) -> None:
    state = crops(numbered, backend=backend).state_dict()
    with pytest.raises(ValueError, match="seed 5, this loader has seed 6"):
        crops(numbered, backend=backend, seed=6).load_state_dict(state)
    other = Pairing({**numbered.pairing.pairs, "t0": [PairedClass("s0", 0.1, 40)]})
    changed = XMixLoader(
        numbered.target,
        numbered.source,
        other,
        batch_size=4,
        crop=RandomCrop(8),
        seed=5,
        backend=backend,
    )
    with pytest.raises(ValueError, match="other data or another pairing"):
        changed.load_state_dict(state)
    with pytest.raises(ValueError, match="no loader state"):
        changed.load_state_dict({"epoch": 1})


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("drop_last", [True, False])
def test_ranks_together_are_the_one_process_batch(
    numbered: NumberedBetons, backend: str, world_size: int, drop_last: bool
) -> None:
    one = list(crops(numbered, backend=backend, batch_size=5 * world_size, drop_last=drop_last))
    ranks = [
        list(
            crops(
                numbered,
                backend=backend,
                batch_size=5,
                drop_last=drop_last,
                rank=rank,
                world_size=world_size,
            )
        )
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    assert len(ranks[0]) == len(one)
    for step, whole in enumerate(one):
        together = [torch.cat(parts) for parts in zip(*(r[step] for r in ranks), strict=True)]
        size = len(whole.lam)
        assert len(together[0]) == -(-size // world_size) * world_size
        for part, expected in zip(together, whole, strict=True):
            assert torch.equal(part[:size], expected)
    if not drop_last:
        seen = Counter(i for batches in ranks for i in targets_of(batches))
        padding = sum(seen.values()) - 37
        order = targets_of(one)
        assert set(seen) == set(range(37))
        assert 0 <= padding < world_size
        assert {i for i, times in seen.items() if times > 1} == set(order[:padding])


def test_state_counts_samples_over_all_ranks(numbered: NumberedBetons, backend: str) -> None:
    loader = crops(numbered, backend=backend, rank=1, world_size=3)
    iterator = iter(loader)
    next(iterator)
    state = loader.state_dict()
    assert state["position"] == 12
    alone = crops(numbered, backend=backend, drop_last=False)
    alone.load_state_dict(state)
    whole = targets_of(list(crops(numbered, backend=backend, drop_last=False)))
    assert targets_of(list(alone)) == whole[12:]


def test_rank_is_found_from_torch_distributed(
    numbered: NumberedBetons, tmp_path: Path, forked: processes.Server
) -> None:
    numbered.pairing.save(tmp_path / "pairing.json")
    code = (
        "import sys, torch\n"
        "from xmix_data import XMixLoader, RandomCrop\n"
        "rank, target, source, pairing, store = int(sys.argv[1]), *sys.argv[2:]\n"
        "torch.distributed.init_process_group(\n"
        "    'gloo', init_method='file://' + store, rank=rank, world_size=2)\n"
        "loader = XMixLoader(target, source, pairing, batch_size=4, crop=RandomCrop(8),\n"
        "                    mix=False, dtype=torch.uint8, seed=5)\n"
        "assert (loader.rank, loader.world_size) == (rank, 2)\n"
        "print([b.target_images[:, 0, 0, 0].tolist() for b in loader])\n"
        "torch.distributed.barrier()\n"
    )
    paths = [str(numbered.target.path), str(numbered.source.path), str(tmp_path / "pairing.json")]
    started = [
        forked.start("-c", code, str(rank), *paths, str(tmp_path / "store")) for rank in range(2)
    ]
    results = processes.ended(started, 120)
    assert [status for status, *_ in results] == [0, 0], results
    outputs = [json.loads(out) for _, out, _ in results]
    whole = targets_of(list(crops(numbered, batch_size=8)))
    assert [i for pair in zip(*outputs, strict=True) for part in pair for i in part] == whole


def test_a_list_is_several_domains_with_offset_classes(
    numbered: NumberedBetons, betons: Betons, backend: str
) -> None:
    pairing = Pairing(
        {
            "t0": [PairedClass("s1", 0.9, 30), PairedClass("q1", 0.8, 5)],
            "t1": [PairedClass("q0", 0.7, 4)],
            "t2": [PairedClass("s3", 0.6, 25)],
        }
    )
    folder = numbered.source.path.parent
    extra = folder / f"extra-{backend}.beton"
    written(Numbered([4, 5], "q"), extra, image_size=24, encoding="raw")
    loader = XMixLoader(
        numbered.target,
        [numbered.source.path, extra],
        pairing,
        batch_size=37,
        crop=RandomCrop(8),
        mix=False,
        dtype=torch.uint8,
        backend=backend,
    )
    assert loader.num_source_classes == 6
    seen = set()
    for _ in range(4):
        batch = next(iter(loader))
        seen |= {*zip(batch.target_labels.tolist(), batch.source_labels.tolist(), strict=True)}
        assert torch.equal(batch.source_domains, (batch.source_labels >= 4).long())
        first = Numbered([4, 5], "q").targets
        for image, label in zip(
            Numbered.indices(batch.source_images), batch.source_labels, strict=True
        ):
            if label >= 4:
                assert 4 + first[image] == label
    assert seen == {(0, 1), (0, 5), (1, 4), (2, 3)}


def test_shards_of_one_set_are_one_domain(tmp_path: Path, backend: str) -> None:
    images = Numbered([10, 9, 8], "c")
    options = {"image_size": 24, "encoding": "raw", "num_workers": 0, "progress": False}
    whole = write_beton(images, tmp_path / "whole.beton", **options)
    shards = [
        write_beton(images, tmp_path / f"part{i}.beton", shard=(i, 3), **options).path
        for i in range(3)
    ]
    one, parts = (
        ImageLoader(b, batch_size=10, crop=CenterCrop(8), dtype=torch.uint8, backend=backend)
        for b in (whole, [shards[2], shards[0], shards[1]])
    )
    assert parts.num_target_classes == 3
    for (a, x), (b, y) in zip(one, parts, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(x, y)
    with pytest.raises(ValueError, match="lacks shard 1"):
        ImageLoader([shards[0], shards[2]], batch_size=4, crop=CenterCrop(8), backend=backend)


def test_a_pairing_may_be_a_path_and_names_decide(
    numbered: NumberedBetons, tmp_path: Path, backend: str
) -> None:
    path = tmp_path / "pairing.json"
    numbered.pairing.save(path)
    loader = XMixLoader(
        str(numbered.target.path),
        str(numbered.source.path),
        path,
        batch_size=4,
        crop=RandomCrop(8),
        mix=False,
        dtype=torch.uint8,
        seed=5,
        backend=backend,
    )
    assert_same(next(iter(loader)), next(iter(crops(numbered, backend=backend))))


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ({"t0": "s0", "t1": "s1"}, "target class 't2' is not in the pairing"),
        ({"t0": "s0", "t1": "s1", "t2": "nowhere"}, "'nowhere', paired with 't2', is in no source"),
        ({"t0": "s0", "t1": "s1", "t2": "s2", "x": "s3"}, "class 'x' is not in the target beton"),
    ],
)
def test_a_pairing_of_other_classes_is_refused(
    numbered: NumberedBetons, pairs: dict[str, str], message: str
) -> None:
    pairing = Pairing({t: [PairedClass(s, 0.5, 1)] for t, s in pairs.items()})
    with pytest.raises(ValueError, match=message):
        XMixLoader(numbered.target, numbered.source, pairing, batch_size=4, crop=RandomCrop(8))


OTHER = {"files": ["other.beton"], "fingerprints": ["sha256:other"]}


@pytest.fixture
def twins(numbered: NumberedBetons, tmp_path: Path) -> tuple[Beton, Beton, Pairing]:
    """Two sources with the same class names, and a pairing over both."""
    other = written(
        Numbered([3, 4, 5, 6], "s"), tmp_path / "twin.beton", image_size=24, encoding="raw"
    )
    pairs = {
        "t0": [PairedClass("s1", 0.5, 30, None, 0)],
        "t1": [PairedClass("s1", 0.5, 4, None, 1), PairedClass("s3", 0.4, 25, None, 0)],
        "t2": [PairedClass("s2", 0.5, 5, None, 1)],
    }
    domains = open_domain([numbered.source, other]).provenance
    return numbered.source, other, Pairing(pairs, source={"domains": domains})


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_pairing_over_several_sources_says_which(
    numbered: NumberedBetons,
    twins: tuple[Beton, Beton, Pairing],
    backend: str,
    order: tuple[int, int],
) -> None:
    """The betons are known by their fingerprints, wherever they stand in the list."""
    sources, pairing = twins[:2], twins[2]
    loader = XMixLoader(
        numbered.target,
        [sources[i] for i in order],
        pairing,
        batch_size=4,
        crop=CenterCrop(8),
        flip=False,
        mix=False,
        dtype=torch.uint8,
        backend=backend,
        drop_last=False,
    )
    seen = set()
    for batch in itertools.chain.from_iterable(loader for _ in range(8)):
        for t, s, domain, image in zip(
            batch.target_labels.tolist(),
            batch.source_labels.tolist(),
            batch.source_domains.tolist(),
            Numbered.indices(batch.source_images),
            strict=True,
        ):
            beton = sources[order[domain]]
            name = beton.class_names[s - 4 * domain]
            assert beton.class_names[int(beton.labels[image])] == name
            seen.add((t, order[domain], name))
    assert seen == {(0, 0, "s1"), (1, 1, "s1"), (1, 0, "s3"), (2, 1, "s2")}


def test_the_sources_of_a_pairing_must_all_be_given(
    numbered: NumberedBetons, twins: tuple[Beton, Beton, Pairing], caplog: pytest.LogCaptureFixture
) -> None:
    one, two, pairing = twins
    options = {"batch_size": 4, "crop": CenterCrop(8)}
    with pytest.raises(
        ValueError, match=r"made over 2 sources \(.*twin\.beton\), and of the 1 that"
    ):
        XMixLoader(numbered.target, one, pairing, **options)
    with pytest.raises(ValueError, match=r"source class 's1'.* is in several source betons"):
        hand_made = Pairing(pairing.pairs)
        XMixLoader(numbered.target, [one, two], hand_made, **options)
    with pytest.raises(ValueError, match=r"source class 's1'.* is not in target\.beton"):
        XMixLoader(numbered.target, [numbered.target, two], pairing, **options)
    assert pairing.classes_in(one.class_names, one.fingerprint) == ["s1", "s3"]
    assert pairing.classes_in(two.class_names, two.fingerprint) == ["s1", "s2"]
    with pytest.raises(ValueError, match="the classes of 2 of them are in this one"):
        pairing.classes_in(two.class_names, "files:a folder with both")
    assert pairing.classes_in(["s1", "s2"], "files:a folder") == ["s1", "s2"]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_source_that_was_converted_again_is_what_the_known_ones_leave(
    numbered: NumberedBetons,
    twins: tuple[Beton, Beton, Pairing],
    tmp_path: Path,
    order: tuple[int, int],
) -> None:
    one, two, pairing = twins
    again = written(two, tmp_path / "again.beton", image_size=20, encoding="raw")
    sources = [(one, again)[i] for i in order]
    loader = XMixLoader(
        numbered.target, sources, pairing, mix=False, batch_size=4, crop=CenterCrop(8)
    )
    expected = {(0, 0, 1), (1, 1, 1), (1, 0, 3), (2, 1, 2)}
    for batch in loader:
        for t, domain, s in zip(
            *(x.tolist() for x in (batch.target_labels, batch.source_domains, batch.source_labels)),
            strict=True,
        ):
            assert (t, order[domain], s - 4 * domain) in expected


def test_a_source_that_no_class_is_paired_with_need_not_be_given(
    numbered: NumberedBetons, twins: tuple[Beton, Beton, Pairing]
) -> None:
    _, two, pairing = twins
    of_second = {t: [PairedClass(f"s{i}", 0.5, 1, None, 1)] for i, t in enumerate(pairing.pairs)}
    alone = Pairing(of_second, source=pairing.source)
    loader = XMixLoader(numbered.target, two, alone, batch_size=4, crop=CenterCrop(8))
    assert len(list(loader)) == 9


def test_image_loader_gives_the_images_that_a_pairing_selects(
    numbered: NumberedBetons, twins: tuple[Beton, Beton, Pairing], backend: str
) -> None:
    """The auxiliary set: each image once, labels of the whole source."""
    one, two, pairing = twins
    options: dict[str, Any] = {
        "batch_size": 7,
        "crop": CenterCrop(8),
        "dtype": torch.uint8,
        "backend": backend,
    }

    def images(source: Any, pairing: Pairing) -> list[tuple[int, int]]:
        loader = ImageLoader(source, pairing=pairing, **options)
        return [
            pair
            for pixels, labels in loader
            for pair in zip(labels.tolist(), Numbered.indices(pixels), strict=True)
        ]

    expected = [(s, i) for s in (1, 3) for i in np.flatnonzero(one.labels == s).tolist()]
    expected += [(4 + s, i) for s in (1, 2) for i in np.flatnonzero(two.labels == s).tolist()]
    assert images([one, two], pairing) == expected
    part = {"t0": [PairedClass("s1", 0.5, 4, 2)], "t1": [PairedClass("s1", 0.5, 3, 6)]}
    few = [images(one, Pairing(part, {"seed": seed})) for seed in (0, 0, 1)]
    assert few[0] == few[1] != few[2]
    assert len({i for _, i in few[0]}) == 7 and {s for s, _ in few[0]} == {1}
    with pytest.raises(ValueError, match="classes and pairing both say what to load"):
        ImageLoader(one, pairing=pairing, classes=["s1"], **options)


def test_parts_of_classes_are_drawn_from_once_each(
    numbered: NumberedBetons, backend: str, tmp_path: Path
) -> None:
    """Three target classes share a source class, each with images of its own."""
    parts = {"t0": (0, 9), "t1": (9, 4), "t2": (13, 17)}

    def drawn(source: Beton, seed: int) -> dict[int, set[int]]:
        pairing = Pairing(
            {t: [PairedClass("s1", 0.5, count, first)] for t, (first, count) in parts.items()},
            {"seed": seed},
        )
        loader = XMixLoader(
            numbered.target,
            source,
            pairing,
            batch_size=4,
            crop=CenterCrop(8),
            mix=False,
            flip=False,
            dtype=torch.uint8,
            backend=backend,
            drop_last=False,
        )
        found: dict[int, set[int]] = {0: set(), 1: set(), 2: set()}
        for _ in range(12):
            for batch in loader:
                images = Numbered.indices(batch.source_images)
                for label, image in zip(batch.target_labels.tolist(), images, strict=True):
                    found[label].add(image)
        return found

    found = drawn(numbered.source, 0)
    assert [len(images) for images in found.values()] == [9, 4, 17]
    assert set().union(*found.values()) == set(np.flatnonzero(numbered.source.labels == 1).tolist())
    assert drawn(numbered.source, 1) != found
    fewer = written(
        select(open_images(numbered.source), classes=["s1", "s2"]),
        tmp_path / "fewer.beton",
        image_size=24,
        encoding="raw",
    )
    assert drawn(fewer, 0) == found
    parts["t2"] = (13, 18)
    with pytest.raises(ValueError, match="images 13 to 30 of source class 's1', which has 30"):
        drawn(numbered.source, 0)


def test_another_fingerprint_is_one_log_line(
    numbered: NumberedBetons, caplog: pytest.LogCaptureFixture
) -> None:
    made_elsewhere = Pairing(numbered.pairing.pairs, source={"domains": [OTHER]})
    with caplog.at_level(logging.INFO, "xmix_data"):
        XMixLoader(
            numbered.target, numbered.source, made_elsewhere, batch_size=4, crop=RandomCrop(8)
        )
    lines = [r.getMessage() for r in caplog.records if "made with other" in r.getMessage()]
    assert lines == ["the pairing was made with other source betons than those given"]


def test_the_same_beton_may_be_target_and_source(
    numbered: NumberedBetons, backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    pairing = reversed_pairing(numbered.target, numbered.target)
    with caplog.at_level(logging.INFO, "xmix_data"):
        loader = XMixLoader(
            numbered.target,
            numbered.target,
            pairing,
            batch_size=4,
            crop=RandomCrop(8),
            backend=backend,
        )
    assert "target and source at once" in caplog.text
    assert len(list(loader)) == 9


def test_image_loader_keeps_the_order_and_all_images(
    numbered: NumberedBetons, backend: str
) -> None:
    loader = ImageLoader(
        numbered.target, batch_size=10, crop=CenterCrop(8), dtype=torch.uint8, backend=backend
    )
    batches = list(loader)
    assert len(batches) == len(loader) == 4
    assert [i for x, _ in batches for i in Numbered.indices(x)] == list(range(37))
    labels = torch.cat([y for _, y in batches])
    assert labels.dtype == torch.int64
    assert labels.tolist() == Numbered([12, 10, 15], "t").targets
    assert (loader.num_target_classes, loader.num_source_classes) == (3, 0)


def test_image_loader_takes_some_classes(numbered: NumberedBetons, backend: str) -> None:
    loader = ImageLoader(
        numbered.target,
        batch_size=64,
        crop=CenterCrop(8),
        classes=["t2", "t0"],
        shuffle=True,
        dtype=torch.uint8,
        backend=backend,
    )
    ((images, labels),) = loader
    wanted = [*range(12), *range(22, 37)]
    assert sorted(Numbered.indices(images)) == wanted
    assert set(labels.tolist()) == {0, 2}
    with pytest.raises(ValueError, match="class 't9' is not in"):
        ImageLoader(numbered.target, batch_size=4, crop=CenterCrop(8), classes=["t9"])


def test_image_loader_normalises_alike(betons: Betons, fast_backend: str) -> None:
    options: dict[str, Any] = {"batch_size": 9, "flip": True}
    for crop in CROPS:
        for (a, x), (b, y) in zip(
            ImageLoader(betons.target_raw, crop=crop, backend=fast_backend, **options),
            ImageLoader(betons.target_raw, crop=crop, backend="reference", **options),
            strict=True,
        ):
            assert torch.equal(x, y)
            assert (a - b).abs().max() < FP32_TOLERANCE


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": torch.uint8}, "mixed images are no uint8"),
        ({"labels": "soft", "mix": False}, "soft labels belong to mixed images"),
        ({"labels": "hard"}, "labels is 'hard'"),
        (
            {"labels": "soft", "names": ("x", "y", "z")},
            "give 2 different names, for images, s",
        ),
        ({"names": ("x", "x", "y", "z")}, "give 4 different names, for images, target_labels, sou"),
        ({"names": "xyz", "mix": False}, "give 6 different names, for target_images, source_im"),
        ({"labels": "soft", "names": {"images": "x", "soft_labels": "y"}}, "as a tuple in this or"),
        ({"labels": "soft", "names": 2}, "names is 2; give 2 different names"),
        ({"flip": 0.5}, "flip is 0.5; it must be True or False"),  # timm's hflip, torchvision's p
        ({"flip": 2}, "flip is 2; it must be True or False"),
        ({"flip": None}, "flip is None; it must be True or False"),
        ({"mix": "no"}, "mix is 'no'; it must be True or False"),
        ({"drop_last": None}, "drop_last is None; it must be True or False"),
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"beta": -1.0}, "beta is -1.0"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 2.5}, "batch_size is 2.5"),
        ({"batch_size": 38}, r"larger than the 37 images of an epoch of \S+\.beton, wh"),
        ({"batch_size": 13, "rank": 0, "world_size": 3}, "13 x 3 processes is larger"),
        ({"crop": RandomCrop(25)}, r"image 0 \(class 't0'\) is 24x24, smaller than the crop 25x25"),
        ({"crop": 224}, "crop is 224"),
        ({"dtype": torch.float64}, "dtype is torch.float64"),
        ({"device": "cuda:99"}, "cuda:99"),
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"device": "meta"}, "batches arrive on"),
        ({"device": None}, "device is None; give 'cpu', 'cuda' or, e.g., 'cuda:1'"),
        ({"mean": 0.5}, "mean is 0.5; give three numbers"),
        ({"mean": None}, "mean is None; give three numbers"),
        ({"std": ("a", "b", "c")}, "std is .*; give three numbers"),
        ({"mean": (123.0, 116.0, 103.0)}, "divide by 255"),
        ({"std": (0.2, 0.2, 0.0)}, "std is"),
        ({"seed": -1}, "seed is -1"),
        ({"num_workers": 0}, "num_workers is 0"),
        ({"prefetch": 0}, "prefetch is 0"),
        ({"rank": 2, "world_size": 2}, "rank 2 of 2"),
        ({"rank": 1}, "belong together"),
        ({"backend": "tensorflow"}, "backend is 'tensorflow'"),
        ({"on_error": "ignore"}, "on_error is 'ignore'"),
    ],
    ids=str,
)
def test_impossible_options_are_refused_at_construction(
    numbered: NumberedBetons, options: dict[str, Any], message: str
) -> None:
    settings = {"batch_size": 4, "crop": RandomCrop(8), **options}
    with pytest.raises(ValueError, match=message):
        XMixLoader(numbered.target, numbered.source, numbered.pairing, **settings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flip": 0.5}, "flip is 0.5; it must be True or False"),
        ({"shuffle": "yes"}, "shuffle is 'yes'; it must be True or False"),
        ({"drop_last": 3}, "drop_last is 3; it must be True or False"),
        ({"names": {"images": "pixel_values", "labels": "labels"}}, "names is .* as a tuple in th"),
        ({"classes": "t0"}, "classes is 't0'; give a list of class names"),
        ({"classes": [0, 1]}, r"classes is \[0, 1\]; give a list of class names"),
        ({"classes": 3}, "classes is 3; give a list of class names"),
    ],
    ids=str,
)
def test_impossible_options_of_an_image_loader_are_refused(
    numbered: NumberedBetons, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ImageLoader(numbered.target, batch_size=4, crop=CenterCrop(8), **options)


def test_switches_may_be_numpys(numbered: NumberedBetons) -> None:
    options: dict[str, Any] = {"flip": np.True_, "shuffle": np.False_, "drop_last": np.bool_(0)}
    loader = ImageLoader(numbered.target, batch_size=4, crop=CenterCrop(8), **options)
    assert (loader.flip, loader.shuffle, loader.drop_last) == (True, False, False)
    assert all(type(one) is bool for one in (loader.flip, loader.shuffle, loader.drop_last))
    assert len(list(loader)) == 10 and loader.last_rows.target_crops.flips.dtype == bool


def test_what_can_be_read_once_is_read_once(numbered: NumberedBetons) -> None:
    """A copy is made of the options too, which are no longer what they were by then."""
    given: dict[str, Any] = {
        "classes": (f"t{i}" for i in (0, 2)),
        "mean": (value for value in (0.1, 0.2, 0.3)),
        "std": map(float, "111"),
        "crop": CenterCrop(8),
    }
    loader = ImageLoader(numbered.target, batch_size=4, **given)
    copied = pickle.loads(pickle.dumps(loader))
    assert loader.classes == copied.classes == ["t0", "t2"]
    for (images, labels), (others, same) in zip(loader, copied, strict=True):
        assert torch.equal(images, others) and torch.equal(labels, same)


def test_a_missing_beton_or_pairing_is_named(numbered: NumberedBetons, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.beton: no such beton"):
        ImageLoader(tmp_path / "nowhere.beton", batch_size=4)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json: no such pairing"):
        XMixLoader(numbered.target, numbered.source, tmp_path / "nowhere.json", batch_size=4)


def test_a_damaged_image_is_named_with_file_index_and_class(
    betons: Betons, backend: str, tmp_path: Path
) -> None:
    data = bytearray(betons.target_jpg.path.read_bytes())
    start = int(betons.target_jpg.pointers[11])
    data[start : start + 2] = b"no"
    path = tmp_path / "damaged.beton"
    path.write_bytes(data)
    loader = ImageLoader(path, batch_size=4, crop=CenterCrop(32), backend=backend)
    iterator = iter(loader)
    assert len([next(iterator), next(iterator)]) == 2
    with pytest.raises(xmix_data.BetonError, match=r"damaged\.beton: image 11 \(class '1'\)"):
        next(iterator)
    assert loader.state_dict()["position"] == 8
