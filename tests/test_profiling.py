"""What profilers see of the loader: the names of its threads, and ranges around their work."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from conftest import Betons
from torch.profiler import ProfilerActivity, profile

from xmix_data import CenterCrop, RandomCrop, XMixLoader
from xmix_data.backends.profiling import ProfiledRange

OPTIONS: dict[str, Any] = {"batch_size": 4, "crop": RandomCrop(8), "num_workers": 2}
PLAN, DECODE, DECODE_AND_MIX = "xmix: plan", "xmix: decode", "xmix: decode and mix"
BATCH, WORK, CONSUMER = (f"xmix: wait for {what}" for what in ("a batch", "work", "the consumer"))


def loader(betons: Betons, **options: Any) -> XMixLoader:
    return XMixLoader(
        betons.target_jpg, betons.source_jpg, betons.pairing, **{**OPTIONS, **options}
    )


def of_all_threads() -> Any:
    """The option that has torch's profiler record all threads, and not only the one that began."""
    from torch._C._profiler import _ExperimentalConfig

    try:
        return _ExperimentalConfig(profile_all_threads=True)
    except TypeError:
        pytest.skip("this torch's profiler records one thread only")


def test_the_system_knows_the_threads_names(betons: Betons) -> None:
    with loader(betons) as batches:
        iterator = iter(batches)
        next(iterator)
        ours = [each for each in threading.enumerate() if each.name.startswith("xmix-")]
        assert {each.name for each in ours} == {"xmix-plan", "xmix-decode-0", "xmix-decode-1"}
        for each in ours:
            comm = Path(f"/proc/self/task/{each.native_id}/comm")
            until = time.monotonic() + 10
            while comm.read_text() != f"{each.name}\n":  # it may be about to tell its name
                assert time.monotonic() < until, comm.read_text()
                time.sleep(0.01)


def test_torchs_profiler_shows_what_each_thread_does(betons: Betons, tmp_path: Path) -> None:
    config = of_all_threads()
    watched = profile(activities=[ProfilerActivity.CPU], experimental_config=config)
    with watched as recorded, loader(betons) as batches:
        for _ in range(3):
            list(batches)
            names = {each.native_id: each.name.rstrip("01") for each in threading.enumerate()}
    recorded.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    seen = defaultdict(set)
    for event in events:
        if event["name"].startswith("xmix: "):
            seen[names[event["tid"]]].add(event["name"])
    assert seen.pop("xmix-plan") == {PLAN, CONSUMER}
    assert seen.pop("xmix-decode-") == {WORK, DECODE_AND_MIX}
    assert seen == {threading.current_thread().name: {BATCH}}


def test_without_more_it_shows_the_waiting_of_the_training_thread(betons: Betons) -> None:
    with (
        profile(activities=[ProfilerActivity.CPU]) as recorded,
        loader(betons) as batches,
    ):
        count = len(list(batches))
    # One more finds out that a pass is over, or not, as the next epoch goes on from it.
    waits = [event for event in recorded.events() if event.name == BATCH]
    assert count <= len(waits) <= count + 1
    assert {event.name for event in recorded.events() if "xmix" in event.name} == {BATCH}


@pytest.mark.parametrize("mix", [True, False])
def test_a_profiler_that_begins_and_ends_at_any_time_changes_no_batch(
    betons: Betons, mix: bool
) -> None:
    config = of_all_threads()
    options = {"mix": mix, "seed": 3, "crop": CenterCrop(8)}
    with loader(betons, **options) as plain, loader(betons, **options) as watched:
        for _ in range(4):
            watched_pass = iter(watched)
            for number, expected in enumerate(plain):
                if number % 3 == 1:  # the threads are in the middle of something, now and below
                    recorded = profile(
                        activities=[ProfilerActivity.CPU], experimental_config=config
                    )
                    recorded.start()
                batch = next(watched_pass)
                if number % 3 == 2:
                    recorded.stop()
                for one, other in zip(batch, expected, strict=True):
                    assert torch.equal(one, other)
            if number % 3 == 1:
                recorded.stop()


def test_nothing_is_recorded_where_nobody_looks() -> None:
    with ProfiledRange("xmix: test") as nothing:
        pass
    assert nothing is None
    entered = ProfiledRange("xmix: test")
    entered.__enter__()
    assert entered._recorded is None
    entered.__exit__(None, None, None)
    with profile(activities=[ProfilerActivity.CPU]):
        entered.__enter__()
        assert entered._recorded is not None
        entered.__exit__(None, None, None)


RUN = """
import sys
from xmix_data import Pairing, RandomCrop, XMixLoader
target, source, pairing, mix = sys.argv[1:]
with XMixLoader(
    target, source, pairing, batch_size=4, crop=RandomCrop(8), num_workers=2, mix=mix == "mix"
) as loader:
    list(loader)
"""


@pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="this torch has no NVTX")
@pytest.mark.parametrize(("mix", "work"), [("mix", DECODE_AND_MIX), ("unmixed", DECODE)])
def test_nvtx_ranges_are_seen_by_a_tool(
    betons: Betons, tmp_path: Path, forked: processes.Server, mix: str, work: str
) -> None:
    compiler = shutil.which("cc") or pytest.skip("no C compiler")
    tool, recorded = tmp_path / "recorder.so", tmp_path / "ranges"
    source = Path(__file__).with_name("nvtx_recorder.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", tool, source], check=True)
    betons.pairing.save(tmp_path / "pairing.json")
    process = forked.start(
        "-c",
        RUN,
        *(str(beton.path) for beton in (betons.target_jpg, betons.source_jpg)),
        str(tmp_path / "pairing.json"),
        mix,
        environment={"NVTX_INJECTION64_PATH": str(tool), "RECORDED": str(recorded)},
    )
    [(status, _, errors)] = processes.ended([process], 60)
    assert status == 0, errors
    lines = [line.split(" ", 2) for line in recorded.read_text().splitlines()]
    assert {depth for _, depth, _ in lines} == {"0"}  # each range that began has ended
    threads = defaultdict(set)
    for thread, _, name in lines:
        threads[name].add(thread)
    assert set(threads) == {PLAN, CONSUMER, BATCH, WORK, work}
    assert len(threads[BATCH]) == len(threads[PLAN]) == 1
    assert threads[work] <= threads[WORK] and len(threads[WORK]) == 2
    assert not threads[WORK] & (threads[BATCH] | threads[PLAN])
