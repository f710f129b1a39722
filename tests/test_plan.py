"""Properties of the plan: permutations, pairing, uniformity, λ, independence, ranks."""

from __future__ import annotations

import itertools
from math import factorial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from xmix_data.pairing import Draw
from xmix_data.plan import (
    VERSIONS,
    CenterCrop,
    Crop,
    ImageSizes,
    Plan,
    RandomCrop,
    RandomResizedCrop,
    SourcePool,
)
from xmix_data.plan.permutation import ROUNDS, WORDS_PER_ROUND, SwapOrNot

SEEDS = st.integers(0, 2**64 - 1)


def sizes(count: int, height: int = 40, width: int = 50) -> ImageSizes:
    return ImageSizes(np.full(count, height, np.uint16), np.full(count, width, np.uint16))


def make_plan(
    target_labels: list[int], source_labels: list[int], classes: list[list[int]], **options: Any
) -> Plan:
    labels = np.array(source_labels, np.int64)
    draws = [[Draw(label, None, 0) for label in paired] for paired in classes]
    settings = {"seed": 1, "crop": RandomCrop(32), "flip": True, "shuffle": True, **options}
    return Plan(
        samples=np.arange(len(target_labels)),
        target_labels=np.array(target_labels, np.int64),
        target_sizes=sizes(len(target_labels)),
        pool=SourcePool(labels, draws, sizes(len(labels))),
        **settings,
    )


@st.composite
def plans(draw: st.DrawFn) -> tuple[Plan, list[int], list[list[int]]]:
    """A random plan with its source labels and paired classes."""
    n = draw(st.integers(1, 5))
    m = draw(st.integers(n, 9))
    target = draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=60))
    source = [*range(m), *draw(st.lists(st.integers(0, m - 1), max_size=60))]
    order = draw(st.permutations(range(m)))
    rounds = draw(st.integers(1, m // n))
    classes = [[order[r * n + t] for r in range(rounds)] for t in range(n)]
    return make_plan(target, source, classes, seed=draw(SEEDS)), source, classes


@given(plans(), st.integers(0, 2**63))
@settings(deadline=None)
def test_an_epoch_permutes_the_target_and_draws_paired_classes(
    case: tuple[Plan, list[int], list[list[int]]], epoch: int
) -> None:
    plan, source_labels, classes = case
    rows = plan.epoch(epoch).rows(0, len(plan.samples))
    assert sorted(rows.target.tolist()) == list(range(len(plan.samples)))
    assert rows.source is not None
    for target, source in zip(rows.target, rows.source, strict=True):
        assert source_labels[source] in classes[plan.target_labels[target]]
    assert ((rows.lam >= 0) & (rows.lam <= 1)).all()


@given(plans(), st.integers(0, 99), st.data())
@settings(deadline=None)
def test_rows_do_not_depend_on_how_they_are_cut(
    case: tuple[Plan, list[int], list[list[int]]], epoch: int, data: st.DataObject
) -> None:
    plan = case[0]
    count = len(plan.samples)
    start = data.draw(st.integers(0, count))
    stop = data.draw(st.integers(start, count + 7))
    whole, part = plan.epoch(epoch).rows(0, count + 7), plan.epoch(epoch).rows(start, stop)
    for name in ("target", "source", "lam"):
        assert np.array_equal(getattr(whole, name)[start:stop], getattr(part, name))
    for name in ("target_crops", "source_crops"):
        assert np.array_equal(getattr(whole, name).boxes[start:stop], getattr(part, name).boxes)
        assert np.array_equal(getattr(whole, name).flips[start:stop], getattr(part, name).flips)


@given(plans(), st.integers(1, 5), st.integers(1, 9))
@settings(deadline=None)
def test_any_ranks_partition_the_same_plan(
    case: tuple[Plan, list[int], list[list[int]]], world_size: int, batch_size: int
) -> None:
    from xmix_data.loader.spans import Share

    count = len(case[0].samples)
    shares = [Share(count, batch_size, rank, world_size, False) for rank in range(world_size)]
    spans = [list(share.spans(0)) for share in shares]
    for share, own in zip(shares, spans, strict=True):
        assert len(own) == len(share)
        assert sum(span.stop - span.start for span in own) == share.own_samples
    assert len({len(s) for s in spans}) == 1
    positions = [p for step in zip(*spans, strict=True) for _, a, b, _ in step for p in range(a, b)]
    assert sorted(set(positions)) == list(range(max(positions) + 1))
    assert len(positions) == len(set(positions))
    assert 0 <= len(positions) - count < world_size


def test_source_images_are_drawn_uniformly() -> None:
    """Chi-square over all images of a union of two classes, with a fixed seed."""
    source = [0] * 30 + [1] * 10 + [2] * 50 + [3] * 10
    plan = make_plan([0] * 500, source, [[1, 2]])
    draws = np.concatenate([plan.epoch(e).rows(0, 500).source for e in range(40)])
    counts = np.bincount(draws, minlength=100)
    assert counts[:30].sum() == counts[90:].sum() == 0
    assert stats.chisquare(counts[30:90]).pvalue > 0.001


def orders(count: int, epochs: int, **options: Any) -> Any:
    """The orders of so many epochs, (epochs, count)."""
    plan = make_plan([0] * count, [0], [[0]], **options)
    return np.stack([plan.epoch(epoch).targets(0, count) for epoch in range(epochs)])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_every_order_is_equally_likely(version: int, count: int) -> None:
    drawn = orders(count, 100 * factorial(count), version=version)
    counts = np.unique(drawn, axis=0, return_counts=True)[1]
    assert len(counts) == factorial(count)
    assert stats.chisquare(counts).pvalue > 0.001


@pytest.mark.parametrize("low", [1, 500, 1000, 1500, 2000, 2500])
def test_an_order_has_each_sample_once(low: int) -> None:
    for count in range(low, low + 500):
        (order,) = orders(count, 1, seed=count)
        assert np.array_equal(np.sort(order), np.arange(count))


@given(st.integers(1, 2**40), st.data(), SEEDS)
def test_a_position_is_the_networks_of_the_paper(
    count: int, data: st.DataObject, seed: int
) -> None:
    """Swap-or-not, round by round in plain numbers; and back again by the rounds in reverse."""
    bits = np.random.Philox(seed).random_raw(ROUNDS * WORDS_PER_ROUND).reshape(ROUNDS, -1)
    order = SwapOrNot(count, bits)

    def after(place: int, rounds: Any) -> int:
        for centre, key in rounds:
            mirrored = (centre % count - place) % count
            word = (key + max(place, mirrored) * 0x9E3779B97F4A7C15) % 2**64
            word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 % 2**64
            word = (word ^ word >> 27) * 0x94D049BB133111EB % 2**64
            place = mirrored if word >> 63 else place
        return place

    positions = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=4))
    places = order(np.array(positions)).tolist()
    assert places == [after(position, bits.tolist()) for position in positions]
    assert positions == [after(place, bits.tolist()[::-1]) for place in places]


