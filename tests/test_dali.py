"""The DALI backend beyond the contract: what DALI is given, and what becomes of what it refuses."""

from __future__ import annotations

import gc
import io
import logging
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Betons
from fuzz.streams import stream_of
from pictures import encoded, picture, written
from PIL import Image
from processes import Server
from test_contract import DALI_RESIZE_TOLERANCE, FP32_TOLERANCE

import xmix_data.bench
from xmix_data import (
    Beton,
    BetonError,
    CenterCrop,
    ImageLoader,
    RandomCrop,
    RandomResizedCrop,
    XMixLoader,
    decode,
)
from xmix_data.backends import PIXELS_PER_THREAD, choose
from xmix_data.backends.dali_pipeline import DaliDecoder, load
from xmix_data.backends.device import Made
from xmix_data.beton.layout import JPG
from xmix_data.errors import MissingDependencyError

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SIDE = 48
GPU_PSNR = 35.0
"""dB between nvJPEG's pixels and libjpeg-turbo's: what different decoders of one stream reach."""


def drawn(seed: int, mode: str = "RGB", side: int = SIDE) -> Image.Image:
    return Image.fromarray(picture(side, side, seed, coarse=6)).convert(mode)


class Streams:
    """A map-style dataset of JPEG streams, all of one class."""

    def __init__(self, streams: list[bytes]) -> None:
        self.classes, self.targets, self._streams = ["c"], [0] * len(streams), streams

    def __len__(self) -> int:
        return len(self._streams)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        return self._streams[index], 0


def kept(streams: list[bytes], path: Path) -> Beton:
    return written(Streams(streams), path, image_size=None, crop="none", encoding="keep")


def overwritten(beton: Beton, path: Path, changes: dict[int, Callable[[bytes], bytes]]) -> Beton:
    """A copy in which some streams are changed, but not longer."""
    path.write_bytes(beton.path.read_bytes())
    with path.open("r+b") as stream:
        for index, change in changes.items():
            stream.seek(int(beton.pointers[index]))
            stream.write(change(beton.data(index).tobytes()))
    return Beton(path)


def bad_codes(data: bytes) -> bytes:
    """A header that looks sound, with Huffman codes that do not exist."""
    at = data.index(b"\xff\xc4") + 5
    return data[:at] + b"\xff" * 16 + data[at + 16 :]


