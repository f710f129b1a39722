"""The ``xmix`` command: convert, pair, report, train, inspect, doctor, bench, demo.

An error is one line that says what, where and what to do, with exit status 2; ``--debug`` gives
the traceback. Work is imported when a command needs it, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import datetime
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

from xmix_data.errors import XMixError
from xmix_data.progress import printable

__all__ = ["main"]

_ERROR, _INTERRUPTED = 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Of the command line; default those of the process.

    Returns:
        The exit status: 0, 2 after an error, 130 after Ctrl-C.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    _log_to_stderr()
    try:
        options.run(options)
    except KeyboardInterrupt:
        print("xmix: interrupted; nothing was left half-written", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        return _ERROR
    except Exception as error:
        if options.debug:
            raise
        print(f"xmix: {_one_line(error)}", file=sys.stderr)
        return _ERROR
    return 0


def _log_to_stderr() -> None:
    """Show this library's messages, and no other library's."""
    log = logging.getLogger("xmix_data")
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(_Printable("xmix: %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)


class _Printable(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _say(text: str) -> None:
    print(printable(text))


def _one_line(error: BaseException) -> str:
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    expected = isinstance(error, (XMixError, ValueError, OSError))
    text = printable(" ".join((text or "").split()))
    return text if expected and text else f"{type(error).__name__}: {text} (--debug shows where)"


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser = argparse.ArgumentParser(
        prog="xmix",
        description="Cross-domain mixup (XMixup) at the cost of plain fine-tuning.",
        epilog="xmix COMMAND --help explains each command.",
    )
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Any, help: str, example: str) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name, parents=[common], help=help, description=help + ".", epilog="Example: " + example
        )
        made.set_defaults(run=run)
        return made

    convert = command(
        "convert", _convert, "write images as a beton",
        "xmix convert imagenet/train source.beton --pairing pairing.json",
    )  # fmt: skip
    convert.add_argument("src", metavar="SRC", help="class folder, .beton, torchvision:NAME, "
        "huggingface:FOLDER (of save_to_disk), cub:FOLDER (CUB-200-2011) or dogs:FOLDER (Stanford "
        "Dogs)")  # fmt: skip
    convert.add_argument("out", metavar="OUT.beton", type=Path)
    convert.add_argument("--encoding", choices=("jpg", "raw", "keep"), default="jpg",
        help="JPEG, raw pixels, or JPEG bytes kept where possible (default: jpg)")  # fmt: skip
    convert.add_argument("--quality", type=int, default=90, help="of JPEG, 1 to 100 (default: 90)")
    convert.add_argument("--image-size", type=_image_size, default=256, metavar="PIXELS",
        help="shorter edge, or 'none' to keep every image's own (default: 256)")  # fmt: skip
    convert.add_argument("--crop", choices=("square", "none"), default="square",
        help="keep the centre square, or all (default: square)")  # fmt: skip
    convert.add_argument("--classes", type=Path, metavar="FILE", help="keep these, one a line")
    convert.add_argument("--per-class", type=int, metavar="K", help="keep K images of each class")
    convert.add_argument("--pairing", type=Path, metavar="PAIRING.json",
        help="keep the source classes that this pairing uses")  # fmt: skip
    convert.add_argument("--shard", type=_shard, metavar="I/N",
        help="write part I of N, I from 0, as OUT-0000I-of-0000N.beton")  # fmt: skip
    convert.add_argument("--on-error", choices=("raise", "skip"), default="raise",
        help="stop at an unreadable image, or list and skip it (default: raise)")  # fmt: skip
    convert.add_argument("--overwrite", action="store_true", help="replace an existing file")
    convert.add_argument("--workers", type=int, metavar="N", help="processes (default: all cores)")
    convert.add_argument("--split", default="train", help="of a named data set (default: train)")
    convert.add_argument("--root", type=Path, default=Path("data"),
        help="folder for the download of torchvision:NAME (default: data)")  # fmt: skip

    pair = command(
        "pair", _pair, "pair each target class with source classes of its own",
        "xmix pair --target pets.beton --source imagenet.beton --model resnet50 -o pairing.json",
    )  # fmt: skip
    pair.add_argument("--target", type=Path, required=True, metavar="T.beton", action="append",
        help="may be given several times")  # fmt: skip
    pair.add_argument("--source", type=Path, required=True, metavar="S.beton", action="append",
        help="may be given several times")  # fmt: skip
    pair.add_argument("--model", required=True,
        help="a torchvision classifier, e.g. resnet50, or timm:NAME")  # fmt: skip
    pair.add_argument("--weights", default="default", metavar="default|none|FILE",
        help="downloaded, random, or a state dict (default: default)")  # fmt: skip
    pair.add_argument("-o", "--output", type=Path, required=True, metavar="PAIRING.json")
    amount = pair.add_mutually_exclusive_group()
    amount.add_argument("--rounds", type=int, metavar="R", help="one-to-one rounds (default: 1)")
    amount.add_argument("--min-images", type=int, metavar="K",
        help="as many rounds as select K source images")  # fmt: skip
    pair.add_argument("--strict", action="store_true",
        help="with --min-images: stop within the round, at the pair that reaches K")  # fmt: skip
    pair.add_argument("--num-images", type=int, metavar="K",
        help="shrink or grow the selection to K source images")  # fmt: skip
    pair.add_argument("--method", default="greedy",
        choices=("greedy", "in-order", "optimal", "random", "random-images"),
        help="how classes are selected (default: greedy, the best remaining pair first)"
    )  # fmt: skip
    pair.add_argument("--seed", type=int, default=0, help="of what is random (default: 0)")
    pair.add_argument("--crop", type=int, metavar="PIXELS",
        help="centre crop that the model sees (default: what it was trained for)")  # fmt: skip
    pair.add_argument("--device", default=None, help="default: cuda where there is one")
    pair.add_argument("--batch-size", type=int, default=256)
    pair.add_argument("--workers", type=int, metavar="N", help="threads (default: all cores)")
    pair.add_argument("--cache", type=Path, metavar="DIR", default=_cache_folder(),
        help="keep features here, for the next pairing (default: %(default)s)")  # fmt: skip
    pair.add_argument("--no-cache", dest="cache", action="store_const", const=None)
    pair.add_argument("--overwrite", action="store_true", help="replace an existing file")

    report = command(
        "report", _report, "show a pairing with its pictures as one HTML page",
        "xmix report pairing.json --target pets.beton --source imagenet.beton -o report.html",
    )  # fmt: skip
    report.add_argument("pairing", type=Path, metavar="PAIRING.json")
    report.add_argument("--target", type=Path, required=True, metavar="T.beton", action="append",
        help="may be given several times")  # fmt: skip
    report.add_argument("--source", type=Path, required=True, metavar="S.beton", action="append",
        help="may be given several times")  # fmt: skip
    report.add_argument("-o", "--output", type=Path, required=True, metavar="REPORT.html")
    for name in ("alpha", "beta"):
        report.add_argument(f"--{name}", type=float, default=1.0,
            help="of the λ that mixed samples are shown for (default: 1)")  # fmt: skip
    report.add_argument("--overwrite", action="store_true", help="replace an existing file")

    train = command(
        "train", _train, "fine-tune by one of the methods, with or without a source",
        "xmix train --method xmixup --target pets.beton --source imagenet.beton"
        " --pairing pairing.json --model resnet50 --test pets-test.beton --output run",
    )  # fmt: skip
    train.add_argument(
        "--method",
        required=True,
        choices=("finetune", "l2sp", "bss", "seqtrain", "cotrain", "mixup", "xmixup", "gradmix"),
    )
    train.add_argument("--set", metavar="NAME=VALUE", action="append", default=[],
        help="an option of the method, e.g. eta=0.01; may be given several times")  # fmt: skip
    for name, needed in (("target", True), ("source", False), ("test", False),
                         ("unlabelled", False)):  # fmt: skip
        train.add_argument(f"--{name}", type=Path, required=needed, action="append",
            metavar="BETON", help="may be given several times")  # fmt: skip
    train.add_argument("--pairing", type=Path, metavar="PAIRING.json")
    train.add_argument("--model", required=True,
        help="a torchvision classifier, e.g. resnet50, or timm:NAME")  # fmt: skip
    train.add_argument("--weights", default="default", metavar="default|none|FILE",
        help="downloaded, random, or a state dict (default: default)")  # fmt: skip
    train.add_argument(
        "--same-rows",
        action="store_true",
        help="the weights' classifier knows the source's classes, in the beton's order",
    )
    train.add_argument("--output", type=Path, required=True, metavar="DIR",
        help="metrics, checkpoint, result; a run that was interrupted goes on")  # fmt: skip
    for name, kind, default, help in (
        ("iterations", int, 9000, "steps"),
        ("batch-size", int, 48, "images of a step, in each process"),
        ("learning-rate", float, 0.01, "divided by 10 after two thirds of the steps"),
        ("weight-decay", float, 1e-4, "of the optimiser"),
        ("crop", int, 224, "side in pixels"),
        ("alpha", float, 1.0, "of λ ~ Beta(alpha, beta)"),
        ("beta", float, 1.0, "of λ ~ Beta(alpha, beta)"),
        ("seed", int, 0, "of everything random"),
        ("log-every", int, 50, "steps"),
        ("save-every", int, 500, "steps"),
        ("test-every", int, None, "steps (default: only at the end)"),
    ):
        text = help if default is None else f"{help} (default: {default})"
        train.add_argument(f"--{name}", type=kind, default=default, help=text)
    train.add_argument(
        "--on-error", choices=("raise", "replace"), default="raise",
        help="at a damaged image: stop, or take another of its class (default: raise)",
    )  # fmt: skip
    train.add_argument("--no-flip", dest="flip", action="store_false", help="mirror no images")
    train.add_argument("--amp", action="store_true", help="forward passes in bfloat16")
    train.add_argument("--compile", action="store_true", help="torch.compile the network")
    train.add_argument("--tensorboard", action="store_true", help="write for TensorBoard as well")
    train.add_argument("--device", default=None, help="default: cuda where there is one")
    train.add_argument("--workers", type=int, metavar="N", help="decoding threads")
    train.add_argument("--json", action="store_true", help="print the result as JSON")

    inspect = command(
        "inspect", _inspect, "say what a beton holds", "xmix inspect source.beton --verify"
    )
    inspect.add_argument("file", metavar="FILE.beton", type=Path)
    inspect.add_argument("--verify", action="store_true", help="check the hash and decode all")
    inspect.add_argument("--json", action="store_true", help="print JSON")

    doctor = command("doctor", _doctor, "say what is installed, found and missing", "xmix doctor")
    doctor.add_argument("--json", action="store_true", help="print JSON")

    bench = command(
        "bench", _bench, "measure the loader against this machine's own limits",
        "xmix bench --data flowers/train",
    )  # fmt: skip
    bench.add_argument("--data", type=Path, metavar="FOLDER",
        help="a class folder of photographs (default: pictures are made up)")  # fmt: skip
    bench.add_argument("--crop", type=int, default=224, metavar="PIXELS",
        help="random crop, of images stored with 256 (default: 224)")  # fmt: skip
    bench.add_argument("--rounds", type=int, default=5, help="of all rows in turn (default: 5)")
    bench.add_argument("--json", type=Path, metavar="FILE", help="write the figures")

    demo = command(
        "demo", _demo, "do the whole job in a minute, on data that packages ship", "xmix demo"
    )
    demo.add_argument("--output", type=Path, default=Path("demo-output"), metavar="DIR",
        help="where betons, pairing and pictures go (default: demo-output)")  # fmt: skip
    demo.add_argument("--seeds", type=int, default=3, help="fine-tuning runs (default: 3)")
    return parser


class _Version(argparse.Action):
    """Look the version up only when it is asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *rest: Any) -> None:
        import xmix_data

        print(f"xmix_data {xmix_data.__version__}")
        parser.exit()


