"""`write_beton`: labelled images to a beton and its manifest, written whole or not at all.

Comes in: a source of labelled images. Goes out: ``FILE.beton``, which a stock FFCV ``Loader``
reads, and ``FILE.beton.json``, its manifest.
"""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xmix_data.beton.classes import class_list, ids_of_source
from xmix_data.beton.manifest import (
    are_texts,
    manifest_bytes,
    manifest_path,
    shard_entry,
    what_is_missing,
)
from xmix_data.beton.pages import PageWriter
from xmix_data.beton.pixels import silent_pillow
from xmix_data.beton.reader import Beton
from xmix_data.beton.source import open_images
from xmix_data.beton.workers import (
    Failure,
    encoded_samples,
    named_worker_death,
    require_main_guard,
)
from xmix_data.cache import keep, key_of
from xmix_data.errors import ImageError
from xmix_data.files import put_aside, sync
from xmix_data.images import ImageSource, numbered_names
from xmix_data.names import first_repeated, same_forms
from xmix_data.options import whole_number
from xmix_data.progress import Progress
from xmix_data.remote import name_of, path_or_url, require_writable, scratch, whole_file

__all__ = ["write_beton"]


_log = logging.getLogger("xmix_data")

_SHOWN = 8
"""Most classes without images that a log line names; the manifest has all."""

ENCODINGS = ("jpg", "raw", "keep")
CROPS = ("square", "none")