def end_lost(data: bytes) -> bytes:
    return data[: 2 * len(data) // 3] + bytes(len(data) - 2 * len(data) // 3)


def end_inside(data: bytes) -> bytes:
    """A third of the pixels is missing, and neither the header nor the last bytes say so."""
    at = data.index(b"\xff\xda")
    at += 2 * (len(data) - at) // 3
    return data[:at] + b"\xff\xd9" + data[at + 2 :]


def progressive(data: bytes) -> bytes:
    return encoded(Image.open(io.BytesIO(data)), progressive=True)


@pytest.fixture(scope="module")
def streams() -> list[bytes]:
    """Grey and in colour, in every chroma format that Pillow writes, of odd sizes."""
    made = []
    for seed in range(24):
        image = drawn(seed, "L" if seed % 7 == 3 else "RGB", SIDE + seed % 5)
        made.append(encoded(image, quality=80 + seed % 3 * 7, subsampling=seed % 3))
    return made


@pytest.fixture(scope="module")
def sound(streams: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> Beton:
    return kept(streams, tmp_path_factory.mktemp("dali") / "sound.beton")


def loaded(beton: Any, **options: Any) -> ImageLoader:
    settings = {
        "batch_size": 5,
        "crop": RandomCrop(32),
        "flip": True,
        "dtype": torch.uint8,
        "backend": "dali",
        "num_workers": 2,
        **options,
    }
    return ImageLoader(beton, **settings)


def images_of(loader: Any) -> torch.Tensor:
    return torch.cat([batch[0] for batch in loader])


def test_a_decoded_window_is_a_window_of_the_whole(streams: list[bytes], sound: Beton) -> None:
    """Also where smooth chroma upsampling looks beyond the window."""
    loader, place = loaded(sound), 0
    for images, _ in loader:
        assert loader.last_rows is not None
        crops = loader.last_rows.target_crops
        for image, box, flip in zip(images, crops.boxes.tolist(), crops.flips, strict=True):
            top, left, height, width = box
            whole = np.asarray(Image.open(io.BytesIO(streams[place])).convert("RGB"))
            window = whole[top : top + height, left : left + width]
            assert np.array_equal(image.permute(1, 2, 0), window[:, ::-1] if flip else window)
            place += 1
    assert place == len(streams) and loader._backend.refused == 0


@pytest.mark.parametrize("size", [12, 32, (24, 40), 64], ids=str)
def test_resized_windows_agree_within_what_the_docs_state(sound: Beton, size: Any) -> None:
    crop = RandomResizedCrop(size)
    ours, reference = (
        images_of(loaded(sound, crop=crop, backend=name)).int() for name in ("dali", "reference")
    )
    difference = (ours - reference).abs()
    assert 0 < difference.max() <= DALI_RESIZE_TOLERANCE
    assert difference.double().square().mean() < 255**2 / 10**4.8  # 48 dB


def test_raw_and_jpeg_images_of_one_domain(betons: Betons) -> None:
    """Their order in a batch, and the number of each, change from batch to batch."""
    both = [betons.target_jpg, betons.target_raw, betons.source_jpg]
    for mix, dtype in ((False, torch.uint8), (False, torch.float32)):
        options = {"shuffle": True, "batch_size": 7, "dtype": dtype}
        for (a, x), (b, y) in zip(
            loaded(both, **options), loaded(both, backend="reference", **options), strict=True
        ):
            assert torch.equal(x, y)
            assert (a.double() - b.double()).abs().max() < FP32_TOLERANCE, mix


PLAIN: dict[str, tuple[bool, Callable[[bytes], bytes]]] = {
    "as it is": (True, lambda data: data),
    "restarts": (True, lambda data: encoded(drawn(0), restart_marker_rows=1)),
    "with a thumbnail": (True, lambda data: data[:2] + thumbnail(data) + data[2:]),
    "cut off": (False, lambda data: data[:-40]),
    "end lost": (False, end_lost),
    "no JPEG": (False, lambda data: b"no" + data[2:]),
    "empty": (False, lambda data: b""),
    "nothing but its ends": (False, lambda data: b"\xff\xd8\xff\xd9"),
    "of another size": (False, lambda data: encoded(drawn(0, side=SIDE + 8))),
    "progressive": (False, progressive),
    "CMYK": (False, lambda data: encoded(drawn(0, "CMYK"))),
    "RGB": (False, lambda data: encoded(drawn(0), keep_rgb=True)),
    "sampled 2x4": (False, lambda data: sampled(2, 4)),
    "sampled 4x1": (True, lambda data: sampled(4, 1)),
    "without tables": (False, lambda data: data.replace(b"\xff\xdb", b"\xff\xe1")),
    "without codes": (False, lambda data: data.replace(b"\xff\xc4", b"\xff\xe1")),
    "with bytes after it": (False, lambda data: data + b"more"),
}


def sampled(across: int, down: int) -> bytes:
    """A stream of one scan whose first component has these sampling factors."""
    streams = (stream_of(Random(n), ((across, down), (1, 1), (1, 1)), SIDE, SIDE) for n in range(9))
    return next(data for data in streams if data.count(b"\xff\xda") == 1)


def thumbnail(data: bytes) -> bytes:
    """An application's segment with a whole JPEG inside."""
    small = encoded(drawn(1, side=16))
    return b"\xff\xe1" + (len(small) + 2).to_bytes(2, "big") + small


@pytest.mark.parametrize("what", PLAIN)
def test_only_plain_jpegs_are_given_to_dali(what: str) -> None:
    expected, change = PLAIN[what]
    data = np.frombuffer(change(encoded(drawn(0))), np.uint8)
    table = decode.image_table(
        np.array([data.ctypes.data], np.uint64),
        np.array([len(data)], np.uint64),
        np.array([JPG], np.uint8),
        np.array([SIDE], np.uint16),
        np.array([SIDE], np.uint16),
        np.zeros((1, 4), np.int32),
        np.zeros(1, bool),
        (8, 8),
    )
    plain = np.array([not expected])
    decode.plain_jpegs(table, plain)
    assert plain.tolist() == [expected]


def test_headers_that_end_anywhere_are_read_within_bounds(streams: list[bytes]) -> None:
    """At the end of a page that the next one does not follow, a byte too much ends the process."""
    code = (
        "import ctypes, mmap, sys, numpy as np\n"
        "from xmix_data import decode\n"
        "data = sys.stdin.buffer.read()\n"
        "size = 4 * mmap.PAGESIZE\n"
        "memory = mmap.mmap(-1, size + mmap.PAGESIZE)\n"
        "start = ctypes.addressof(ctypes.c_char.from_buffer(memory))\n"
        "libc = ctypes.CDLL(None)\n"
        "assert libc.mprotect(ctypes.c_void_p(start + size), mmap.PAGESIZE, 0) == 0\n"
        "plain = np.zeros(1, bool)\n"
        "for length in range(min(len(data), 900)):\n"
        "    part = data[:max(0, length - 2)] + b'\\xff\\xd9'[:length]\n"
        "    memory[size - len(part):size] = part\n"
        "    row = [start + size - len(part), len(part), 0, 48, 48, 0, 0, 8, 8, 1, 0]\n"
        "    decode.plain_jpegs(np.array([row], np.int64), plain)\n"
        "print(plain.tolist())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=streams[0], capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr.decode()


def test_a_refused_batch_is_the_hosts_and_names_the_image(
    sound: Beton, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = overwritten(sound, tmp_path / "bad.beton", {12: bad_codes})
    loader, batches = loaded(bad, num_workers=1), []
    with pytest.raises(BetonError, match=r"bad\.beton: image 12 \(class '0'\) cannot be decoded"):
        batches.extend(loader)
    assert loader._backend.refused == 1
    assert torch.equal(torch.cat([x for x, _ in batches]), images_of(loaded(sound))[:10])
    assert sum("DALI refused 1 batches" in r.getMessage() for r in caplog.records) == 1
    assert not any(t.name == "xmix-dali" for t in threading.enumerate())


@pytest.mark.parametrize("prefetch", [1, 4])
def test_refused_images_are_replaced_and_the_pipeline_goes_on(
    sound: Beton, tmp_path: Path, prefetch: int
) -> None:
    """Two batches in a row, one with two bad images, the first and the last image of the epoch."""
    bad = overwritten(
        sound, tmp_path / "bad.beton", dict.fromkeys((0, 6, 8, 23), bad_codes) | {17: end_lost}
    )
    options: dict[str, Any] = {"on_error": "replace", "prefetch": prefetch}
    ours, expected = (loaded(bad, backend=name, **options) for name in ("dali", "host"))
    for _ in range(2):
        assert torch.equal(images_of(ours), images_of(expected))
    assert ours.stats()["replaced"] == expected.stats()["replaced"] >= 10
    assert ours._backend.refused == 6  # 17 does not look whole: DALI never sees it


def test_what_neither_header_nor_end_shows_is_not_seen(sound: Beton, tmp_path: Path) -> None:
    """As docs/dali.md says; libjpeg-turbo warns, and DALI does not listen."""
    bad = overwritten(sound, tmp_path / "bad.beton", {12: end_inside})
    crop = RandomResizedCrop(32, scale=(1.0, 1.0))
    assert images_of(loaded(bad, crop=crop)).shape == (24, 3, 32, 32)
    with pytest.raises(BetonError, match="image 12 "):
        images_of(loaded(bad, crop=crop, backend="host"))


def test_crops_of_the_host_and_of_the_device_are_put_together() -> None:
    """What a GPU does with a batch, on the CPU."""
    host = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 2, 2, 3)
    made = 100 + host[:4]
    table = np.zeros((6, 11), np.int64)
    decode.point_at_crops(table, np.array([0, 2, 3, 5]), None, (2, 2))
    items, places = decode.made_elsewhere(table)
    for left_out, expected in (
        (None, [100, 1, 101, 102, 4, 103]),
        (1, [100, 1, 2, 102, 4, 103]),  # one that was replaced after DALI made it
    ):
        kept = np.arange(4) != left_out
        out = torch.zeros(6, 2, 2, 3, dtype=torch.uint8)
        Made(made, items[kept], places[kept]).put_together(host, out)
        assert out[:, 0, 0, 0].tolist() == expected
    out = torch.zeros(4, 2, 2, 3, dtype=torch.uint8)
    Made(made, np.arange(4), np.arange(4)).put_together(host[:4], out)
    assert torch.equal(out, made)
    none = np.zeros(0, np.int64)
    Made(made[:0], none, none).put_together(host[:4], out)
    assert torch.equal(out, host[:4])


def test_a_missing_dali_is_one_line(sound: Beton, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    with pytest.raises(MissingDependencyError) as caught:
        loaded(sound)
    assert str(caught.value).endswith("`pip install nvidia-dali-cuda120`")
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(MissingDependencyError, match=r"`pip install nvidia-dali-cuda130`$"):
        load(torch.device("cpu"))


def test_dali_for_another_cuda_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import nvidia.dali

    monkeypatch.setattr(nvidia.dali, "__cuda_version__", 12980)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    with pytest.raises(MissingDependencyError) as caught:
        load(torch.device("cuda", 0))
    assert str(caught.value) == (
        "NVIDIA DALI is installed for CUDA 12, torch for CUDA 13: "
        "`pip uninstall -y nvidia-dali-cuda120 && pip install nvidia-dali-cuda130`"
    )
    assert load(torch.device("cpu")) is nvidia.dali  # any will do


@pytest.mark.parametrize(
    ("device", "pixels", "threads", "problem", "expected"),
    [
        ("cpu", 1e9, 1, None, ("host", "batches arrive on the CPU")),
        ("cuda", 0, 1, None, ("host", "0 JPEG pixels a sample for 1 threads are at most")),
        ("cuda", 2 * 256**2, 16, None, ("host", "131,072 JPEG pixels a sample for 16 threads")),
        ("cuda", 2 * 256**2, 4, None, ("host", "131,072 JPEG pixels a sample for 4 threads")),
        ("cuda", 2 * 256**2, 2, None, ("dali", "are more than 50,000 a thread")),
        ("cuda", 2 * 500 * 375, 2, None, ("dali", "375,000 JPEG pixels a sample for 2 threads")),
        ("cuda", 500 * 375, 4, None, ("host", "187,500 JPEG pixels a sample for 4 threads")),
        ("cuda", PIXELS_PER_THREAD * 4, 4, None, ("host", "at most")),
        ("cuda", 2 * 256**2, 1, "no DALI", ("host", "more than 50,000 a thread, but no DALI")),
    ],
)
def test_auto_is_decided_by_device_encoding_size_and_cores(
    device: str, pixels: float, threads: int, problem: str | None, expected: tuple[str, str]
) -> None:
    name, reason = choose(device, pixels, threads, lambda: problem)
    assert name == expected[0] and expected[1] in reason


def test_auto_asks_for_dali_only_where_it_would_take_it() -> None:
    def unasked() -> str | None:
        raise AssertionError

    assert choose("cuda", 2 * 256**2, 16, unasked)[0] == "host"


def test_auto_says_what_it_is_in_one_line(betons: Betons, caplog: pytest.LogCaptureFixture) -> None:
    options: dict[str, Any] = {"batch_size": 8, "crop": CenterCrop(32)}
    with caplog.at_level(logging.INFO, "xmix_data"):
        auto = XMixLoader(
            betons.target_jpg, betons.source_raw, betons.pairing, backend="auto", **options
        )
    lines = [r.getMessage() for r in caplog.records if "auto" in r.getMessage()]
    assert lines == ["backend 'auto' is 'host': batches arrive on the CPU"]
    plain = XMixLoader(betons.target_jpg, betons.source_raw, betons.pairing, **options)
    assert torch.equal(next(iter(auto)).images, next(iter(plain)).images)


OPEN_PASS = (
    "import gc, os, sys, threading, time\n"
    "from xmix_data import ImageLoader, CenterCrop\n"
    "options = {'batch_size': 2, 'crop': CenterCrop(32), 'num_workers': 2}\n"
    "ImageLoader(sys.argv[1], **options)\n"
    "assert 'nvidia.dali' not in sys.modules\n"
    "loader = ImageLoader(sys.argv[1], backend='dali', **options)\n"
    "iterator = iter(loader)\n"
    "next(iterator)\n"
)


@pytest.mark.parametrize("ending", ["sys.exit(3)", "del loader, iterator; sys.exit(3)"])
def test_the_interpreter_ends_with_a_pass_open(sound: Beton, ending: str) -> None:
    """Before DALI ends all pipelines, of which ours is one."""
    command = [sys.executable, "-c", OPEN_PASS + ending, str(sound.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 3, done.stderr
    assert "Exception ignored" not in done.stderr and "refused" not in done.stderr


def test_fork_in_the_middle_of_a_pass(sound: Beton, forked: Server) -> None:
    code = (
        "child = os.fork()\n"
        "if child == 0:\n"
        "    del iterator\n"
        "    assert len(list(loader)) == len(loader)\n"
        "    sys.exit(0)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0\n"
        "assert len(list(iterator)) == len(loader) - 1\n"
    )
    done = forked.run("-c", OPEN_PASS + code, str(sound.path), timeout=120)
    assert done.returncode == 0, done.stderr


def test_fork_between_passes(sound: Beton, forked: Server) -> None:
    """What the parent keeps for its next pass has no threads in the child, and waits for them."""
    code = (
        "assert len(list(iterator)) == len(loader) - 1\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    assert len(list(loader)) == len(loader)\n"
        "    loader.close(); del loader, iterator; gc.collect()\n"
        "    sys.exit(0)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0\n"
        "assert len(list(loader)) == len(loader)\n"
    )
    done = forked.run("-c", OPEN_PASS + code, str(sound.path), timeout=120)
    assert done.returncode == 0, done.stderr


def test_passes_share_a_pipeline_which_ends_with_the_loader(
    sound: Beton, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Building one takes longer than a short epoch."""
    built = []
    build = DaliDecoder._built

    def counted(decoder: DaliDecoder) -> Any:
        pipeline = build(decoder)
        built.append(weakref.ref(pipeline))
        return pipeline

    monkeypatch.setattr(DaliDecoder, "_built", counted)
    loader = loaded(sound)
    first = images_of(loader)
    loader.set_epoch(0)
    assert torch.equal(images_of(loader), first)
    next(iter(loader))
    loader.set_epoch(0)
    assert torch.equal(images_of(loader), first)
    assert len(built) == 1
    loader.close()
    gc.collect()
    assert built[0]() is None


def test_a_pass_of_larger_batches_has_a_larger_pipeline(sound: Beton) -> None:
    """A pass that goes on in an epoch's tail begins with a small one."""
    loader, whole = loaded(sound), loaded(sound)
    iterator = iter(whole)
    for _ in range(len(whole) - 1):
        next(iterator)
    loader.load_state_dict(whole.state_dict())
    tail = images_of(loader)
    assert 0 < len(tail) < loader.batch_size
    loader.set_epoch(0)
    whole.set_epoch(0)
    assert torch.equal(images_of(loader), images_of(whole))
    assert loader._backend.refused == 0


def test_a_pass_in_a_reference_cycle_ends_wherever_the_garbage_collector_runs(
    sound: Beton, forked: Server
) -> None:
    code = (
        "list(iterator); gc.collect(); gc.freeze()\n"
        "def drop():\n"
        "    cycle = {'pass': iter(loader)}; cycle['self'] = cycle\n"
        "for _ in range(40):\n"
        "    gc.disable(); drop(); gc.set_threshold(5); gc.enable(); time.sleep(0.01)\n"
        "gc.collect()\n"
        "for _ in range(200):\n"
        "    left = [t.name for t in threading.enumerate() if t.name.startswith('xmix')]\n"
        "    if not left: break\n"
        "    time.sleep(0.02); gc.collect()\n"
        "print(left, len(list(loader)))\n"
    )
    done = forked.run("-c", OPEN_PASS + code, str(sound.path), timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[] 12\n" and "Exception ignored" not in done.stderr


def test_passes_that_are_left_early_leave_no_thread(sound: Beton) -> None:
    loader = loaded(sound)
    for _ in range(20):
        iterator = iter(loader)
        next(iterator)
        assert sum(t.name.startswith("xmix-dali") for t in threading.enumerate()) == 1
    loader.close()
    assert not any(t.name.startswith("xmix") for t in threading.enumerate())


def test_its_time_and_bytes_are_counted(sound: Beton) -> None:
    loader = loaded(sound)
    images_of(loader)
    stats = loader.stats()
    assert stats["bytes_read"] == sound.sizes.sum()
    assert stats["decode_s"] > 0 and stats["copy_s"] > 0


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Beton:
    return written(
        xmix_data.bench.Photographs(2, 12, 256), tmp_path_factory.mktemp("gpu") / "p.beton"
    )


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("crop", [RandomCrop(224), RandomResizedCrop(224)], ids=repr)
def test_the_gpus_pixels_are_close_to_the_references(
    photographs: Beton, crop: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    ours, reference = (
        images_of(loaded(photographs, crop=crop, **options))
        for options in ({"device": "cuda"}, {"backend": "reference"})
    )
    error = (ours.cpu().double() - reference.double()).square().mean(dim=(1, 2, 3))
    assert (10 * torch.log10(255**2 / error.clamp(min=1e-9))).min() > GPU_PSNR
    assert "WARNING" not in "".join(capfd.readouterr())  # DALI's, where the CPU has to decode


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("mix", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_raw_images_on_the_gpu_are_the_references(
    betons: Betons, mix: bool, dtype: torch.dtype
) -> None:
    step = {torch.float32: 0.0, torch.float16: 2**-11, torch.bfloat16: 2**-8}[dtype]
    loaders = (
        XMixLoader(
            betons.target_raw,
            betons.source_raw,
            betons.pairing,
            batch_size=8,
            mix=mix,
            crop=RandomCrop(32),
            **options,
        )
        for options in (
            {"backend": "dali", "device": "cuda", "dtype": dtype},
            {"backend": "reference"},
        )
    )
    for ours, expected in zip(*loaders, strict=True):
        for a, b in zip(ours, expected, strict=True):
            assert a.device.type == "cuda"
            if a.ndim == 4:
                assert a.dtype == dtype and a.is_contiguous(memory_format=torch.channels_last)
                assert ((a.cpu().float() - b).abs() <= step * b.abs() + 1e-6).all()
            else:
                assert torch.equal(a.cpu(), b)


@pytest.mark.gpu
@GPU
def test_raw_and_jpeg_images_meet_on_the_gpu(betons: Betons) -> None:
    both = [betons.target_jpg, betons.target_raw]
    ours, reference = (
        images_of(loaded(both, shuffle=True, **options)).cpu().double()
        for options in ({"device": "cuda"}, {"backend": "reference"})
    )
    error = (ours - reference).square().mean(dim=(1, 2, 3))
    assert (10 * torch.log10(255**2 / error.clamp(min=1e-9))).min() > GPU_PSNR - 5  # 40 px wide
    raw = error == 0
    assert raw.sum() >= betons.target_raw.num_samples


@pytest.mark.gpu
@GPU
def test_bad_images_on_the_gpu_are_the_hosts(sound: Beton, tmp_path: Path) -> None:
    bad = overwritten(sound, tmp_path / "bad.beton", {7: bad_codes, 17: end_lost})
    with pytest.raises(BetonError, match="image 7 "):
        images_of(loaded(bad, device="cuda"))
    ours, expected = (
        loaded(bad, on_error="replace", **options)
        for options in ({"device": "cuda"}, {"backend": "host"})
    )
    for (_, x), (_, y) in zip(ours, expected, strict=True):
        assert torch.equal(x.cpu(), y)
        assert ours.last_rows is not None and expected.last_rows is not None
        assert np.array_equal(ours.last_rows.target, expected.last_rows.target)
    assert ours.stats()["replaced"] == expected.stats()["replaced"] >= 2


@pytest.mark.gpu
@GPU
def test_batches_on_the_gpu_belong_to_the_caller(photographs: Beton) -> None:
    """Every batch of many epochs kept, behind a busy consumer."""
    loader = loaded(photographs, device="cuda", prefetch=1)
    first = [x.clone() for x, _ in loader]
    busy, kept = torch.randn(2000, 2000, device="cuda"), []
    for _ in range(10):
        loader.set_epoch(0)
        for images, _ in loader:
            busy = busy @ busy / busy.norm()
            kept.append(images)
    for one, other in zip(kept, first * 10, strict=True):
        assert torch.equal(one, other)
