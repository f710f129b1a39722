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

from xmix_data.backends.profiling import ProfiledRange
from xmix_data.backends.protocol import STREAM_STATS, Spec, replacement
from xmix_data.beton import Domain
from xmix_data.beton.layout import RAW
from xmix_data.decode import dct_fractions
from xmix_data.errors import BetonError
from xmix_data.plan import SOURCE, TARGET, PlanRows, Replace

__all__ = ["ReferenceBackend", "ReferenceStream"]


class ReferenceBackend:
    """Backend that decodes in the consumer's thread, when a batch is asked for."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec

    def stream(self, rows: Iterator[PlanRows], replace: Replace | None = None) -> ReferenceStream:
        return ReferenceStream(self._spec, rows, replace)


class ReferenceStream:
    """Pass that works in the consumer's thread, when a batch is asked for."""

    def __init__(
        self, spec: Spec, rows: Iterator[PlanRows], replace: Replace | None = None
    ) -> None:
        self._spec, self._rows, self._replace = spec, rows, replace
        self._stats = dict.fromkeys(STREAM_STATS, 0.0)

    def __next__(self) -> tuple[PlanRows, tuple[torch.Tensor, ...]]:
        with ProfiledRange("xmix: decode and mix"):
            return self._made()

    def _made(self) -> tuple[PlanRows, tuple[torch.Tensor, ...]]:
        started = time.perf_counter()
        rows = next(self._rows)
        spec = self._spec
        images = []
        for side, domain in ((TARGET, spec.target), (SOURCE, spec.source)):
            if domain is not None:
                rows, crops = self._crops(rows, side, domain)
                images.append(crops)
        if spec.dtype != torch.uint8:
            mean = torch.tensor(spec.mean, dtype=torch.float64, device="cpu")
            std = torch.tensor(spec.std, dtype=torch.float64, device="cpu")
            images = [(crops.double() / 255 - mean) / std for crops in images]
        if spec.mix:
            lam = torch.from_numpy(rows.lam).double()[:, None, None, None]
            images = [lam * images[0] + (1 - lam) * images[1]]
        delivered = tuple(
            x.permute(0, 3, 1, 2).to(spec.device, spec.dtype, memory_format=torch.channels_last)
            for x in images
        )
        self._stats["consumer_waited_s"] += time.perf_counter() - started
        return rows, delivered

    def close(self) -> None:
        self._rows = iter(())

    def stats(self) -> dict[str, float]:
        # The consumer's thread does the work: it waits for as long as that takes.
        copying = self._stats["consumer_waited_s"] - self._stats["decode_s"]
        return {**self._stats, "copy_s": copying}

    def _crops(self, rows: PlanRows, side: int, domain: Domain) -> tuple[PlanRows, torch.Tensor]:
        """Make a domain's crops (B, H, W, 3) uint8; return the rows with what was replaced too."""
        images = []
        for item in range(len(rows)):
            attempt = 0
            while True:
                try:
                    images.append(self._image(rows, side, item, domain))
                    break
                except BetonError:
                    if self._replace is None:
                        raise
                rows = replacement(self._replace, rows, side, item, attempt, domain)
                attempt += 1
        return rows, torch.from_numpy(np.stack(images))

    def _image(self, rows: PlanRows, side: int, item: int, domain: Domain) -> npt.NDArray[np.uint8]:
        indices, crops = rows.of(side)
        index, box, shape = int(indices[item]), crops.boxes[item], self._spec.crop.shape
        raw = domain.modes[index] == RAW
        fraction = 1 if raw else int(dct_fractions(box[None], shape)[0])
        started = time.perf_counter()
        image = _decode(domain, index, fraction)
        if not raw:
            self._stats["decode_s"] += time.perf_counter() - started
        self._stats["bytes_read"] += int(domain.sizes[index])
        return _crop(image, box.tolist(), fraction, bool(crops.flips[item]), shape)


def _crop(
    image: Image.Image, box: list[int], fraction: int, flip: bool, shape: tuple[int, int]
) -> npt.NDArray[np.uint8]:
    """Cut ``box`` out of an image that was decoded at 1/``fraction`` of its size, and resize it."""
    top, left, height, width = box
    window = (
        left // fraction,
        top // fraction,
        -(-(left + width) // fraction),
        -(-(top + height) // fraction),
    )
    image = image.crop(window)
    if (height, width) != shape:
        x, y = left / fraction - window[0], top / fraction - window[1]
        # Along x, then along y: which comes first in a single call depends on Pillow's version,
        # and each rounds to uint8.
        image = image.resize(
            (shape[1], image.height),
            Image.Resampling.BILINEAR,
            box=(x, 0, x + width / fraction, image.height),
        )
        image = image.resize(
            (shape[1], shape[0]),
            Image.Resampling.BILINEAR,
            box=(0, y, shape[1], y + height / fraction),
        )
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image)


def _decode(domain: Domain, index: int, fraction: int) -> Image.Image:
    """Decode one whole image; a JPEG at 1/``fraction`` of its size."""
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
        if fraction > 1:
            image.draft("RGB", (size[0] // fraction, size[1] // fraction))
        return image.convert("RGB")  # decodes
    except (OSError, SyntaxError) as error:
        raise BetonError(
            f"{beton.describe(local)} cannot be decoded ({error}); convert it again"
        ) from error
