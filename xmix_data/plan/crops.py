"""What to crop and flip, declared: a crop turns image sizes and uniform numbers into boxes.

Comes in: stored heights and widths (B,), and uniform numbers in [0, 1) (B, num_uniforms).
Goes out: boxes (B, 4) int32: top, left, height, width in pixels of the stored image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from xmix_data.options import real_number

__all__ = ["CenterCrop", "Crop", "RandomCrop", "RandomResizedCrop"]


Size = int | tuple[int, int]


@dataclass(frozen=True)
class Crop:
    """Base class of the crops.

    Args:
        size: Output size in pixels: one number for a square, or (height, width).

    Raises:
        ValueError: A side is below 1.
    """

    size: Size
    num_uniforms: ClassVar[int] = 0
    """Number of uniform numbers that one box takes."""

    @property
    def resizes(self) -> bool:
        """Whether a box may have another size than the output."""
        return False

    def __post_init__(self) -> None:
        sides = self.size if isinstance(self.size, (tuple, list)) else (self.size, self.size)
        if len(sides) != 2 or not all(isinstance(s, (int, np.integer)) and s >= 1 for s in sides):
            raise ValueError(f"crop size is {self.size!r}; give pixels, or (height, width)")
        # Python's own numbers, by which a crop is known in caches; it is frozen.
        height, width = map(int, sides)
        square = not isinstance(self.size, (tuple, list))
        object.__setattr__(self, "size", height if square else (height, width))

    @property
    def shape(self) -> tuple[int, int]:
        """Output height and width in pixels."""
        return self.size if isinstance(self.size, tuple) else (self.size, self.size)

    def boxes(
        self,
        heights: npt.NDArray[Any],
        widths: npt.NDArray[Any],
        uniforms: npt.NDArray[np.float64],
    ) -> npt.NDArray[np.int32]:
        """Turn uniform numbers into boxes inside images of the given sizes.

        Args:
            heights, widths: (B,) sides of the stored images, in pixels.
            uniforms: (B, num_uniforms) float64 in [0, 1).

        Returns:
            (B, 4) int32, the top, left, height and width of each box in pixels.
        """
        raise NotImplementedError

    def _fixed_size_boxes(self, top: npt.NDArray[Any], left: npt.NDArray[Any]) -> Any:
        height, width = self.shape
        full = np.ones_like(top)
        return np.stack([top, left, full * height, full * width], axis=1).astype(np.int32)


@dataclass(frozen=True, repr=False)
class CenterCrop(Crop):
    """Crop at the centre of the image, as `torchvision.transforms.CenterCrop` places it, or scaled.

    Args:
        size: Output size in pixels: one number for a square, or (height, width).
        ratio: Share, in 0..1, that the window has of the sides of the largest one of the output's
            shape; the window is then resized to ``size``. ``224 / 256`` does to images of any size
            what resizing to 256 and cropping 224 does. ``None``: a window of ``size``, not resized.

    Raises:
        ValueError: A side is below 1, or the ratio is not above 0 and at most 1.

    Examples:
        >>> loader = ImageLoader("target.beton", batch_size=8, crop=CenterCrop(32))
        >>> images, labels = next(iter(loader))
        >>> images.shape
        torch.Size([8, 3, 32, 32])
        >>> CenterCrop(224, ratio=224 / 256)
        CenterCrop(size=224, ratio=0.875)
    """

    ratio: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ratio is None:
            return
        object.__setattr__(self, "ratio", real_number("ratio", self.ratio))  # it is frozen
        if not 0 < self.ratio <= 1:
            raise ValueError(f"ratio is {self.ratio}; give a share above 0 and at most 1, or None")

    def __repr__(self) -> str:  # without a ratio as ever: it names features in caches
        ratio = "" if self.ratio is None else f", ratio={self.ratio!r}"
        return f"CenterCrop(size={self.size!r}{ratio})"

    @property
    def resizes(self) -> bool:
        return self.ratio is not None

    def boxes(
        self,
        heights: npt.NDArray[Any],
        widths: npt.NDArray[Any],
        uniforms: npt.NDArray[np.float64],
    ) -> npt.NDArray[np.int32]:
        height, width = self.shape
        H, W = heights.astype(np.float64), widths.astype(np.float64)
        if self.ratio is None:
            top, left = np.rint((H - height) / 2), np.rint((W - width) / 2)
            return np.asarray(self._fixed_size_boxes(top, left))
        h = np.floor(np.minimum(H, W * height / width) * self.ratio).clip(min=1)
        w = np.floor(np.minimum(W, H * width / height) * self.ratio).clip(min=1)
        return np.stack([(H - h) // 2, (W - w) // 2, h, w], axis=1).astype(np.int32)


@dataclass(frozen=True)
class RandomCrop(Crop):
    """Crop at a random place of the image, unscaled; all places are equally likely.

    Args:
        size: Output size in pixels: one number for a square, or (height, width).

    Raises:
        ValueError: A side is below 1.

    Examples:
        >>> loader = ImageLoader("target.beton", batch_size=8, crop=RandomCrop((24, 32)))
        >>> images, labels = next(iter(loader))
        >>> images.shape
        torch.Size([8, 3, 24, 32])
    """

    num_uniforms: ClassVar[int] = 2

    def boxes(
        self,
        heights: npt.NDArray[Any],
        widths: npt.NDArray[Any],
        uniforms: npt.NDArray[np.float64],
    ) -> npt.NDArray[np.int32]:
        height, width = self.shape
        top = np.floor(uniforms[:, 0] * (heights.astype(np.float64) - height + 1))
        left = np.floor(uniforms[:, 1] * (widths.astype(np.float64) - width + 1))
        return np.asarray(self._fixed_size_boxes(top, left))


@dataclass(frozen=True)
class RandomResizedCrop(Crop):
    """Crop of random place, area and aspect ratio, resized to ``size``.

    The window is drawn as by `torchvision.transforms.RandomResizedCrop`: ten tries, then the
    largest centre crop within the ratios. It is resized with Pillow's antialiased bilinear filter.
    A JPEG whose window is at least four times as large as the output is first decoded at a fraction
    of its size, see `xmix_data.decode.dct_fractions`.

    Args:
        size: Output size in pixels: one number for a square, or (height, width).
        scale: Range of the window's share of the image's area.
        ratio: Range of the window's width / height.

    Raises:
        ValueError: A range is empty or not positive, or a side is below 1.

    Examples:
        >>> crop = RandomResizedCrop(64, scale=(0.5, 1))
        >>> images, labels = next(iter(ImageLoader("target.beton", batch_size=8, crop=crop)))
        >>> images.shape  # images are stored with 40 x 40 pixels
        torch.Size([8, 3, 64, 64])
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    _tries: ClassVar[int] = 10
    num_uniforms: ClassVar[int] = 2 * _tries + 2

    @property
    def resizes(self) -> bool:
        return True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, limits in (("scale", self.scale), ("ratio", self.ratio)):
            if np.shape(limits) != (2,) or not 0 < limits[0] <= limits[1] < float("inf"):
                raise ValueError(f"{name} is {limits}; it must be (low, high) with 0 < low <= high")
        if self.scale[0] > 1:
            raise ValueError(f"scale is {self.scale}; a window is at most the whole image (1.0)")

    def boxes(
        self,
        heights: npt.NDArray[Any],
        widths: npt.NDArray[Any],
        uniforms: npt.NDArray[np.float64],
    ) -> npt.NDArray[np.int32]:
        H, W = heights.astype(np.float64)[:, None], widths.astype(np.float64)[:, None]
        rows = np.arange(len(H))
        area = H * W * _between(uniforms[:, 0 : 2 * self._tries : 2], *self.scale)
        log_ratio = np.log(self.ratio)
        aspect = np.exp(_between(uniforms[:, 1 : 2 * self._tries : 2], *log_ratio))
        w, h = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
        fits = (w > 0) & (w <= W) & (h > 0) & (h <= H)
        first = np.argmax(fits, axis=1)
        H, W, h, w = H[:, 0], W[:, 0], h[rows, first], w[rows, first]
        top = np.floor(uniforms[:, -2] * (H - h + 1))
        left = np.floor(uniforms[:, -1] * (W - w + 1))

        low, high = self.ratio
        image_ratio = W / H
        fallback_w = np.where(image_ratio > high, np.rint(H * high), W)
        fallback_h = np.where(image_ratio < low, np.rint(W / low), H)
        found = fits.any(axis=1)
        # Of an image of a pixel or two a narrow ratio leaves less than half a pixel.
        h = np.where(found, h, fallback_h).clip(min=1)
        w = np.where(found, w, fallback_w).clip(min=1)
        top = np.where(found, top, np.floor((H - h) / 2))
        left = np.where(found, left, np.floor((W - w) / 2))
        return np.stack([top, left, h, w], axis=1).astype(np.int32)


def _between(uniforms: Any, low: float, high: float) -> Any:
    return low + uniforms * (high - low)
