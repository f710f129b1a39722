"""The same (seed, epoch, position) is the same sample, bit for bit, whoever makes it and where."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Betons
from hypothesis import given, settings
from hypothesis import strategies as st

from xmix_data import (
    Beton,
    ImageLoader,
    PairedClass,
    Pairing,
    RandomCrop,
    RandomResizedCrop,
    XMixLoader,
    class_centroids,
    pair_classes,
    write_beton,
)
from xmix_data.backbones import load_backbone
from xmix_data.beton import open_domain
from xmix_data.methods import XMixup
from xmix_data.report import write_report
from xmix_data.training import Recipe, fit

IMAGES = 27
"""Of the target: an epoch."""
KINDS = ("mixed float32", "pairs uint8", "images float32", "images uint8")
CROPS = (RandomCrop(32), RandomResizedCrop((20, 28)))

OneByOne = Callable[..., list[str]]


def make(betons: Betons, kind: str, encoding: str, **options: Any) -> Any:
    target, source = (getattr(betons, f"{domain}_{encoding}") for domain in ("target", "source"))
    what, dtype = kind.split()
    settings = {"batch_size": 5, "seed": 11, "drop_last": False, "crop": CROPS[0], **options}
    settings["dtype"] = getattr(torch, dtype)
    if what == "images":
        return ImageLoader(target, shuffle=True, flip=True, **settings)
    return XMixLoader(target, source, betons.pairing, mix=what == "mixed", **settings)


def ranks(betons: Betons, kind: str, world_size: int, **options: Any) -> list[Any]:
    """The loaders of a job's processes, here all in one."""
    return [
        make(betons, kind, "jpg", rank=rank, world_size=world_size, **options)
        for rank in range(world_size)
    ]


def samples(batches: Iterable[Any]) -> list[str]:
    """What identifies the bits of each sample: pixels, labels, λ."""
    return [
        hashlib.sha256(b"".join(part.numpy().tobytes() for part in sample)).hexdigest()[:16]
        for batch in batches
        for sample in zip(*batch, strict=True)
    ]


def together(job: Sequence[Any], steps: int | None = None) -> list[str]:
    """The samples that a job receives in so many steps, in rank order and without padding.

    Raises:
        ValueError: The ranks have not equally many batches.
    """
    received = []
    for batches in itertools.islice(zip(*job, strict=True), steps):
        for loader, batch in zip(job, batches, strict=True):
            part = samples([batch])
            received += part[: len(part) - loader.last_padding]
    return received


@pytest.fixture(scope="module")
def one_by_one(betons: Betons) -> OneByOne:
    """The samples of an epoch, made one at a time by a single thread."""

    @cache
    def received(kind: str, encoding: str, crop: Any = CROPS[0], epoch: int = 0) -> list[str]:
        loader = make(betons, kind, encoding, crop=crop, batch_size=1, num_workers=1, prefetch=1)
        loader.set_epoch(epoch)
        return samples(loader)

    return received


