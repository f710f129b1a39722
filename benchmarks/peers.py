"""The loaders that people use today, doing what `xmix_data.XMixLoader` does, on the CPU.

Comes in: a `Task`: two betons and a pairing. Goes out: `PEERS`: for each loader a function that
sets it up (slow) and returns another, which runs one epoch over the target and returns how many
samples arrived. A row may change settings of its process: give each a process of its own.

Every row is set up as its own documentation advises, and where that leaves a choice, in the way
that was faster. A batch is (images, target labels, source labels, λ): images (B, 3, H, W) float32,
cropped, flipped, mixed and normalised. Rows that deliver pixels are mixed by `_mix`, which was
faster than each library's own means.

Needs `pip install 'xmix_data[bench]'` and FFmpeg's shared libraries.
"""

from __future__ import annotations

import io
import itertools
import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from xmix_data import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Beton,
    Pairing,
    RandomCrop,
    RandomResizedCrop,
    XMixLoader,
)
from xmix_data.beton import open_domain

SCALE = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
MEAN, STD = 255 * torch.tensor(IMAGENET_MEAN), 255 * torch.tensor(IMAGENET_STD)

Batches = Callable[[], Iterator[tuple[Tensor, ...]]]
"""Begins an epoch."""


@dataclass(frozen=True)
class Task:
    """What to load, and how much of the machine to use."""

    target: str
    """Path of a beton of JPEGs, all square and of one size."""
    source: str
    pairing: str
    batch_size: int = 48
    size: int = 224
    resized: bool = False
    """A random window of random size, resized to ``size``; otherwise one of ``size`` itself."""
    threads: int = 2


