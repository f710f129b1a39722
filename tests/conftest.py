"""Real betons for all tests, small enough to be made in seconds; processes that begin at once."""

from __future__ import annotations

import gc
import os
import shutil
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import processes
import pytest
import torch
from pictures import Images, Numbered, written
from PIL import Image

from xmix_data import Beton, PairedClass, Pairing

os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
torch.set_num_threads(1)
# Threads of networks as small as the tests' wait for each other, where a core is taken for long.


def pytest_collection_finish() -> None:
    """So that no test looks for garbage among what the libraries loaded."""
    gc.collect()
    gc.freeze()


class Betons(NamedTuple):
    """Two domains and a pairing of their classes."""

    target_jpg: Beton
    target_raw: Beton
    source_jpg: Beton
    source_raw: Beton
    pairing: Pairing


class NumberedBetons(NamedTuple):
    target: Beton
    source: Beton
    pairing: Pairing


def reversed_pairing(target: Beton, source: Beton) -> Pairing:
    """Target class 0 with the last source class, and so on."""
    names = zip(target.class_names, reversed(source.class_names), strict=False)
    return Pairing({t: [PairedClass(s, 0.5, 1)] for t, s in names})


@pytest.fixture(scope="session")
def betons(tmp_path_factory: pytest.TempPathFactory) -> Betons:
    folder = tmp_path_factory.mktemp("betons")
    target, source = Images([9, 7, 5, 6], "t", seed=1), Images([8, 3, 6, 9, 5, 7], "s", seed=2)

    def write(images: Images, name: str, encoding: str) -> Beton:
        return written(images, folder / f"{name}.beton", image_size=40, encoding=encoding)

    made = [
        write(images, f"{name}-{encoding}", encoding)
        for name, images in (("target", target), ("source", source))
        for encoding in ("jpg", "raw")
    ]
    return Betons(*made, reversed_pairing(made[0], made[2]))


@pytest.fixture(scope="session")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> NumberedBetons:
    folder = tmp_path_factory.mktemp("numbered")
    made = [
        written(Numbered(counts, name[0]), folder / f"{name}.beton", image_size=24, encoding="raw")
        for name, counts in (("target", [12, 10, 15]), ("source", [40, 30, 5, 25]))
    ]
    return NumberedBetons(*made, reversed_pairing(*made))


@pytest.fixture(scope="session")
def forked() -> Iterator[processes.Server]:
    """Starts Python processes in which torch and this package are already loaded."""
    with processes.Server() as server:
        yield server


@pytest.fixture
def several_threads() -> Iterator[None]:
    """A number of torch's threads that nobody would choose, to be found as it was."""
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def heeds_interrupts() -> Iterator[None]:
    """SIGINT does what it does in a terminal, here and in the processes that a test starts.

    What a shell starts in the background, as in ``nohup make test &``, ignores it, and so would
    all that is started from there.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or leaves anything in the cache of the person who runs it."""
    for name in ("XMIX_CACHE", "XMIX_CACHE_LIMIT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "xmix_data"


@pytest.fixture(params=["reference", "host", "dali"])
def backend(request: pytest.FixtureRequest) -> str:
    """Every backend in turn: the contract is one."""
    return str(request.param)


@pytest.fixture(params=["host", "dali"])
def fast_backend(request: pytest.FixtureRequest) -> str:
    """Those that are held against `torch`, the reference."""
    return str(request.param)


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class folder of photographs: the one that XMIX_PHOTOGRAPHS names, or what packages ship."""
    if given := os.environ.get("XMIX_PHOTOGRAPHS"):
        return Path(given)
    import matplotlib
    import sklearn.datasets

    folder = tmp_path_factory.mktemp("photographs")
    shipped = [
        Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg",
        *sorted((Path(sklearn.datasets.__file__).parent / "images").glob("*.jpg")),
    ]
    assert len(shipped) == 3
    for path in shipped:
        own = folder / path.stem
        own.mkdir()
        shutil.copy(path, own)
        with Image.open(path) as image:
            for number in range(12):  # sizes, qualities and sampling factors as photographs have
                smaller = image.resize([side * (20 - number) // 20 for side in image.size])
                options = {"subsampling": number % 3, "progressive": number % 4 == 3}
                smaller.save(own / f"{number}.jpg", quality=60 + 3 * number, **options)
    return folder


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Make what was captured such that one process can tell another: paths may be odd bytes."""
    report = yield
    report.sections = [
        (name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections
    ]
    return report