def _cache_folder() -> Path:
    """Where the XDG base directory specification has programs keep what can be made again."""
    folder = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(folder) / "xmix_data"


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


def _convert(options: argparse.Namespace) -> None:
    from xmix_data.beton import open_images, write_beton
    from xmix_data.images import named_source, select
    from xmix_data.pairing import Pairing

    path = options.out
    if options.shard:
        index, count = options.shard
        path = path.with_name(f"{path.stem}-{index:05}-of-{count:05}{path.suffix}")
    if path.exists() and not options.overwrite:
        raise FileExistsError(f"{path}: exists; choose another name or add --overwrite")
    source = named_source(options.src, split=options.split, root=options.root)
    if source is None:
        source = open_images(options.src)
    if options.classes:
        lines = options.classes.read_text(encoding="utf-8").splitlines()
        source = select(source, classes=[line.strip() for line in lines if line.strip()])
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
    )
    _say(_describe(beton))


def _describe(beton: Any) -> str:
    megabytes = beton.byte_length / 1e6
    size = "sizes vary" if beton.image_size is None else f"shorter edge {beton.image_size}"
    return (
        f"{beton.path}: {beton.num_samples} images, {len(beton.class_names)} classes, "
        f"{beton.encoding}, {size}, {megabytes:.1f} MB"
    )