class Pairs:
    """The betons of a task, and which of their images an epoch puts together."""

    def __init__(self, task: Task) -> None:
        self.target, self.source = Beton(task.target), Beton(task.source)
        self._batch_size = task.batch_size
        domains = open_domain(self.target), open_domain(self.source)
        draws = Pairing.load(task.pairing).draws(*domains)
        pools = [
            np.flatnonzero(np.isin(self.source.labels, [draw.label for draw in drawn]))
            for drawn in draws
        ]
        self._counts = np.array([len(pool) for pool in pools])
        self._starts = np.cumsum(self._counts) - self._counts
        self._images = np.concatenate(pools)
        self._generator = np.random.default_rng()

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self.target.num_samples // self._batch_size

    def epoch(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Target and source indices of an epoch, drawn anew."""
        count = len(self) * self._batch_size
        target = self._generator.permutation(self.target.num_samples)[:count]
        labels = self.target.labels[target]
        picks = (self._generator.random(count) * self._counts[labels]).astype(np.int64)
        return target, self._images[self._starts[labels] + picks]

    def batches(self) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """The same, a batch at a time."""
        target, source = self.epoch()
        for start in range(0, len(target), self._batch_size):
            rows = slice(start, start + self._batch_size)
            yield target[rows], source[rows]

    def labels(
        self, target: npt.NDArray[np.int64], source: npt.NDArray[np.int64]
    ) -> tuple[Tensor, Tensor]:
        """Labels of the images with these indices."""
        return (
            torch.from_numpy(self.target.labels[target]),
            torch.from_numpy(self.source.labels[source]),
        )


def _crop(task: Task) -> RandomCrop | RandomResizedCrop:
    return RandomResizedCrop(task.size, SCALE, RATIO) if task.resized else RandomCrop(task.size)


def _mix(target: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
    """Two batches (B, H, W, 3) uint8, mixed and normalised: (B, 3, H, W) float32; and λ (B,)."""
    count, height, width, channels = target.shape
    lam = torch.rand(count)
    images = torch.empty(target.shape)
    # An image at a time stays in the cache, and whole rows vectorise where 3 channels would not:
    # several times as fast as the same operations on the batch.
    mean, scale = MEAN.repeat(width), (1 / STD).repeat(width)
    rows = (count, height, width * channels)
    views = target.view(rows), source.view(rows), lam, images.view(rows)
    for t, s, weight, out in zip(*views, strict=True):
        torch.lerp(s.float(), t.float(), weight, out=out).sub_(mean).mul_(scale)
    return images.permute(0, 3, 1, 2), lam


def _ffcv_uint8(task: Task) -> Batches:
    """Stock FFCV on the target alone, which leaves normalising to the GPU."""
    from ffcv.loader import OrderOption
    from ffcv.transforms import ToTensor, ToTorchImage

    loader = _ffcv_loader(
        task,
        task.target,
        [ToTensor(), ToTorchImage()],
        num_workers=task.threads,
        order=OrderOption.RANDOM,
    )
    return lambda: iter(loader)


def _ffcv_one(task: Task) -> Batches:
    """Stock FFCV on the target alone, as plain fine-tuning uses it."""
    # https://docs.ffcv.io/parameter_tuning.html, "Small dataset", and the fast NormalizeImage of
    # https://docs.ffcv.io/api/transforms.html, which is compiled where it stands before ToTensor.
    from ffcv.loader import OrderOption
    from ffcv.transforms import NormalizeImage, ToTensor, ToTorchImage

    normalize = NormalizeImage(MEAN.numpy(), STD.numpy(), np.float32)
    loader = _ffcv_loader(
        task,
        task.target,
        [normalize, ToTensor(), ToTorchImage()],
        num_workers=task.threads,
        order=OrderOption.RANDOM,
    )
    return lambda: iter(loader)


def _ffcv_zipped(task: Task) -> Batches:
    """Two stock FFCV loaders side by side, the second in the order that pairs it with the first."""
    # Two loaders call numba at once, which its own thread layer does not survive:
    # https://numba.readthedocs.io/en/stable/user/threading-layer.html
    os.environ["NUMBA_THREADING_LAYER"] = "omp"
    from ffcv.loader import OrderOption
    from ffcv.transforms import ToTensor

    pairs = Pairs(task)
    # Half of the threads each was as fast as all of them each, or faster. Pixels that `_mix`
    # normalises were faster than a NormalizeImage in each loader.
    target, source = (
        _ffcv_loader(
            task,
            path,
            [ToTensor()],
            num_workers=max(1, task.threads // 2),
            order=OrderOption.SEQUENTIAL,
            indices=indices.astype(np.uint64),
        )
        for path, indices in zip((task.target, task.source), pairs.epoch(), strict=True)
    )

    def epoch() -> Iterator[tuple[Tensor, ...]]:
        # A new Loader would compile for many seconds; the traversal order reads this anew.
        for loader, indices in zip((target, source), pairs.epoch(), strict=True):
            loader.traversal_order.indices = indices.astype(np.uint64)
        iterators = iter(target), iter(source)
        torch.set_num_threads(1)  # iter() sets more, and they would take the decoders' cores
        for (t, target_labels), (s, source_labels) in zip(*iterators, strict=True):
            images, lam = _mix(t, s)
            # The loaders' memory is used again a few batches later.
            yield images, target_labels.clone(), source_labels.clone(), lam

    return epoch


def _ffcv_xmix(task: Task) -> Batches:
    """One stock FFCV loader with the operations of `xmix_data.ffcv`, which mix the source in."""
    # docs/ffcv.md; normalised as in `_ffcv_one`.
    from ffcv.loader import OrderOption
    from ffcv.transforms import NormalizeImage, ToTensor, ToTorchImage

    from xmix_data.ffcv import ImageXMixup, LabelXMixup

    files = task.target, task.source, task.pairing
    normalize = NormalizeImage(MEAN.numpy(), STD.numpy(), np.float32)
    loader = _ffcv_loader(
        task,
        task.target,
        [ImageXMixup(*files, crop=_crop(task)), normalize, ToTensor(), ToTorchImage()],
        [LabelXMixup(*files), ToTensor()],
        num_workers=task.threads,
        order=OrderOption.RANDOM,
    )
    return lambda: iter(loader)


def _ffcv_loader(
    task: Task, path: str, then: list[Any], labels: list[Any] | None = None, **options: Any
) -> Any:
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader
    from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToTensor

    size = (task.size, task.size)
    if task.resized:
        decoder = RandomResizedCropRGBImageDecoder(size, SCALE, RATIO)
    else:
        # FFCV has no random crop of fixed size. With the share of the area and the ratio fixed,
        # this decoder cuts one out, at no cost above that of its centre crop.
        share = (task.size / (Beton(path).image_size or task.size)) ** 2
        decoder = RandomResizedCropRGBImageDecoder(size, (share, share), (1.0, 1.0))
    pipelines = {
        "image": [decoder, RandomHorizontalFlip(), *then],
        "label": [IntDecoder(), *(labels or [ToTensor(), Squeeze(1)])],
    }
    return Loader(
        path,
        batch_size=task.batch_size,
        os_cache=True,
        drop_last=True,
        pipelines=pipelines,
        **options,
    )


class _JpegSource:
    """An epoch of encoded pairs and their labels, each time it is iterated."""

    def __init__(self, pairs: Pairs) -> None:
        self._pairs = pairs

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        pairs = self._pairs
        for target, source in pairs.batches():
            yield (
                [pairs.target.data(i) for i in target],
                [pairs.source.data(i) for i in source],
                pairs.target.labels[target],
                pairs.source.labels[source],
            )


def _dali(task: Task) -> Batches:
    """NVIDIA DALI without a GPU."""
    # https://docs.nvidia.com/deeplearning/dali/user-guide/docs/plugins/pytorch_plugin_api.html
    # The default executor and queue: deeper queues, the other executor, Pipeline.run and fast IDCT
    # changed nothing. Mixing and normalising in the pipeline was slower than `_mix` by a fourth.
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.plugin.pytorch import DALIGenericIterator

    torch.set_num_threads(1)  # more would take the cores of DALI's threads

    def image(jpeg: Any) -> Any:
        if task.resized:
            window = fn.decoders.image_random_crop(
                jpeg, random_area=list(SCALE), random_aspect_ratio=list(RATIO)
            )
            pixels = fn.resize(window, size=[task.size, task.size])
        else:
            pixels = fn.decoders.image_crop(
                jpeg,
                crop=(task.size, task.size),
                crop_pos_x=fn.random.uniform(range=(0.0, 1.0)),
                crop_pos_y=fn.random.uniform(range=(0.0, 1.0)),
            )
        return fn.flip(pixels, horizontal=fn.random.coin_flip())

    @pipeline_def(batch_size=task.batch_size, num_threads=task.threads, device_id=None)
    def pipeline() -> Any:
        target, source, target_labels, source_labels = fn.external_source(
            _JpegSource(Pairs(task)),
            num_outputs=4,
            dtype=[types.UINT8, types.UINT8, types.INT64, types.INT64],
            cycle="raise",
            no_copy=True,
        )
        return image(target), image(source), target_labels, source_labels

    names = ["target", "source", "target_labels", "source_labels"]
    iterator = DALIGenericIterator(pipeline(), names, prepare_first_batch=False)

    def epoch() -> Iterator[tuple[Tensor, ...]]:
        for (batch,) in iterator:  # resets it: auto_reset would begin the next epoch unasked
            images, lam = _mix(batch["target"], batch["source"])
            yield images, batch["target_labels"], batch["source_labels"], lam

    return epoch


def _xmix_dali(task: Task) -> Batches:
    """XMixLoader with DALI's decoders without a GPU; a row of ours in a process of its own."""
    loader = XMixLoader(
        task.target,
        task.source,
        task.pairing,
        batch_size=task.batch_size,
        crop=_crop(task),
        num_workers=task.threads,
        backend="dali",
    )
    return lambda: iter(loader)


Box = tuple[int, int, int, int]
"""Top, left, height and width of what to cut out of an image."""


def _spdl(task: Task) -> Batches:
    """SPDL with its own decoder, FFmpeg, which also crops, flips and resizes."""
    # https://facebookresearch.github.io/spdl/main/generated/spdl.io.load_image_batch.html with the
    # filters of https://facebookresearch.github.io/spdl/main/io/filtering.html
    import spdl.io

    def decode(jpeg: npt.NDArray[np.uint8], box: Box, flip: bool) -> Any:
        top, left, height, width = box
        # FFmpeg moves windows to even pixels, where the halved chroma planes have theirs.
        filters = [f"crop={width}:{height}:{left}:{top}"]
        if task.resized:
            filters.append(f"scale={task.size}:{task.size}:flags=bilinear")
        if flip:
            filters.append("hflip")
        filters.append("format=pix_fmts=rgb24")
        return spdl.io.decode_packets(spdl.io.demux_image(jpeg), filter_desc=",".join(filters))

    def collate(frames: list[Any]) -> Tensor:
        return spdl.io.to_torch(spdl.io.convert_frames(frames))

    return _spdl_pipeline(task, decode, collate)


def _spdl_torchcodec(task: Task) -> Batches:
    """SPDL's threads around TorchCodec's decoder, which lets go of the GIL as SPDL asks."""
    # https://facebookresearch.github.io/spdl/main/faq.html, "How to work around GIL?"
    from torchcodec.decoders import decode_jpeg
    from torchvision.transforms.v2 import functional

    def decode(jpeg: npt.NDArray[np.uint8], box: Box, flip: bool) -> Tensor:
        top, left, height, width = box
        pixels: Any = decode_jpeg(jpeg.tobytes())
        pixels = pixels[:, top : top + height, left : left + width]
        if task.resized:
            pixels = functional.resize(pixels, [task.size, task.size], antialias=True)
        image: Tensor = (pixels.flip(2) if flip else pixels).permute(1, 2, 0)
        return image

    return _spdl_pipeline(task, decode, torch.stack)


def _spdl_pipeline(
    task: Task,
    decode: Callable[[npt.NDArray[np.uint8], Box, bool], Any],
    collate: Callable[[list[Any]], Tensor],
) -> Batches:
    from spdl.pipeline import PipelineBuilder

    torch.set_num_threads(1)  # the pipeline's threads are the parallelism
    pairs, crop = Pairs(task), _crop(task)

    def images(beton: Beton, indices: npt.NDArray[np.int64]) -> Tensor:
        generator = np.random.default_rng()
        uniforms = generator.random((len(indices), crop.num_uniforms))
        boxes = crop.boxes(beton.heights[indices], beton.widths[indices], uniforms).tolist()
        flips = (generator.random(len(indices)) < 0.5).tolist()
        return collate(
            [
                decode(beton.data(i), box, flip)
                for i, box, flip in zip(indices, boxes, flips, strict=True)
            ]
        )

    def load(
        indices: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]],
    ) -> tuple[Tensor, ...]:
        target, source = indices
        mixed, lam = _mix(images(pairs.target, target), images(pairs.source, source))
        return mixed, *pairs.labels(target, source), lam

    def epoch() -> Iterator[tuple[Tensor, ...]]:
        # A batch a call, as SPDL's own examples; a pair a call was slower by a third. Without
        # max_failures SPDL leaves out what fails.
        pipeline = (
            PipelineBuilder[Any, Any]()
            .add_source(pairs.batches())
            .pipe(load, concurrency=task.threads)
            .add_sink(3)
            .build(num_threads=task.threads, max_failures=0)
        )
        with pipeline.auto_stop():
            yield from pipeline

    return epoch