def test_nothing_about_an_order_is_fixed() -> None:
    """Places, neighbours, steps, fixed points, descents, parity, and the next epoch's order."""
    small, large = orders(12, 8000), orders(1000, 400)

    def is_even(counts: Any) -> bool:
        return bool(stats.chisquare(np.ravel(counts)).pvalue > 0.001)

    for position in range(12):
        assert is_even(np.bincount(small[:, position], minlength=12))
    neighbours = 12 * small[:, :-1] + small[:, 1:]
    counts = np.bincount(neighbours.ravel(), minlength=144).reshape(12, 12)
    assert not counts.diagonal().any() and is_even(counts[~np.eye(12, dtype=bool)])
    for drawn, count in ((small, 12), (large, 1000)):
        steps = (drawn[:, 1:] - drawn[:, :-1]) % count
        assert is_even(np.bincount(steps.ravel(), minlength=count)[1:])
        epochs = (drawn[1:] - drawn[:-1]) % count
        assert is_even(np.bincount(epochs.ravel(), minlength=count))
    fixed = (large == np.arange(1000)).sum(axis=1)
    expected = 400 * np.array([*stats.poisson(1).pmf(range(3)), stats.poisson(1).sf(2)])
    assert stats.chisquare(np.bincount(fixed.clip(max=3)), expected).pvalue > 0.001
    descents = (large[:, 1:] < large[:, :-1]).sum(axis=1)
    scaled = (descents - 999 / 2) / np.sqrt(1001 / 12)
    assert abs(scaled.mean()) < 4 / np.sqrt(400) and abs(scaled.var() - 1) < 0.3
    # Of a Feistel network on a power of two all are even.
    odd = [int(np.linalg.det(np.eye(16)[order])) < 0 for order in orders(16, 4000)]
    assert abs(np.mean(odd) - 0.5) < 4 * 0.5 / np.sqrt(4000)


def test_neighbouring_seeds_have_different_orders() -> None:
    drawn = np.stack([orders(500, 1, seed=seed)[0] for seed in range(200)])
    same = (drawn[1:] == drawn[:-1]).sum(axis=1)
    assert same.mean() < 1.5 and same.max() < 10


def test_a_hundred_million_samples_need_no_order() -> None:
    """A batch anywhere in the epoch, without memory for the others."""
    bits = np.random.Philox(1).random_raw(ROUNDS * WORDS_PER_ROUND).reshape(ROUNDS, -1)
    places = SwapOrNot(10**8, bits)(np.arange(10**8 - 4096, 10**8))
    assert len(np.unique(places)) == 4096
    assert stats.kstest(places / 10**8, "uniform").pvalue > 0.001