def _pair(options: argparse.Namespace) -> None:
    _check_output(options)
    from xmix_data.augment import CenterCrop
    from xmix_data.backbones import load_backbone
    from xmix_data.beton import open_domain
    from xmix_data.features import class_centroids
    from xmix_data.pairing import check_options, pair_classes, pairs_table

    chosen = {key: getattr(options, key) for key in ("method", "rounds", "min_images",
              "num_images", "strict", "seed")}  # fmt: skip
    check_options(**chosen)
    domains = [open_domain(options.target), open_domain(options.source)]
    n, m = (len(domain.class_names) for domain in domains)
    needed = n * (options.rounds or 1)
    if m < needed:
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
    with _job() as (rank, local_rank):
        device = options.device or _default_device(local_rank)
        backbone = load_backbone(options.model, options.weights)
        target, source = (
            class_centroids(
                domain.betons, backbone, device=device, batch_size=options.batch_size,
                num_workers=options.workers, cache=options.cache, progress=rank == 0,
                crop=None if options.crop is None else CenterCrop(options.crop),
            )
            for domain in domains
        )  # fmt: skip
    if rank:
        return
    pairing = pair_classes(target, source, **chosen)
    pairing.save(options.output)
    for line in pairs_table(pairing):
        _say(line)
    _say(f"{options.output}: {pairing!r}, mean cosine {pairing.mean_cosine:.3f}")
    if pairing.similarity is not None:
        means = pairing.similarity.by_method
        print(
            "one round by each method, mean cosine: "
            + ", ".join(f"{name} {value:.4f}" for name, value in means.items())
            + f"; two arbitrary classes {pairing.similarity.mean:.4f}"
        )
        if not pairing.similarity.tells_classes_apart:
            print("these features hardly tell classes apart: was the backbone trained (--weights)?")