def write_beton(
    dataset: Any,
    path: str | os.PathLike[str],
    *,
    image_size: int | None = 256,
    crop: str = "square",
    encoding: str = "jpg",
    quality: int = 90,
    on_error: str = "raise",
    num_workers: int | None = None,
    progress: bool = True,
    overwrite: bool = False,
    shard: tuple[int, int] | None = None,
    classes_from: Any = None,
) -> Beton:
    """Write labelled images as a beton with its manifest.

    Samples keep their order, and the same input gives the same bytes. Both files appear under
    their names only when whole; until then the work is in ``PATH.partial``.

    Args:
        dataset: A class folder or a ``.beton``, or the URL of either; any map-style dataset of
            (image, label), or a ``datasets.Dataset`` of Hugging Face. A map-style dataset is read
            by this process, in order, so that it may hold open files.
        path: The file to write, usually ``NAME.beton``; or its URL, to which both files are
            uploaded when they are whole.
        image_size: Shorter edge in pixels after resizing; ``None`` keeps every image's own size.
        crop: ``"square"`` keeps the centre square, ``"none"`` all of the image.
        encoding: ``"jpg"``, ``"raw"`` (decoded pixels: larger, no decoding later), or ``"keep"``
            (JPEG bytes as they are wherever the image needs no change).
        quality: JPEG quality, 1 to 100.
        on_error: ``"raise"`` stops at an unreadable image; ``"skip"`` leaves it out and lists it
            in the manifest. What a dataset raises is about an image if it is an ``OSError`` or
            comes from Pillow; anything else is an error in any case.
        num_workers: Worker processes; 0 works in this thread alone. Default one a core, but for a
            map-style dataset none, and a thread a core for encoding: more processes would share
            its open files.
        progress: Show progress on stderr.
        overwrite: Replace an existing file.
        shard: ``(i, n)`` writes the i-th of n equal parts of the samples, counted from 0.
        classes_from: Take class names and ids from another data set, found by name: a beton (the
            one of the training set, for a test set), its path, a `Domain`, a loader, or a list of
            names. For a dataset without class names a list is the names of its ids.

    Returns:
        The new beton, opened.

    Raises:
        FileExistsError: ``path`` exists and ``overwrite`` is false.
        FileNotFoundError: The dataset or the folder of ``path`` does not exist.
        DatasetError: The dataset gives something else than an image and an integer, or raises an
            error that is not about an image, which is kept as the cause.
        ImageError: An image cannot be read, or a label lies outside the classes.
        OSError: The disk is full or not writable.
        TypeError: The dataset is a stream, a set of splits, or none at all.
        ValueError: An option is impossible, the dataset is empty, two classes have one name, or
            ``classes_from`` lacks a class that has images.
        XMixError: A worker process died, or memory or file descriptors ran out.

    Examples:
        >>> pixels = np.zeros((48, 64, 3), np.uint8)
        >>> images = [(pixels, 0), (pixels, 1), (pixels, 1)]  # any dataset of (image, label)
        >>> beton = write_beton(images, "new.beton", image_size=32, num_workers=0, progress=False)
        >>> beton
        Beton('new.beton': 3 images, 2 classes, jpg)
        >>> beton.heights.shape, beton.image_size
        ((3,), 32)
    """
    require_main_guard()
    path = path_or_url(path)
    manifest_file = path_or_url(manifest_path(path))
    _check_options(image_size, crop, encoding, quality, on_error, num_workers, shard)
    # Python's own numbers, for the manifest: NumPy's are written into no JSON.
    quality = whole_number("quality", quality, 1)
    image_size = None if image_size is None else whole_number("image_size", image_size, 1)
    num_workers = None if num_workers is None else whole_number("num_workers", num_workers, 0)
    if shard is not None:
        shard = whole_number("shard", shard[0], 0), whole_number("shard", shard[1], 1)
    for place in (path, manifest_file):
        require_writable(place, overwrite=overwrite)
    source = open_images(dataset)
    if _is_same_file(path, getattr(source, "beton", None)):
        raise ValueError(f"{path}: is the source itself; choose another name")
    if len(source) == 0:
        raise ValueError(f"{path}: the dataset has no samples; there is nothing to convert")
    names = None if source.class_names is None else same_forms(source.class_names)
    _check_names(names)
    ids = None
    if classes_from is not None:
        wanted = class_list(classes_from)
        ids, names = ids_of_source(wanted, source, f"the data set for {path}"), wanted.names
    index, count = shard or (0, 1)
    indices = range(len(source) * index // count, len(source) * (index + 1) // count)
    if not indices:
        raise ValueError(
            f"{path}: shard {index} of {count} is empty, there are only {len(source)} samples; "
            "make fewer shards"
        )
    if names is None and shard is not None:  # all shards must have the classes of the whole
        names = numbered_names(source.labels())
    options = {"encoding": encoding, "image_size": image_size, "crop": crop, "quality": quality}
    folder = path.parent if isinstance(path, Path) else scratch()
    with (
        named_worker_death() as workers,
        silent_pillow(),
        whole_file(manifest_file, belongs_to=path) as manifest_stream,
        ExitStack() as then,
        whole_file(path) as stream,
    ):
        writer = PageWriter(stream, folder, len(indices))
        skipped, enlarged, kept = [], 0, 0
        # Closed here: an error holds this frame, and would keep the workers with it.
        made = closing(encoded_samples(source, indices, options, num_workers, workers))
        bar = Progress(f"convert {name_of(path)}", len(indices), enabled=progress)
        with made as samples, bar:
            for position, item in enumerate(samples):
                if isinstance(item, Failure):
                    if on_error == "raise" or not item.skippable:
                        raise item.error from item.cause
                    skipped.append(
                        {"index": indices[position], "path": item.where, "reason": item.reason}
                    )
                else:
                    label, image = item
                    writer.append(
                        label if ids is None else _found(label, ids, source, indices[position]),
                        image,
                    )
                    enlarged += image.enlarged
                    kept += image.kept
                bar.advance()
        if not len(writer):
            raise ImageError(
                f"{path}: not one of {len(indices)} images could be read; correct the dataset, "
                f"beginning with {skipped[0]['path']}: {skipped[0]['reason']}"
            )
        if names is None:
            names = numbered_names(writer.labels)
        counts = np.bincount(writer.labels, minlength=len(names)).tolist()
        empty = [name for name, images in zip(names, counts, strict=True) if not images]
        content_hash = writer.finish()
        byte_length = stream.tell()
        facts = {
            "class_names": names,
            "class_counts": counts,
            "classes_without_images": empty,
            "num_samples": len(writer),
            "encoding": encoding,
            "image_size": image_size,
            "crop": crop,
            "quality": None if encoding == "raw" else quality,
            "byte_length": byte_length,
            "content_hash": content_hash,
            "source_fingerprint": source.fingerprint,
            "shard": None if shard is None else shard_entry(source, shard, options),
            "skipped": skipped,
            "left_out": getattr(source, "left_out", {}),
            "kept": kept if encoding == "keep" else None,
        }
        manifest_stream.write(manifest_bytes(facts))
        for written in (stream, manifest_stream):  # a disk that is full now costs nothing
            sync(written, folder / name_of(path))
        if isinstance(path, Path) and isinstance(manifest_file, Path):
            then.callback(put_aside(manifest_file, path))  # it must not meet the new beton
        else:  # whoever fetches one that does not fit, sees it by its hash
            keep(Path(stream.name), key_of(content_hash), name_of(path))
    for phrase in what_is_missing({**facts, "kept": None}):
        _log.warning("%s: %s, see %s", path, phrase, name_of(manifest_file))
    if enlarged:
        _log.warning(
            "%s: %d of %d images were smaller than %d pixels, and were enlarged; a smaller "
            "image_size (--image-size) stores as much in fewer bytes",
            path,
            enlarged,
            len(writer),
            image_size,
        )
    if empty and shard is None:  # a shard has few of the classes, the set may have all
        shown = ", ".join(empty[:_SHOWN]) + ", ..." * (len(empty) > _SHOWN)
        level = logging.WARNING if skipped else logging.INFO
        _log.log(
            level, "%s: %d of %d classes have no images: %s", path, len(empty), len(names), shown
        )
    return Beton(path)


def _is_same_file(path: Path | str, beton: Beton | None) -> bool:
    if beton is None:
        return False
    if isinstance(path, Path):
        return path.exists() and path.samefile(beton.path)
    return path == beton.origin


def _check_options(
    image_size: int | None,
    crop: str,
    encoding: str,
    quality: int,
    on_error: str,
    num_workers: int | None,
    shard: tuple[int, int] | None,
) -> None:
    for name, value, allowed in (
        ("crop", crop, CROPS),
        ("encoding", encoding, ENCODINGS),
        ("on_error", on_error, ("raise", "skip")),
    ):
        if value not in allowed:
            raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
    if image_size is not None and not 1 <= image_size <= 65_500:
        raise ValueError(f"image_size is {image_size}; it must lie in 1 .. 65500 or be None")
    if not 1 <= quality <= 100:
        raise ValueError(f"quality is {quality}; it must lie in 1 .. 100")
    if num_workers is not None and num_workers < 0:
        raise ValueError(f"num_workers is {num_workers}; it must be at least 0")
    if shard is not None and not 0 <= shard[0] < shard[1]:
        raise ValueError(f"shard {shard[0]} of {shard[1]} does not exist; counting starts at 0")


def _check_names(names: list[str] | None) -> None:
    if names is None:
        return
    for label, name in enumerate(names):
        if not are_texts([name]):
            raise ValueError(
                f"class {label} is named {name!r}, which is no text in Unicode; rename it"
            )
    twice = first_repeated(names)
    if twice is not None:
        raise ValueError(
            f"classes {twice[0]} and {twice[1]} are both named {names[twice[0]]!r}; a pairing "
            "names classes, so rename one (the dataset's `classes`)"
        )


def _found(label: int, ids: npt.NDArray[np.int64], source: ImageSource, index: int) -> int:
    """Return the id that a label has by ``classes_from``."""
    if label < len(ids) and ids[label] >= 0:
        return int(ids[label])
    raise ImageError(
        f"{source.where(index)}: label {label} is none of the classes of classes_from; correct the "
        "label, or name its class"
    )