@pytest.mark.parametrize("crop", CROPS, ids=repr)
@pytest.mark.parametrize("encoding", ["jpg", "raw"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_bit_depends_on_threads_or_prefetch(
    betons: Betons, one_by_one: OneByOne, kind: str, encoding: str, crop: Any
) -> None:
    expected = one_by_one(kind, encoding, crop)
    assert len(set(expected)) == IMAGES
    for threads, prefetch in zip(range(1, 9), (8, 1, 5, 2, 7, 4, 3, 6), strict=True):
        loader = make(
            betons, kind, encoding, crop=crop, batch_size=9, num_workers=threads, prefetch=prefetch
        )
        assert samples(loader) == expected, (threads, prefetch)


@pytest.mark.parametrize("kind", KINDS)
def test_no_bit_depends_on_the_world_size(betons: Betons, one_by_one: OneByOne, kind: str) -> None:
    expected = one_by_one(kind, "jpg")
    for world_size in range(1, 9):
        assert together(ranks(betons, kind, world_size, batch_size=2)) == expected, world_size
        whole_steps = IMAGES // (2 * world_size) * 2 * world_size
        dropping = ranks(betons, kind, world_size, batch_size=2, drop_last=True)
        assert together(dropping) == expected[:whole_steps], world_size


@pytest.mark.parametrize("kind", KINDS)
def test_no_bit_depends_on_the_batch_that_a_state_was_taken_after(
    betons: Betons, one_by_one: OneByOne, kind: str
) -> None:
    expected = one_by_one(kind, "jpg", epoch=1)
    walked = make(betons, kind, "jpg", batch_size=2)
    walked.set_epoch(1)
    received: list[str] = []
    for batch in walked:
        received += samples([batch])
        resumed = make(betons, kind, "jpg", batch_size=2)
        resumed.load_state_dict(walked.state_dict())
        if len(received) < len(expected):
            assert received + samples(resumed) == expected
            assert resumed.epoch == 2
        else:  # no batch is left: the next epoch
            assert samples(resumed) == one_by_one(kind, "jpg", epoch=2)
            assert resumed.epoch == 3
    assert received == expected


LEGS = st.lists(
    st.fixed_dictionaries(
        {
            "world_size": st.integers(1, 5),
            "batch_size": st.integers(1, 8),
            "num_workers": st.integers(1, 3),
            "prefetch": st.integers(1, 8),
            "steps": st.integers(0, 5),
        }
    ),
    min_size=1,
    max_size=3,
)
"""Jobs, each of which goes on where the one before it stopped."""


@given(st.sampled_from(KINDS), st.sampled_from([0, 1, 2**40]), LEGS, st.integers(1, 5))
@settings(deadline=None, max_examples=30)
def test_a_job_goes_on_anywhere_with_any_number_of_processes(
    betons: Betons,
    one_by_one: OneByOne,
    kind: str,
    epoch: int,
    legs: list[dict[str, int]],
    last: int,
) -> None:
    (alone,) = ranks(betons, kind, 1)
    alone.set_epoch(epoch)
    state, received = alone.state_dict(), []
    expected = one_by_one(kind, "jpg", epoch=epoch)
    for leg in [*legs, {"world_size": last}]:
        if len(received) == len(expected):  # it stopped with the last batch
            break
        steps = leg.get("steps")
        job = ranks(betons, kind, **{key: leg[key] for key in leg if key != "steps"})
        for loader in job:
            loader.load_state_dict(state)
        received += together(job, steps)
        states = [loader.state_dict() for loader in job]
        assert all(other == states[0] for other in states)
        state = json.loads(json.dumps(states[0]))
        if state["epoch"] > epoch:
            break
        assert (state["epoch"], state["position"]) == (epoch, len(received))
    assert received == expected
    (alone,) = ranks(betons, kind, 1)
    alone.load_state_dict(state)
    assert together([alone], None) == one_by_one(kind, "jpg", epoch=epoch + 1)


def global_generators(seed: int | None) -> list[str]:
    if seed is not None:
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
    everything = random.getstate(), np.random.get_state(), torch.get_rng_state().tolist()
    return [str(part) for part in everything]


@pytest.mark.parametrize("backend", ["reference", "host"])
def test_global_generators_neither_matter_nor_move(betons: Betons, backend: str) -> None:
    received = []
    for seed in (1, 2):
        before = global_generators(seed)
        received.append(samples(make(betons, "mixed float32", "jpg", backend=backend)))
        assert global_generators(None) == before
    assert received[0] == received[1]


def test_they_neither_matter_nor_move_around_the_loader(betons: Betons, tmp_path: Path) -> None:
    received = []
    for seed in (1, 2):
        before, folder = global_generators(seed), tmp_path / str(seed)
        folder.mkdir()
        backbone = load_backbone("resnet18", "none")
        domains = betons.target_jpg, betons.source_jpg
        centroids = [class_centroids(domain, backbone, crop=CROPS[1]) for domain in domains]
        pairing = pair_classes(*centroids, method="random")
        write_report(pairing, *domains, folder / "report.html")
        write_beton(betons.target_jpg, folder / "again.beton", image_size=32, num_workers=1)
        result = fit(
            XMixup(),
            backbone,
            betons.target_jpg,
            source=betons.source_jpg,
            pairing=pairing,
            test=betons.target_raw,
            recipe=Recipe(iterations=4, batch_size=8, crop=32, unmixed=0.3, clean_statistics=True),
        )
        assert global_generators(None) == before
        weights = result.network.state_dict()
        received.append((weights, (folder / "report.html").read_bytes()))
    (one, report), (other, again) = received
    assert report == again
    assert all(torch.equal(one[name], other[name]) for name in one)


def loaders(folder: str) -> dict[str, Any]:
    """Loaders that have every reason to depend on the order of a set or of a dict."""
    target, source = (Path(folder) / f"{domain}-jpg.beton" for domain in ("target", "source"))
    sources = [Beton(source), Beton(Path(folder) / "source-raw.beton")]
    chosen = {
        "t2": [
            PairedClass("s4", 0.9, 3, 1, 1),
            PairedClass("s0", 0.8, 8, None, 0),
            PairedClass("s1", 0.7, 3, None, 1),
            PairedClass("s1", 0.6, 3, None, 0),
        ],
        "t0": [PairedClass("s5", 0.9, 7, None, 1)],
        "t3": [
            PairedClass("s4", 0.7, 2, 0, 0),
            PairedClass("s3", 0.6, 9, None, 1),
            PairedClass("s5", 0.5, 7, None, 0),
            PairedClass("s3", 0.4, 9, None, 0),
        ],
        "t1": [PairedClass("s2", 0.5, 4, 2, 1)],
    }
    several = Pairing(chosen, {"seed": 5}, source={"domains": open_domain(sources).provenance})
    options: dict[str, Any] = {"batch_size": 4, "crop": CROPS[1], "seed": 2**63 + 1}
    return {
        "soft": XMixLoader(target, sources, several, labels="soft", **options),
        "pairs": XMixLoader(target, sources, several, mix=False, dtype=torch.uint8, **options),
        "classes": ImageLoader(source, classes=["s5", "s0", "s3"], shuffle=True, **options),
        "auxiliary": ImageLoader(sources, pairing=several, **options),
    }


def tell(folder: str) -> dict[str, Any]:
    """What each of `loaders` gives: an epoch and 3 batches, the state there, and the rest."""
    told = {}
    for name, loader in loaders(folder).items():
        first = samples(loader)
        second = iter(loader)
        first += samples(itertools.islice(second, 3))
        told[name] = {"first": first, "state": loader.state_dict(), "rest": samples(second)}
    return told


def test_no_bit_depends_on_the_process_or_its_hash_seed(betons: Betons) -> None:
    folder = str(betons.target_jpg.path.parent)
    children = [
        subprocess.Popen(
            [sys.executable, __file__, folder],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        )
        for seed in ("0", "4242")
    ]
    here = tell(folder)
    assert [len(part["first"] + part["rest"]) for part in here.values()] == [48, 48, 48, 110]
    for child in children:
        out, err = child.communicate(timeout=120)
        assert child.returncode == 0, err
        there = json.loads(out)
        assert there == here
        for name, loader in loaders(folder).items():
            loader.load_state_dict(there[name]["state"])
            assert samples(loader) == here[name]["rest"]


if __name__ == "__main__":
    print(json.dumps(tell(sys.argv[1])))
