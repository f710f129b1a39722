"""The contract on a CUDA device; skipped where there is none."""

from __future__ import annotations

from typing import Any

import pytest
import test_mixing
import torch
from conftest import Betons

from xmix_data import RandomCrop, RandomResizedCrop, XMixLoader
from xmix_data.backends import mixing

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


def test_a_pass_left_early_gives_its_slots_back(betons: Betons) -> None:
    ours = loader(betons, device="cuda")
    for _ in range(10):
        next(iter(ours))
    stage = ours._backend.device_stage
    ours.close()
    assert len(stage._free) == len(stage._slots) <= ours.prefetch + 3


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
