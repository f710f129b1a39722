"""Real betons for all tests, small enough to be made in seconds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from xmix_data import Beton, PairedClass, Pairing, write_beton


class Images:
    """A map-style dataset of smooth random pictures: JPEG keeps them nearly as they are."""

    def __init__(
        self, counts: Sequence[int], prefix: str, size: tuple[int, int] = (40, 40), seed: int = 0
    ) -> None:
        self.classes = [f"{prefix}{i}" for i in range(len(counts))]
        self.targets = [label for label, count in enumerate(counts) for _ in range(count)]
        random = np.random.default_rng(seed)
        self.pixels = []
        for _ in self.targets:
            coarse = random.integers(0, 256, (5, 5, 3), dtype=np.uint8)
            image = Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)
            self.pixels.append(np.asarray(image))

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.pixels[index], self.targets[index]


class Numbered:
    """Images that tell which they are: the first two channels hold the index."""

    def __init__(self, counts: Sequence[int], prefix: str, size: int = 24) -> None:
        self.classes = [f"{prefix}{i}" for i in range(len(counts))]
        self.targets = [label for label, count in enumerate(counts) for _ in range(count)]
        self._size = size

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        image = np.zeros((self._size, self._size, 3), np.uint8)
        image[..., 0], image[..., 1] = index % 256, index // 256
        return image, self.targets[index]

    @staticmethod
    def indices(images: torch.Tensor) -> list[int]:
        """Which images a uint8 batch (B, 3, H, W) shows."""
        corner = images[:, :2, 0, 0].long()
        return (corner[:, 0] + 256 * corner[:, 1]).tolist()


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
        return write_beton(
            images,
            folder / f"{name}.beton",
            image_size=40,
            encoding=encoding,
            num_workers=0,
            progress=False,
        )

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
        write_beton(
            Numbered(counts, name[0]),
            folder / f"{name}.beton",
            image_size=24,
            encoding="raw",
            num_workers=0,
            progress=False,
        )
        for name, counts in (("target", [12, 10, 15]), ("source", [40, 30, 5, 25]))
    ]
    return NumberedBetons(*made, reversed_pairing(*made))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or leaves features in the cache of the person who runs it."""
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


@pytest.fixture
def real_images() -> Iterator[Path]:
    """Photographs kept outside the project; without them a test is skipped."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the photographs in ../shared/data, which are not part of the project")
    yield folder
