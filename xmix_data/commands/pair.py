"""``xmix pair``: two betons and a backbone to a pairing."""

from __future__ import annotations

import argparse
import logging
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from xmix_data.commands.answer import Answer, saved_pairs
from xmix_data.commands.arguments import (
    add_betons,
    add_json,
    add_model,
    add_overwrite,
    check_output,
)
from xmix_data.outputs import local_path, refuse_inputs
from xmix_data.remote import cache_folder, name_of, path_or_url

if TYPE_CHECKING:
    from xmix_data.beton import Domain
    from xmix_data.pairing import Centroids

__all__ = ["EXAMPLES", "HELP", "add_arguments", "run"]

HELP = "pair each target class with source classes of its own"
EXAMPLES = (
    "xmix pair --target pets.beton --source imagenet.beton --model resnet50 -o pairing.json",
    "xmix pair --target pets.beton --source imagenet.beton --model resnet50 -o pairing.json"
    " --min-images 200000 --json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    add_json(parser)
    add_betons(parser, "--target", "T.beton")
    add_betons(parser, "--source", "S.beton")
    add_model(parser, required=False)
    parser.add_argument("-o", "--output", type=path_or_url, required=True, metavar="PAIRING.json")
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("--rounds", type=int, metavar="R", help="one-to-one rounds (default: 1)")
    amount.add_argument(
        "--min-images", type=int, metavar="K", help="as many rounds as select K source images"
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="with --min-images: stop within the round, at the pair that reaches K",
    )
    parser.add_argument(
        "--num-images",
        type=int,
        metavar="K",
        help="shrink or grow the selection to K source images",
    )
    parser.add_argument(
        "--method",
        default="greedy",
        choices=("greedy", "in-order", "optimal", "random", "random-images"),
        help="how classes are selected (default: greedy, the best remaining pair first)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of what is random (default: 0)")
    parser.add_argument(
        "--crop",
        type=int,
        metavar="PIXELS",
        help="centre crop that the model sees (default: what it was trained for)",
    )
    parser.add_argument("--device", default=None, help="default: cuda where there is one")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--workers", type=int, metavar="N", help="threads (default: all cores)")
    parser.add_argument(
        "--cache",
        metavar="DIR",
        default=argparse.SUPPRESS,  # found when it is needed: XMIX_CACHE may be wrong
        help="keep features here for the next pairing (default: XMIX_CACHE, ~/.cache/xmix_data)",
    )
    parser.add_argument(
        "--no-cache", dest="cache", action="store_const", const=None, default=argparse.SUPPRESS
    )
    add_overwrite(parser)


def run(options: argparse.Namespace) -> Answer | None:
    """Compute both domains' centroids, pair them, and write the pairing."""
    wanted = options.cache if "cache" in options else cache_folder()
    cache = None if wanted is None else local_path(wanted)
    refuse_inputs(options.output, [*options.target, *options.source, options.weights])
    check_output(options)
    from xmix_data.backbones import load_backbone
    from xmix_data.beton import open_domain
    from xmix_data.features import class_centroids
    from xmix_data.loader import usable_device
    from xmix_data.pairing import (
        check_options,
        needs_features,
        pair_classes,
        pairs_table,
    )
    from xmix_data.plan import CenterCrop
    from xmix_data.ranks import default_device, job

    chosen = {
        key: getattr(options, key)
        for key in ("method", "rounds", "min_images", "num_images", "strict", "seed")
    }
    check_options(**chosen)
    featureless = not needs_features(options.method, options.num_images, options.strict)
    if options.model is None and not featureless:
        raise ValueError(
            "--model is missing: classes are paired by its features; give e.g. --model resnet50"
        )
    domains = [open_domain(options.target), open_domain(options.source)]
    n, m = (len(domain.class_names) for domain in domains)
    needed = n * (options.rounds or 1)
    if m < needed and not options.strict:  # a strict stop may come before the round's end
        raise ValueError(
            f"{options.rounds or 1} round(s) for {n} target classes need {needed} source classes, "
            f"and there are {m}; add source classes"
        )
    if options.num_images is not None and options.num_images < n:
        raise ValueError(
            f"--num-images is {options.num_images}, and there are {n} target classes; give at "
            "least one image for each"
        )
    for path in set(options.target) & set(options.source):
        logging.getLogger("xmix_data").info(
            "%s is target and source at once: each of its classes will find itself", path
        )
    with job() as (rank, local_rank):
        device = usable_device(options.device or default_device(local_rank))
        backbone = None if featureless else load_backbone(options.model, options.weights)
        target, source = (
            _without_features(domain)
            if backbone is None
            else class_centroids(
                domain,
                backbone,
                device=device,
                batch_size=options.batch_size,
                num_workers=options.workers,
                cache=cache,
                progress=rank == 0,
                crop=None if options.crop is None else CenterCrop(options.crop),
            )
            for domain in domains
        )
    if rank:
        return None
    pairing = pair_classes(target, source, **chosen)
    pairing.save(options.output)
    similar = "" if featureless else f"; mean cosine {pairing.mean_cosine:.3f}"
    lines = [
        *pairs_table(pairing),
        f"wrote {options.output}: {len(pairing.pairs)} target classes, mixed with "
        f"{pairing.num_images:,} images of their source classes{similar}",
    ]
    similarity = None
    if pairing.similarity is not None:
        similarity = {
            key: getattr(pairing.similarity, key)
            for key in ("mean", "std", "by_method", "tells_classes_apart")
        }
        lines.append(
            "one round by each method, mean cosine: "
            + ", ".join(f"{name} {value:.4f}" for name, value in similarity["by_method"].items())
            + f"; two arbitrary classes {similarity['mean']:.4f}"
        )
        if not pairing.similarity.tells_classes_apart:
            lines.append(
                "these features hardly tell classes apart: was the backbone trained (--weights)?"
            )
    if featureless:
        lines.append(
            "drawn without features: there are no cosines to report; go on with xmix train"
        )
    else:
        lines.append(f"look at the pairs: {_report(options)}")
    document = {
        "path": str(options.output),
        "num_images": pairing.num_images,
        "mean_cosine": None if featureless else pairing.mean_cosine,
        "similarity": similarity,
        "pairs": saved_pairs(options.output),
    }
    return Answer(document, lines)


def _report(options: argparse.Namespace) -> str:
    """Write the command that shows the pairing."""
    words = ["xmix", "report", str(options.output)]
    for side in ("target", "source"):
        words += [text for path in getattr(options, side) for text in (f"--{side}", str(path))]
    page = options.output if isinstance(options.output, Path) else Path(name_of(options.output))
    return shlex.join([*words, "-o", str(page.with_suffix(".html"))])


def _without_features(domain: Domain) -> Centroids:
    """Return a domain's classes and their counts, which are all that random pairs need."""
    import numpy as np

    from xmix_data.pairing import Centroids

    classes = len(domain.class_names)
    return Centroids(
        np.zeros((classes, 0), np.float32),
        np.bincount(domain.labels, minlength=classes),
        domain.class_names,
        {"domains": domain.provenance},
        domain.domain_of_class(np.arange(classes)),
    )