def _check_output(options: argparse.Namespace) -> None:
    if options.output.is_dir():
        raise IsADirectoryError(f"{options.output}: is a folder; give the name of a file")
    if options.output.exists() and not options.overwrite:
        raise FileExistsError(f"{options.output}: exists; choose another name or add --overwrite")
    if not options.output.parent.is_dir():
        raise FileNotFoundError(f"{options.output.parent}: no such folder; create it first")


@contextlib.contextmanager
def _job() -> Iterator[tuple[int, int]]:
    """This process's rank in all, and on this machine; under torchrun the processes are joined."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield 0, 0
        return
    if not os.environ["WORLD_SIZE"].isdecimal() or "RANK" not in os.environ:
        raise ValueError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']!r}, RANK {os.environ.get('RANK')!r}: this is "
            "no job; start it with torchrun, or unset WORLD_SIZE"
        )
    from torch import distributed

    logging.getLogger("xmix_data").setLevel(
        logging.INFO if os.environ["RANK"] == "0" else logging.WARNING
    )
    # A process that ends is noticed at once; one that is slow may be waited for.
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if _has_gpu() else "gloo", timeout=datetime.timedelta(hours=12)
    )
    try:
        yield distributed.get_rank(), int(os.environ.get("LOCAL_RANK", "0"))
    finally:
        distributed.destroy_process_group()


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _default_device(local_rank: int) -> str:
    return f"cuda:{local_rank}" if _has_gpu() else "cpu"


def _report(options: argparse.Namespace) -> None:
    _check_output(options)
    for path in (options.pairing, *options.target, *options.source):
        if options.output.resolve() == path.resolve():
            raise ValueError(f"{path}: would be overwritten by its report; give another name")
    from xmix_data.pairing import Pairing
    from xmix_data.report import write_report

    path = write_report(
        Pairing.load(options.pairing), options.target, options.source, options.output,
        alpha=options.alpha, beta=options.beta, overwrite=options.overwrite,
    )  # fmt: skip
    _say(f"{path}: {path.stat().st_size / 1e6:.1f} MB; open it in a browser")


def _train(options: argparse.Namespace) -> None:
    from xmix_data.backbones import load_backbone
    from xmix_data.methods import METHODS
    from xmix_data.training import Recipe, fit

    method = _with_options(METHODS[options.method], options.set)
    recipe = Recipe(**{f.name: getattr(options, f.name) for f in dataclasses.fields(Recipe)
                       if hasattr(options, f.name)})  # fmt: skip
    with _job() as (rank, local_rank):
        backbone = load_backbone(options.model, options.weights)
        result = fit(
            method,
            backbone,
            options.target,
            source=options.source,
            pairing=options.pairing,
            test=options.test,
            unlabelled=options.unlabelled,
            source_rows=_same_rows(backbone, options.source) if options.same_rows else None,
            recipe=recipe,
            device=options.device or _default_device(local_rank),
            num_workers=options.workers,
            output=options.output,
            progress=True,
            tensorboard=options.tensorboard,
        )
    if rank:
        return
    if options.json:
        print((options.output / "result.json").read_text(), end="")
    elif result.accuracy is None:
        _say(f"{options.output}: trained; no test set was given")
    else:
        _say(f"{options.output}: top-1 accuracy {100 * result.accuracy:.2f} %")


def _same_rows(backbone: Any, source: Sequence[Path] | None) -> range:
    from xmix_data.beton import open_domain
    from xmix_data.methods import split_classifier

    if not source:
        raise ValueError("--same-rows is about the source's classes; give --source")
    classes = len(open_domain(source).class_names)
    _, classifier = split_classifier(backbone.network)
    outputs = 0 if classifier is None else classifier.out_features
    if outputs != classes:
        raise ValueError(
            f"--same-rows: the classifier of {backbone.name} has {outputs} outputs, and the source "
            f"{classes} classes; give the source that it was trained on, or leave --same-rows out"
        )
    return range(classes)


def _with_options(method: Any, texts: Sequence[str]) -> Any:
    """A method with options of the command line: numbers, words, true, false or none."""
    types, kinds = {f.name: f.type for f in dataclasses.fields(method)}, get_type_hints(method)
    words = {"true": True, "false": False, "none": None}
    chosen: dict[str, Any] = {}
    for text in texts:
        name, found, value = text.partition("=")
        if not found or name not in types:
            raise ValueError(
                f"--set {text}: give NAME=VALUE; {method.name} has the options "
                f"{', '.join(types) or 'none'}"
            )
        given: Any = value
        with contextlib.suppress(ValueError, SyntaxError):  # what is no literal is a word
            given = words[value.lower()] if value.lower() in words else ast.literal_eval(value)
        fitting = get_args(kinds[name]) or (kinds[name],)
        if float in fitting and type(given) is int:
            given = float(given)
        if type(given) not in fitting:
            raise ValueError(f"--set {text}: the value is to be of type {types[name]}")
        chosen[name] = given
    return method(**chosen)


def _inspect(options: argparse.Namespace) -> None:
    from xmix_data.beton import Beton

    beton = Beton(options.file)
    if options.verify:
        beton.verify(progress=True)
    if options.json:
        keys = ("num_samples", "class_names", "class_counts", "encoding", "image_size",
                "byte_length", "page_size", "fingerprint", "shard")  # fmt: skip
        facts: dict[str, Any] = {"path": str(beton.path)}
        facts |= {key: getattr(beton, key) for key in keys}
        facts["manifest"] = beton.manifest is not None
        facts["skipped"] = (beton.manifest or {}).get("skipped", [])
        facts["verified"] = options.verify
        print(json.dumps(facts, indent=1))
        return
    _say(_describe(beton))
    counts = beton.class_counts
    print(f"images a class: {min(counts)} to {max(counts)}")
    _say(f"fingerprint: {beton.fingerprint}")
    if beton.manifest is None:
        print("no manifest: written elsewhere, or its .json was left behind; classes are numbers")
    for skipped in (beton.manifest or {}).get("skipped", []):
        _say(f"skipped at conversion: {skipped['path']}: {skipped['reason']}")
    if options.verify:
        print("verified: every image decodes, and the content is what was written")


def _doctor(options: argparse.Namespace) -> None:
    from xmix_data.doctor import examine

    checks = examine()
    if options.json:
        print(json.dumps([check._asdict() for check in checks], indent=1))
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            mark = "ok     " if check.ok else "absent " if check.optional else "missing"
            print(f"{mark}  {check.name:<{width}}  {check.found}")
    if not all(check.ok or check.optional for check in checks):
        raise XMixError("something that xmix_data needs is missing; see the list")


def _bench(options: argparse.Namespace) -> None:
    if options.json is not None and not options.json.parent.is_dir():
        raise FileNotFoundError(f"{options.json.parent}: no such folder; create it first")
    from xmix_data.bench import report

    logging.getLogger("xmix_data").setLevel(logging.WARNING)  # its loaders are not the user's
    result, text = report(options.data, crop=options.crop, rounds=options.rounds)
    print(text)
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def _demo(options: argparse.Namespace) -> None:
    from xmix_data.demo import run

    run(options.output, seeds=options.seeds)
