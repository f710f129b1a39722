"""``xmix convert``: images to a beton."""

from __future__ import annotations

import argparse
from pathlib import Path

from xmix_data.commands.answer import Answer
from xmix_data.commands.arguments import add_json, add_overwrite
from xmix_data.commands.inspect import describe, facts_of
from xmix_data.remote import name_of, path_or_url, require_writable, text_of, with_name

__all__ = ["EXAMPLES", "HELP", "add_arguments", "run"]

HELP = "write images as a beton"
EXAMPLES = (
    "xmix convert flowers/train target.beton --encoding raw",
    "xmix convert imagenet/train source.beton --pairing pairing.json",
    "xmix convert torchvision:Flowers102 flowers.beton --split train --root data",
    "xmix convert flowers/test test.beton --classes-from target.beton",
    "xmix convert s3://photos/train s3://betons/source.beton --shard 3/64",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    add_json(parser)
    parser.add_argument(
        "src",
        metavar="SRC",
        help="class folder or .beton (also the URL of either), torchvision:NAME, "
        "huggingface:FOLDER (of save_to_disk), cub:FOLDER (CUB-200-2011) or dogs:FOLDER (Stanford "
        "Dogs)",
    )
    parser.add_argument("out", metavar="OUT.beton", type=path_or_url, help="path or URL")
    parser.add_argument(
        "--encoding",
        choices=("jpg", "raw", "keep"),
        default="jpg",
        help="JPEG, raw pixels, or JPEG bytes kept where possible (default: jpg)",
    )
    parser.add_argument("--quality", type=int, default=90, help="of JPEG, 1 to 100 (default: 90)")
    parser.add_argument(
        "--image-size",
        type=_image_size,
        default=256,
        metavar="PIXELS",
        help="shorter edge, or 'none' to keep every image's own (default: 256)",
    )
    parser.add_argument(
        "--crop",
        choices=("square", "none"),
        default="square",
        help="keep the centre square, or all (default: square)",
    )
    parser.add_argument(
        "--classes", type=path_or_url, metavar="FILE", help="keep these, one a line"
    )
    parser.add_argument(
        "--classes-from",
        type=path_or_url,
        metavar="T.beton",
        help="take class names and ids from this beton, e.g. for a test set its training set's",
    )
    parser.add_argument("--per-class", type=int, metavar="K", help="keep K images of each class")
    parser.add_argument(
        "--pairing",
        type=path_or_url,
        metavar="PAIRING.json",
        help="keep the source classes that this pairing uses",
    )
    parser.add_argument(
        "--shard",
        type=_shard,
        metavar="I/N",
        help="write part I of N, I from 0, as OUT-0000I-of-0000N.beton",
    )
    parser.add_argument(
        "--on-error",
        choices=("raise", "skip"),
        default="raise",
        help="stop at an unreadable image, or list and skip it (default: raise)",
    )
    add_overwrite(parser)
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: all cores)")
    parser.add_argument("--split", help="part of a named data set (default: train)")
    parser.add_argument(
        "--root",
        type=Path,
        default=Path("data"),
        help="folder for the download of torchvision:NAME (default: data)",
    )


def _image_size(text: str) -> int | None:
    if text == "none":
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of pixels, nor 'none'") from None


def _shard(text: str) -> tuple[int, int]:
    try:
        index, count = (int(part) for part in text.split("/"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N, e.g. 0/8") from None
    return index, count


def run(options: argparse.Namespace) -> Answer:
    """Write the beton, and say what it holds."""
    from xmix_data.beton import open_images, shard_name, write_beton
    from xmix_data.images import named_source, select
    from xmix_data.pairing import Pairing

    path = options.out
    if options.shard:
        index, count = options.shard
        path = with_name(path, shard_name(name_of(path), index, count))
    if isinstance(path, Path) and path.is_file() and not options.overwrite:
        raise FileExistsError(f"{path}: exists; choose another name or add --overwrite")
    require_writable(path, overwrite=options.overwrite)  # before a source is downloaded or listed
    source = named_source(options.src, split=options.split, root=options.root)
    if source is None:
        if options.split is not None:
            raise ValueError(
                f"--split {options.split}: {options.src} has no splits; give the folder or file of "
                "the part that is meant"
            )
        source = open_images(options.src)
    if options.classes:
        lines = [line.strip() for line in text_of(options.classes).splitlines()]
        if not any(lines):
            raise ValueError(f"{options.classes}: names no class; write one a line")
        source = select(source, classes=[line for line in lines if line])
    if options.pairing:
        used = Pairing.load(options.pairing).classes_in(source.class_names, source.fingerprint)
        if options.classes:
            listed = set(source.class_names or [])
            used = [name for name in used if name in listed]
        source = select(source, classes=used)
    beton = write_beton(
        select(source, per_class=options.per_class),
        path,
        image_size=options.image_size,
        crop=options.crop,
        encoding=options.encoding,
        quality=options.quality,
        on_error=options.on_error,
        num_workers=options.workers,
        overwrite=options.overwrite,
        shard=options.shard,
        classes_from=options.classes_from,
    )
    return Answer(facts_of(beton), [f"wrote {describe(beton)}"])
