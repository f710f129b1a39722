"""The reference backend: Pillow, one image after the other, plain arithmetic in float64.

Slow and obviously right: every other backend is held against it.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from xmix_data.backends import Spec
from xmix_data.beton import Domain
from xmix_data.encoding import RAW
from xmix_data.errors import BetonError
from xmix_data.plan import Crops, PlanRows

__all__ = ["TorchBackend"]


class TorchBackend:
    """Decodes in the consumer's thread, when a batch is asked for."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec

    def stream(self, rows: Iterator[PlanRows]) -> TorchStream:
        return TorchStream(self._spec, rows)


class TorchStream:
    def __init__(self, spec: Spec, rows: Iterator[PlanRows]) -> None:
        self._spec, self._rows = spec, rows
        self._waited = 0.0

    def __next__(self) -> tuple[PlanRows, tuple[torch.Tensor, ...]]:
        started = time.perf_counter()
        rows = next(self._rows)
        spec = self._spec
        images = [_crops(spec.target, rows.target, rows.target_crops, spec.crop.shape)]
        if spec.source is not None and rows.source is not None and rows.source_crops is not None:
            images.append(_crops(spec.source, rows.source, rows.source_crops, spec.crop.shape))
        if spec.dtype != torch.uint8:
            mean = torch.tensor(spec.mean, dtype=torch.float64)
            std = torch.tensor(spec.std, dtype=torch.float64)
            images = [(crops.double() / 255 - mean) / std for crops in images]
        if spec.mix:
            lam = torch.from_numpy(rows.lam).double()[:, None, None, None]
            images = [lam * images[0] + (1 - lam) * images[1]]
        delivered = tuple(
            x.permute(0, 3, 1, 2).to(spec.device, spec.dtype, memory_format=torch.channels_last)
            for x in images
        )
        self._waited += time.perf_counter() - started
        return rows, delivered

    def close(self) -> None:
        self._rows = iter(())

    def stats(self) -> dict[str, float]:
        return {"consumer_waited_s": self._waited, "loader_waited_s": 0.0}


def _crops(
    domain: Domain, indices: npt.NDArray[np.int64], crops: Crops, shape: tuple[int, int]
) -> torch.Tensor:
    """(B, H, W, 3) uint8."""
    images = [
        _crop(domain, int(index), box.tolist(), bool(flip), shape)
        for index, box, flip in zip(indices, crops.boxes, crops.flips, strict=True)
    ]
    return torch.from_numpy(np.stack(images))


def _crop(
    domain: Domain, index: int, box: list[int], flip: bool, shape: tuple[int, int]
) -> npt.NDArray[np.uint8]:
    top, left, height, width = box
    image = _decode(domain, index).crop((left, top, left + width, top + height))
    if (height, width) != shape:
        # Along x, then along y: which comes first in a single call depends on Pillow's version,
        # and each rounds to uint8.
        for size in ((shape[1], height), (shape[1], shape[0])):
            image = image.resize(size, Image.Resampling.BILINEAR)
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image)


def _decode(domain: Domain, index: int) -> Image.Image:
    beton, local = domain.locate(index)
    data, size = beton.data(local), (int(beton.widths[local]), int(beton.heights[local]))
    if beton.modes[local] == RAW:
        return Image.frombytes("RGB", size, data.tobytes())
    try:
        image = Image.open(io.BytesIO(data.tobytes()), formats=["JPEG"])
        if image.size != size:
            raise BetonError(
                f"{beton.describe(local)} is not of the size in the index; convert it again"
            )
        return image.convert("RGB")
    except (OSError, SyntaxError) as error:
        raise BetonError(
            f"{beton.describe(local)} cannot be decoded ({error}); convert it again"
        ) from error