def _turboloader_one(task: Task) -> Batches:
    """TurboLoader on the target alone."""
    loader, labels = _turboloader(task, task.target)
    epochs = itertools.count()

    def epoch() -> Iterator[tuple[Tensor, ...]]:
        loader.set_epoch(next(epochs))
        for images, found in loader:
            yield torch.as_tensor(images), labels[found["indices"]]

    return epoch


def _turboloader_zipped(task: Task) -> Batches:
    """Two TurboLoaders side by side; it has no means to say which image goes with which.

    A source image is therefore any one, not one of the paired class. That costs it nothing.
    """
    torch.set_num_threads(1)  # more would take the cores of its threads
    (target, labels), (source, source_labels) = (
        _turboloader(task, path, seed) for seed, path in enumerate((task.target, task.source))
    )
    epochs = itertools.count()

    def epoch() -> Iterator[tuple[Tensor, ...]]:
        number = next(epochs)
        for loader in (target, source):
            loader.set_epoch(number)
        for (t, t_found), (s, s_found) in zip(target, source, strict=True):
            t, s = torch.as_tensor(t), torch.as_tensor(s)
            lam = torch.rand(len(t))
            images = torch.empty(t.shape)
            # As in `_mix`: an image at a time stays in the cache.
            for one, other, weight, out in zip(t, s, lam, images, strict=True):
                torch.lerp(other, one, weight, out=out)
            yield images, labels[t_found["indices"]], source_labels[s_found["indices"]], lam

    return epoch


