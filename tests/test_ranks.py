"""Loaders under torch.distributed: real gloo processes, several epochs, a collective each step."""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from conftest import NumberedBetons
from pictures import Numbered
from processes import ended
from test_determinism import samples, together
from test_distributed import SECONDS

from xmix_data import CenterCrop, ImageLoader, RandomCrop, XMixLoader

EPOCHS = 3
IMAGES = 37
"""Of the target: no number of processes divides it."""
PROCESSES = (2, 4)
LOADERS = ("pairs", "all pairs", "images", "all images")
"""In batches of 4 and of 3, so that a tail may have fewer images than there are processes."""
COLLECTIVE_SECONDS = 60
"""What waits longer for the other processes raises."""


def make(folder: Path, name: str, **options: Any) -> Any:
    """A loader; its rank is that of torch.distributed unless given."""
    target, source, pairing = (folder / f for f in ("target.beton", "source.beton", "ranks.json"))
    settings: dict[str, Any] = {"seed": 5, "dtype": torch.uint8, "drop_last": "all" not in name}
    if "pairs" in name:
        settings |= {"batch_size": 4, "crop": RandomCrop(8), "mix": False, **options}
        return XMixLoader(target, source, pairing, **settings)
    settings |= {"batch_size": 3, "crop": CenterCrop(8), "shuffle": True, **options}
    return ImageLoader(target, **settings)


def steps(loader: Any) -> Iterator[dict[str, Any]]:
    """A pass, with a collective each step, which waits for a rank that has no batch.

    Yields:
        What this rank received, and how many images, padding left out, all ranks did.
    """
    for batch in loader:
        own = len(batch[0]) - loader.last_padding
        count = torch.tensor(own)
        torch.distributed.all_reduce(count)
        shown = Numbered.indices(batch[0])
        yield {
            "images": shown[:own],
            "padding": shown[own:],
            "samples": samples([batch])[:own],
            "count": int(count),
        }


def work(folder: str, store: str, state: str) -> dict[str, Any]:
    """A process of a job: every loader for all epochs; then a step on from a given state."""
    rank, world_size = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=COLLECTIVE_SECONDS),
    )
    told: dict[str, Any] = {}
    for name in LOADERS:
        loader = make(Path(folder), name)
        told[name] = [list(steps(loader)) for _ in range(EPOCHS)]
        told[name].append([loader.rank, loader.world_size, len(loader), loader.epoch])
    resumed = make(Path(folder), "all pairs")
    resumed.load_state_dict(json.loads(state))
    told["resumed"] = list(itertools.islice(steps(resumed), 1))
    told["state"] = resumed.state_dict()
    torch.distributed.barrier()
    return told


@pytest.fixture(scope="module")
def folder(numbered: NumberedBetons) -> Path:
    numbered.pairing.save(numbered.target.path.parent / "ranks.json")
    return numbered.target.path.parent


@pytest.fixture(scope="module")
def jobs(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, forked: processes.Server
) -> dict[int, list[dict[str, Any]]]:
    """What each process of each job tells; every job goes on from the state of the one before."""
    alone = make(folder, "all pairs")
    next(iter(alone))
    state, told = alone.state_dict(), {}
    for count in PROCESSES:
        store = tmp_path_factory.mktemp("store") / "store"
        job = forked.job(count, __file__, str(folder), str(store), json.dumps(state))
        results = ended(job, SECONDS)
        assert [status for status, *_ in results] == [0] * count, results
        told[count] = [json.loads(out) for _, out, _ in results]
        state = told[count][0]["state"]
    return told


@pytest.fixture(params=PROCESSES)
def job(request: pytest.FixtureRequest, jobs: dict[int, Any]) -> list[dict[str, Any]]:
    return list(jobs[request.param])


def in_order(ranks: list[Any], what: str) -> list[Any]:
    """What the ranks received, step by step and in rank order."""
    return [part for step in zip(*ranks, strict=True) for rank in step for part in rank[what]]


@pytest.mark.parametrize("name", LOADERS)
def test_rank_and_world_size_are_found(job: list[dict[str, Any]], name: str) -> None:
    for rank, told in enumerate(job):
        *epochs, (found, world_size, length, epoch) = told[name]
        assert (found, world_size, epoch) == (rank, len(job), EPOCHS)
        assert [len(passed) for passed in epochs] == [length] * EPOCHS


@pytest.mark.parametrize("name", LOADERS)
def test_every_image_comes_once_an_epoch_over_all_ranks(
    job: list[dict[str, Any]], name: str
) -> None:
    step = len(job) * (4 if "pairs" in name else 3)
    for epoch in range(EPOCHS):
        ranks = [told[name][epoch] for told in job]
        seen, padding = in_order(ranks, "images"), in_order(ranks, "padding")
        if "all" in name:
            assert sorted(seen) == list(range(IMAGES))
            assert padding == seen[: -IMAGES % step % len(job)]
        else:
            assert len(seen) == len(set(seen)) == IMAGES // step * step
            assert padding == []
        counts = [[passed["count"] for passed in rank] for rank in ranks]
        assert all(rank == counts[0] for rank in counts) and sum(counts[0]) == len(seen)


@pytest.mark.parametrize("name", LOADERS)
def test_all_ranks_together_receive_what_one_process_does(
    job: list[dict[str, Any]], folder: Path, name: str
) -> None:
    alone = make(folder, name, rank=0, world_size=1, drop_last=False)
    for epoch in range(EPOCHS):
        received = in_order([told[name][epoch] for told in job], "samples")
        whole = samples(alone)
        assert received == (whole if "all" in name else whole[: len(received)])
        assert Counter(received).most_common(1)[0][1] == 1


@pytest.mark.parametrize("world_size", [3, 1])
def test_a_state_goes_from_job_to_job(jobs: dict[int, Any], folder: Path, world_size: int) -> None:
    """One process, then two, then four, and the rest by three or by one."""
    whole = samples(make(folder, "all pairs"))
    received = whole[:4]
    for count, told in jobs.items():
        received += in_order([rank["resumed"] for rank in told], "samples")
        assert len(received) == 4 * (1 + (2 if count == 2 else 6))
        assert all(rank["state"] == told[0]["state"] for rank in told)
        assert told[0]["state"]["position"] == len(received)
    ranks = [
        make(folder, "all pairs", batch_size=2, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for loader in ranks:
        loader.load_state_dict(jobs[4][0]["state"])
    assert received + together(ranks) == whole


if __name__ == "__main__":
    print(json.dumps(work(*sys.argv[1:])))
