"""The contract on a CUDA device; skipped where there is none."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import test_mixing
import torch
from conftest import Betons

from xmix_data import RandomCrop, RandomResizedCrop, XMixLoader
from xmix_data.backends import mixing
from xmix_data.backends.device import pinned
from xmix_data.methods import XMixup
from xmix_data.training import Recipe, fit

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def loader(betons: Betons, **options: Any) -> XMixLoader:
    settings = {"batch_size": 8, "crop": RandomCrop(32), "seed": 3, **options}
    return XMixLoader(betons.target_raw, betons.source_raw, betons.pairing, **settings)


@pytest.mark.parametrize("crop", [RandomCrop(32), RandomResizedCrop(24)], ids=repr)
@pytest.mark.parametrize("mix", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_batches_on_the_gpu_are_the_references(
    betons: Betons, crop: Any, mix: bool, dtype: torch.dtype
) -> None:
    step = {torch.float32: 0.0, torch.float16: 2**-11, torch.bfloat16: 2**-8}[dtype]
    for ours, expected in zip(
        loader(betons, crop=crop, mix=mix, dtype=dtype, device="cuda"),
        loader(betons, crop=crop, mix=mix, backend="reference"),
        strict=True,
    ):
        for a, b in zip(ours, expected, strict=True):
            assert a.device.type == "cuda"
            if a.ndim == 4:
                assert a.dtype == dtype and a.is_contiguous(memory_format=torch.channels_last)
                assert ((a.cpu().float() - b).abs() <= step * b.abs() + 1e-6).all()
            else:
                assert torch.equal(a.cpu(), b)


def test_pinned_memory_is_not_reused_before_its_copy_has_run(betons: Betons) -> None:
    """A slow consumer, many epochs, every batch kept: all must still be what they were."""
    batches = []
    ours = loader(betons, mix=False, dtype=torch.uint8, device="cuda", prefetch=1)
    busy = torch.randn(2000, 2000, device="cuda")
    for _ in range(20):
        for batch in ours:
            busy = busy @ busy / busy.norm()
            batches.append(batch)
    reference = loader(betons, mix=False, dtype=torch.uint8, backend="reference")
    expected = [batch for _ in range(20) for batch in reference]
    for one, other in zip(batches, expected, strict=True):
        assert torch.equal(one.target_images.cpu(), other.target_images)
        assert torch.equal(one.source_images.cpu(), other.source_images)


def test_consumers_stream_waits_for_the_copy(betons: Betons) -> None:
    side = torch.cuda.Stream()
    expected = [batch.images.sum().item() for batch in loader(betons)]
    with torch.cuda.stream(side):
        sums = [batch.images.sum() for batch in loader(betons, device="cuda")]
    torch.cuda.synchronize()
    assert [s.item() for s in sums] == pytest.approx(expected, rel=1e-4)


def test_a_batch_peeked_at_on_another_stream_is_waited_for(betons: Betons) -> None:
    expected = loader(betons, backend="reference").peek().images
    ours = loader(betons, device="cuda")
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(200_000_000)
        ours.peek()
    assert torch.allclose(next(iter(ours)).images.cpu(), expected, atol=1e-6)


def test_slow_copies_are_waited_for(betons: Betons) -> None:
    """The copy stream falls behind the consumer, who asks for the next batch at once."""
    ours = loader(betons, mix=False, dtype=torch.uint8, device="cuda", prefetch=3)
    expected = list(loader(betons, mix=False, dtype=torch.uint8, backend="reference"))
    copies = ours._backend.device_stage._stream
    for _ in range(5):
        ours.set_epoch(0)
        kept = []
        for batch in ours:
            with torch.cuda.stream(copies):
                torch.cuda._sleep(20_000_000)
            kept.append(batch)
        for one, other in zip(kept, expected, strict=True):
            assert torch.equal(one.target_images.cpu(), other.target_images)
            assert torch.equal(one.source_images.cpu(), other.source_images)


def test_a_pass_left_early_leaves_the_batches_that_it_gave_alone(betons: Betons) -> None:
    """Their λ and mirroring are still on their way, and what was made ahead has their slots."""
    ours = loader(betons, device="cuda", batch_size=3, prefetch=2, num_workers=2)
    expected = list(loader(betons, batch_size=3, backend="reference"))
    copies = ours._backend.device_stage._stream
    for left in range(1, 9):
        ours.set_epoch(0)
        iterator, kept = iter(ours), []
        for _ in range(left):
            with torch.cuda.stream(copies):
                torch.cuda._sleep(20_000_000)
            kept.append(next(iterator))
        ours.set_epoch(7)
        next(iter(ours))
        for one, other in zip(kept, expected, strict=False):
            assert torch.allclose(one.images.cpu(), other.images, atol=1e-6)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_joint_head_begins_from_a_network_on_the_gpu(betons: Betons, device: str) -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 6)
    )
    weights = []
    for place in ("cpu", "cuda"):
        result = fit(
            XMixup(heads="joint"),
            network.to(place),
            betons.target_raw,
            source=betons.source_raw,
            pairing=betons.pairing,
            source_rows=range(6),
            recipe=Recipe(iterations=1, batch_size=8, crop=32),
            device=device,
        )
        weights.append(list(result.network.parameters()))
        assert {w.device.type for w in weights[-1]} == {device}
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*weights, strict=True))


def test_a_pass_left_early_gives_its_slots_back(betons: Betons) -> None:
    ours = loader(betons, device="cuda")
    for _ in range(10):
        next(iter(ours))
    stage = ours._backend.device_stage
    ours.close()
    assert len(stage._free) == len(stage._slots) <= ours.prefetch + 3


@pytest.mark.parametrize("options", [{}, {"labels": "soft"}, {"mix": False}], ids=str)
def test_no_batch_makes_the_host_wait(betons: Betons, options: dict[str, Any]) -> None:
    """For all that the device has to do before: labels are sent without asking it anything."""
    ours = loader(betons, device="cuda", **options)
    iterator = iter(ours)
    next(iterator)
    torch.cuda.set_sync_debug_mode("error")
    try:
        count = sum(1 for _ in iterator)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert count == len(ours) - 1


def test_pinned_memory_is_of_whole_pages_and_given_back() -> None:
    """torch's own allocator would take a power of two, and keep it."""
    device = torch.device("cuda", torch.cuda.current_device())
    before = torch.cuda.host_memory_stats()["allocated_bytes.current"]
    memory = pinned((3, 1000, 1000), device)
    assert (
        memory.is_pinned() and torch.cuda.host_memory_stats()["allocated_bytes.current"] == before
    )
    memory.random_()
    part = memory[1]
    del memory
    assert part.is_pinned()
    assert torch.equal(part.to(device, non_blocking=True).cpu(), part)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_threads_make_no_context_on_the_first_gpu(betons: Betons) -> None:
    code = (
        "import sys, torch; from xmix_data import XMixLoader, RandomCrop\n"
        "torch.cuda.set_device(1)\n"
        "loader = XMixLoader(*sys.argv[1:], batch_size=8, crop=RandomCrop(32), device='cuda:1')\n"
        "for _ in range(3): list(loader)\n"
        "from torch._C import _cuda_hasPrimaryContext as has\n"
        "assert has(1) and not has(0)\n"
    )
    betons.pairing.save(path := betons.target_raw.path.with_suffix(".gpu.json"))
    paths = [betons.target_raw.path, betons.source_raw.path, path]
    subprocess.run([sys.executable, "-c", code, *map(str, paths)], check=True)


def test_the_mixing_kernel_is_tritons() -> None:
    """And makes what plain operations make, on crops of a usual size."""
    module, reason = mixing.device_stage(torch.device("cuda"))
    assert reason is None and module.__name__ == "xmix_data.backends.mixing_triton"
    made = test_mixing.case((48, 224, 224), 0)
    target, source = (crops.cuda() for crops in made["crops"])
    numbers = [x.cuda() for x in (*made["flips"], made["lam"], *made["scaling"])]
    for dtype in test_mixing.DTYPES:
        both = target, source, *numbers, dtype
        assert test_mixing.close(module.mix(*both), mixing.mix(*both))