def _turboloader(task: Task, path: str, seed: int = 0) -> tuple[Any, Tensor]:
    """A loader of normalised images (B, 3, H, W) and what tells their labels by index."""
    # https://pypi.org/project/turboloader/2.39.0/, "Quick Start", and its DataLoader's docstring.
    # RandomResizedCrop: one call a batch in C++, a window decoded, buffers used again. That has no
    # random crop of fixed size, which is a transform: behind a resize, here to the size that is
    # stored, and in worker threads.
    import turboloader

    beton = Beton(path)
    if task.resized:
        options = {
            "image_size": task.size,
            "transform": turboloader.ImageNetNormalize(),
            "train_aug": True,
            "pin_memory": True,
        }
    else:
        crop = turboloader.RandomCrop(task.size, task.size)
        flip = turboloader.RandomHorizontalFlip(0.5)
        options = {
            "image_size": beton.image_size,
            "transform": crop | flip | turboloader.ImageNetNormalize(),
            "num_workers": task.threads,
        }
    archive = f"{path}-{os.getpid()}-{seed}.tar"
    with tarfile.open(archive, "w") as tar:
        for index in range(beton.num_samples):
            data = beton.data(index).tobytes()
            entry = tarfile.TarInfo(f"{index:08}.jpg")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    loader = turboloader.DataLoader(
        archive,
        batch_size=task.batch_size,
        output_format="pytorch",
        shuffle=True,
        seed=seed,
        drop_last=True,
        **options,
    )
    return loader, torch.tensor(beton.labels)