@pytest.mark.parametrize("alpha", [0.125, 0.5, 1.0, 2.0, 64.0])
@pytest.mark.parametrize("beta", [1.0, 0.4, 3.0])
def test_lam_follows_its_beta_distribution(alpha: float, beta: float) -> None:
    plan = make_plan([0] * 4000, [0], [[0]], alpha=alpha, beta=beta, seed=7)
    lam = plan.epoch(0).rows(0, 4000).lam
    assert lam.dtype == np.float32
    assert stats.kstest(lam.astype(np.float64), stats.beta(alpha, beta).cdf).pvalue > 0.001
    assert abs(lam.mean() - alpha / (alpha + beta)) < 0.02


def test_both_images_are_cropped_and_flipped_independently() -> None:
    rows = make_plan([0] * 4000, [0], [[0]]).epoch(0).rows(0, 4000)
    assert rows.source_crops is not None
    columns = np.column_stack(
        [
            rows.lam,
            rows.target_crops.boxes[:, :2],
            rows.source_crops.boxes[:, :2],
            rows.target_crops.flips,
            rows.source_crops.flips,
            rows.target,
        ]
    )
    correlations = np.corrcoef(columns.T) - np.eye(columns.shape[1])
    assert np.abs(correlations).max() < 5 / np.sqrt(4000)
    assert abs(rows.target_crops.flips.mean() - 0.5) < 0.04


def test_without_shuffle_and_flip_nothing_moves() -> None:
    plan = make_plan([0, 0, 0], [0], [[0]], shuffle=False, flip=False)
    rows = plan.epoch(3).rows(0, 3)
    assert rows.target.tolist() == [0, 1, 2]
    assert not rows.target_crops.flips.any()


ORDERS = {
    1: [11, 16, 12, 2, 17, 5, 19, 3, 6, 8, 9, 14, 0, 13, 18, 7, 10, 15, 4, 1],
    2: [10, 17, 11, 1, 9, 18, 5, 12, 15, 8, 13, 16, 4, 6, 3, 14, 2, 0, 7, 19],
}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_sequence_is_fixed_for_good(version: int) -> None:
    """A change of these numbers breaks every saved state: it takes a new version of the plan."""
    order = make_plan([0] * 20, [0], [[0]], seed=42, version=version).epoch(7).targets(0, 20)
    assert order.tolist() == ORDERS[version]

    plan = make_plan([0, 0, 1, 1], [0, 1, 1, 0, 1], [[1], [0]], seed=42, version=version)
    rows = plan.epoch(7).rows(0, 4)
    assert rows.source is not None and rows.source_crops is not None
    assert rows.target.tolist() == [2, 3, 0, 1]
    assert rows.source.tolist() == [3, 0, 1, 2]
    assert rows.lam.tolist() == pytest.approx([0.884881, 0.535927, 0.563822, 0.94319], abs=1e-6)
    assert rows.target_crops.boxes[:, :2].tolist() == [[8, 0], [4, 5], [5, 3], [3, 3]]
    assert rows.source_crops.flips.tolist() == [False, True, True, True]


@given(
    st.lists(st.tuples(st.integers(32, 500), st.integers(32, 500)), min_size=1, max_size=30),
    st.sampled_from(
        [
            RandomCrop(32),
            RandomCrop((20, 32)),
            CenterCrop(31),
            RandomResizedCrop(224),
            RandomResizedCrop(9, scale=(0.9, 1.0), ratio=(3.0, 4.0)),
        ]
    ),
    st.randoms(use_true_random=False),
)
@settings(deadline=None)
def test_boxes_lie_inside_their_images(
    shapes: list[tuple[int, int]], crop: Crop, random: Any
) -> None:
    heights, widths = np.array(shapes, np.uint16).T
    edge = [0.0, 1 - 2.0**-53]
    uniforms = np.array(
        [
            [random.choice([random.random(), *edge]) for _ in range(crop.num_uniforms)]
            for _ in shapes
        ]
    )
    top, left, height, width = crop.boxes(heights, widths, uniforms).T
    assert (top >= 0).all() and (left >= 0).all() and (height > 0).all() and (width > 0).all()
    assert (top + height <= heights).all() and (left + width <= widths).all()
    if not crop.resizes:
        assert {*zip(height.tolist(), width.tolist(), strict=True)} == {crop.shape}