class PairDataset(torch.utils.data.Dataset[tuple[Any, Any, int, int]]):
    """Map-style: (target index, source index) to both images, as `image` makes them, and labels."""

    def __init__(self, pairs: Pairs, image: Callable[[npt.NDArray[np.uint8]], Tensor]) -> None:
        self._pairs, self._image = pairs, image

    def __getitem__(self, indices: tuple[int, int]) -> tuple[Tensor, Tensor, int, int]:
        target, source = indices
        pairs = self._pairs
        return (
            self._image(pairs.target.data(target)),
            self._image(pairs.source.data(source)),
            int(pairs.target.labels[target]),
            int(pairs.source.labels[source]),
        )


class MixedDataset(PairDataset):
    """The same with the pair mixed: images, λ and labels."""

    def __getitem__(self, indices: tuple[int, int]) -> tuple[Any, Any, int, int]:
        target, source, *labels = super().__getitem__(indices)
        lam = torch.rand(())
        return torch.lerp(source, target, lam), lam, labels[0], labels[1]


class PairSampler:
    """Batches of index pairs, drawn anew each epoch."""

    def __init__(self, pairs: Pairs) -> None:
        self._pairs = pairs

    def __len__(self) -> int:
        return len(self._pairs)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for target, source in self._pairs.batches():
            yield list(zip(target.tolist(), source.tolist(), strict=True))


def _torch_torchcodec(task: Task) -> Batches:
    """torch's DataLoader with the decoder that torchvision names now, tuned as far as we know."""
    # https://docs.pytorch.org/vision/0.29/io.html: TorchCodec decodes. uint8 goes to the main
    # process, a fourth of the bytes, and `_mix` does there what is left.
    from torchcodec.decoders import decode_jpeg

    cut = torch_cut(task)

    def image(jpeg: npt.NDArray[np.uint8]) -> Tensor:
        pixels: Any = decode_jpeg(jpeg.tobytes())
        return cast(Tensor, cut(pixels)).permute(1, 2, 0)

    pairs = Pairs(task)
    loader = torch_loader(task, pairs, PairDataset(pairs, image))

    def epoch() -> Iterator[tuple[Tensor, ...]]:
        for target, source, target_labels, source_labels in loader:
            images, lam = _mix(target, source)
            yield images, target_labels, source_labels, lam

    return epoch


def _torch_pillow(task: Task) -> Batches:
    """torch's DataLoader with Pillow and the transforms of torchvision's documentation."""
    # https://docs.pytorch.org/vision/stable/transforms.html, the classification example: uint8
    # until the last two steps. Mixing in the workers was faster than in the main process.
    pairs = Pairs(task)
    loader = torch_loader(task, pairs, MixedDataset(pairs, pillow_decoder(torch_cut(task))))

    def epoch() -> Iterator[tuple[Tensor, ...]]:
        for images, lam, target_labels, source_labels in loader:
            yield images, target_labels, source_labels, lam

    return epoch


def pillow_decoder(cut: Any) -> Callable[[npt.NDArray[np.uint8]], Tensor]:
    """From a JPEG to a normalised image, cropped and flipped by ``cut``."""
    from torchvision.transforms import v2

    to_image, to_floats = (
        v2.ToImage(),
        v2.Compose(
            [
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        ),
    )

    def image(jpeg: npt.NDArray[np.uint8]) -> Tensor:
        picture = Image.open(io.BytesIO(jpeg.tobytes())).convert("RGB")
        return cast(Tensor, to_floats(cut(to_image(picture))).as_subclass(Tensor))

    return image


def torch_cut(task: Task) -> Any:
    """Random crop and flip."""
    from torchvision.transforms import v2

    crop = (
        v2.RandomResizedCrop(task.size, SCALE, RATIO) if task.resized else v2.RandomCrop(task.size)
    )
    return v2.Compose([crop, v2.RandomHorizontalFlip()])


def torch_loader(
    task: Task, pairs: Pairs, dataset: PairDataset, *, pin_memory: bool = False
) -> Any:
    """The DataLoader, in processes that share the mapped betons."""
    torch.set_num_threads(1)  # more would take the workers' cores
    return torch.utils.data.DataLoader(
        dataset,
        batch_sampler=PairSampler(pairs),
        num_workers=task.threads,
        persistent_workers=True,
        prefetch_factor=2,  # the default; 4 was no faster
        pin_memory=pin_memory,
        multiprocessing_context="fork",  # the workers share the mapped betons
    )


BATCHES: dict[str, Callable[[Task], Batches]] = {
    "XMixLoader, DALI": _xmix_dali,
    "FFCV, one domain, uint8": _ffcv_uint8,
    "FFCV, one domain": _ffcv_one,
    "FFCV, two zipped": _ffcv_zipped,
    "FFCV, xmix_data.ffcv": _ffcv_xmix,
    "TurboLoader, one domain": _turboloader_one,
    "TurboLoader, two zipped": _turboloader_zipped,
    "DALI, CPU": _dali,
    "SPDL": _spdl,
    "SPDL, TorchCodec": _spdl_torchcodec,
    "torch DataLoader, TorchCodec": _torch_torchcodec,
    "torch DataLoader, Pillow": _torch_pillow,
}
"""For each loader what begins an epoch of batches; those of one domain are (images, labels), and
with our operations in FFCV's Loader (images, (B, 3) target label, source label, λ)."""


def _counted(set_up: Callable[[Task], Batches]) -> Callable[[Task], Callable[[], int]]:
    def start(task: Task) -> Callable[[], int]:
        batches = set_up(task)

        def epoch() -> int:
            count = 0
            for batch in batches():
                count += len(batch[0])
                for tensor in batch:
                    tensor[(0,) * tensor.ndim].item()  # as a consumer would, wait for the data
            return count

        return epoch

    return start


PEERS: dict[str, Callable[[Task], Callable[[], int]]] = {
    name: _counted(set_up) for name, set_up in BATCHES.items()
}