@pytest.mark.parametrize(
    "crop",
    [
        RandomResizedCrop(8),
        RandomResizedCrop(8, ratio=(2.5, 4)),
        RandomResizedCrop(8, scale=(0.5, 1), ratio=(0.1, 0.3)),
        RandomResizedCrop(8, scale=(1, 1), ratio=(1e-3, 1e-3)),
        RandomResizedCrop((8, 3), scale=(2e-4, 3e-4), ratio=(900, 1000)),
        CenterCrop(8, ratio=0.01),
        CenterCrop((8, 800), ratio=0.5),
    ],
    ids=str,
)
def test_boxes_of_the_smallest_images_have_a_pixel(crop: Crop) -> None:
    sides = [1, 2, 3, 5, 300, 65535]
    heights, widths = np.array(list(itertools.product(sides, sides)) * 20, np.uint16).T
    uniforms = np.random.default_rng(0).random((len(heights), crop.num_uniforms))
    top, left, height, width = crop.boxes(heights, widths, uniforms).T
    assert (top >= 0).all() and (left >= 0).all() and (height > 0).all() and (width > 0).all()
    assert (top + height <= heights).all() and (left + width <= widths).all()


def test_random_crops_reach_every_place_equally() -> None:
    plan = make_plan([0] * 8000, [0], [[0]], crop=RandomCrop(38))
    boxes = plan.epoch(0).rows(0, 8000).target_crops.boxes
    assert stats.chisquare(np.bincount(boxes[:, 0], minlength=3)).pvalue > 0.001
    assert stats.chisquare(np.bincount(boxes[:, 1], minlength=13)).pvalue > 0.001


def test_center_crop_is_torchvisions() -> None:
    import torch
    from torchvision.transforms.functional import center_crop

    for height, width in ((40, 40), (41, 40), (43, 46), (33, 57)):
        image = torch.arange(height * width).reshape(1, height, width)
        top, left, h, w = CenterCrop(32).boxes(
            np.array([height]), np.array([width]), np.zeros((1, 0))
        )[0]
        ours = image[:, top : top + h, left : left + w]
        assert torch.equal(ours, center_crop(image, [32, 32]))


@pytest.mark.parametrize(
    ("sides", "size", "ratio", "box"),
    [
        ((256, 256), 224, 224 / 256, (16, 16, 224, 224)),
        ((300, 500), 224, 224 / 256, (19, 119, 262, 262)),
        ((500, 300), 224, 1.0, (100, 0, 300, 300)),
        ((33, 57), 32, 0.5, (8, 20, 16, 16)),
        ((100, 100), (50, 100), 0.9, (27, 5, 45, 90)),
        ((100, 30), (100, 100), 1.0, (35, 0, 30, 30)),
        ((3, 3), 8, 0.1, (1, 1, 1, 1)),
    ],
)
def test_center_crop_with_a_ratio(sides: Any, size: Any, ratio: float, box: Any) -> None:
    """A share of the largest centred window of the output's shape, sides rounded down."""
    crop = CenterCrop(size, ratio=ratio)
    assert crop.resizes and not CenterCrop(size).resizes
    found = crop.boxes(np.array([sides[0]]), np.array([sides[1]]), np.zeros((1, 0)))
    assert found.dtype == np.int32 and tuple(found[0]) == box


def test_a_center_crops_name_is_the_one_that_caches_know() -> None:
    assert repr(CenterCrop(224)) == "CenterCrop(size=224)"
    assert repr(CenterCrop(224, ratio=0.875)) == "CenterCrop(size=224, ratio=0.875)"
    assert CenterCrop(224) != CenterCrop(224, ratio=1.0)


def test_random_resized_crop_is_distributed_as_torchvisions() -> None:
    import torch
    from torchvision.transforms import RandomResizedCrop as Reference

    count, image = 4000, torch.empty(3, 80, 60)
    torch.manual_seed(0)
    reference = np.array(
        [Reference.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)]
    )
    uniforms = np.random.default_rng(0).random((count, RandomResizedCrop.num_uniforms))
    ours = RandomResizedCrop(32).boxes(np.full(count, 80), np.full(count, 60), uniforms)
    for column in range(4):
        assert stats.ks_2samp(reference[:, column], ours[:, column]).pvalue > 0.001


@pytest.mark.parametrize(
    "make",
    [
        lambda: RandomCrop(0),
        lambda: RandomCrop((3, 4, 5)),  # type: ignore[arg-type]
        lambda: CenterCrop(2.5),
        lambda: CenterCrop(8, ratio=0),
        lambda: CenterCrop(8, ratio=1.01),
        lambda: CenterCrop(8, ratio=float("nan")),
        lambda: RandomResizedCrop(8, scale=(0.5, 0.1)),  # type: ignore[arg-type]
        lambda: RandomResizedCrop(8, scale=(1.5, 2.0)),
        lambda: RandomResizedCrop(8, ratio=(0, 1)),
        lambda: RandomResizedCrop(8, scale=0.5),  # type: ignore[arg-type]
        lambda: RandomResizedCrop(8, ratio=None),  # type: ignore[arg-type]
    ],
)
def test_impossible_crops_are_refused(make: Any) -> None:
    with pytest.raises(ValueError, match=r"crop size|scale|ratio"):
        make()
