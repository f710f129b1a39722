"""The ``xmix`` command: convert, pair, report, train, inspect, doctor, bench, demo.

An error is one line that says what, where and what to do, with exit status 2; ``--debug`` gives
the traceback. A command returns its result as words and as plain values, and `main` prints one of
the two. Work is imported when a command needs it, so that ``--help`` answers at once.
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
import select
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, get_args, get_type_hints

from xmix_data.errors import XMixError
from xmix_data.progress import printable

__all__ = ["main"]

_ERROR, _INTERRUPTED, _UNREAD = 2, 130, 141
"""Exit statuses; the last two are a shell's for what SIGINT and SIGPIPE ended."""


class _Answer(NamedTuple):
    """What a command has found out or made."""

    document: Any
    """For ``--json``: numbers, texts, lists and objects."""
    lines: Sequence[str] = ()
    """For people."""
    problem: str = ""
    """Why the command has failed in spite of its answer."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Of the command line; default those of the process.

    Returns:
        The exit status: 0, 2 after an error, 130 after Ctrl-C, 141 where nobody reads the output.
    """
    # Without colours to begin with, and numba's would write an escape sequence at the very end.
    os.environ.setdefault("NUMBA_DISABLE_ERROR_MESSAGE_HIGHLIGHTING", "1")
    try:
        options = _parser().parse_args(arguments)
    except SystemExit as stop:  # of --help, --version and what cannot be parsed
        stop.code = _flushed(_ERROR if stop.code else 0)
        raise
    _log_to_stderr()
    return _flushed(_status(options))


def _flushed(status: int) -> int:
    """The exit status, when all output has been written."""
    try:
        if sys.stdout is not None:  # it is None where the shell closed it
            sys.stdout.flush()
    except OSError as error:
        status = status or _failed(OSError(error.errno, error.strerror, "standard output"))
        # What could not be written would be tried, and complained about, once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return status


def _status(options: argparse.Namespace) -> int:
    # `xmix bench --json FILE` writes a file, and prints words.
    as_json = options.json is True
    try:
        # Libraries print as they like; with --json nothing but the document goes to stdout.
        aside: contextlib.AbstractContextManager[object] = (
            contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()
        )
        with aside:
            answer: _Answer | None = options.run(options)
        if answer is not None:
            _print(answer, as_json=as_json)
    except KeyboardInterrupt:
        print("xmix: interrupted; nothing was left half-written", file=sys.stderr)
        return _INTERRUPTED
    except Exception as error:
        if options.debug:
            raise
        return _failed(error)
    return 0


def _print(answer: _Answer, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(answer.document, indent=1, allow_nan=False))
    else:
        for line in answer.lines:
            print(printable(line))
    if answer.problem:
        raise XMixError(answer.problem)


def _failed(error: Exception) -> int:
    if isinstance(error, BrokenPipeError) and _nobody_reads():
        return _UNREAD
    print(f"xmix: {_one_line(error)}", file=sys.stderr)
    return _ERROR


def _nobody_reads() -> bool:
    """Whether the reader of stdout has gone, as `head` does; other pipes break by mistake only."""
    poll = select.poll()
    poll.register(1, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


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


def _one_line(error: BaseException) -> str:
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    expected = isinstance(error, (XMixError, ValueError, OSError))
    text = printable(" ".join((text or "").split()))
    return text if expected and text else f"{type(error).__name__}: {text} (--debug shows where)"


_EPILOG = """\
From two folders of photographs to a trained network:
  xmix convert flowers/train target.beton
  xmix convert imagenet/train source.beton
  xmix pair --target target.beton --source source.beton --model resnet50 -o pairing.json
  xmix train --method xmixup --target target.beton --source source.beton \\
             --pairing pairing.json --model resnet50 --output run

xmix COMMAND --help explains each command.
Exit status: 0 done, 2 an error, 130 Ctrl-C, 141 nobody reads the output."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, as of every other error; a usage of twenty lines would hide it."""
        text = printable(f"{self.prog}: {message}; see `{self.prog} --help`")
        self.exit(_ERROR, text + "\n")


def _parser() -> argparse.ArgumentParser:
    common = _Parser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser = _Parser(
        prog="xmix",
        description="Cross-domain mixup (XMixup) at the cost of plain fine-tuning.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(
        name: str, run: Any, help: str, *examples: str, json: bool = True
    ) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name,
            parents=[common],
            help=help,
            description=help + ".",
            epilog="\n".join(f"Example: {example}" for example in examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if json:
            made.add_argument(
                "--json",
                action="store_true",
                help="print the result as JSON, and nothing else, to standard output",
            )
        made.set_defaults(run=run)
        return made

    convert = command(
        "convert",
        _convert,
        "write images as a beton",
        "xmix convert flowers/train target.beton --encoding raw",
        "xmix convert imagenet/train source.beton --pairing pairing.json",
        "xmix convert torchvision:Flowers102 flowers.beton --split train --root data",
    )
    convert.add_argument(
        "src",
        metavar="SRC",
        help="class folder, .beton, torchvision:NAME, "
        "huggingface:FOLDER (of save_to_disk), cub:FOLDER (CUB-200-2011) or dogs:FOLDER (Stanford "
        "Dogs)",
    )
    convert.add_argument("out", metavar="OUT.beton", type=Path)
    convert.add_argument(
        "--encoding",
        choices=("jpg", "raw", "keep"),
        default="jpg",
        help="JPEG, raw pixels, or JPEG bytes kept where possible (default: jpg)",
    )
    convert.add_argument("--quality", type=int, default=90, help="of JPEG, 1 to 100 (default: 90)")
    convert.add_argument(
        "--image-size",
        type=_image_size,
        default=256,
        metavar="PIXELS",
        help="shorter edge, or 'none' to keep every image's own (default: 256)",
    )
    convert.add_argument(
        "--crop",
        choices=("square", "none"),
        default="square",
        help="keep the centre square, or all (default: square)",
    )
    convert.add_argument("--classes", type=Path, metavar="FILE", help="keep these, one a line")
    convert.add_argument("--per-class", type=int, metavar="K", help="keep K images of each class")
    convert.add_argument(
        "--pairing",
        type=Path,
        metavar="PAIRING.json",
        help="keep the source classes that this pairing uses",
    )
    convert.add_argument(
        "--shard",
        type=_shard,
        metavar="I/N",
        help="write part I of N, I from 0, as OUT-0000I-of-0000N.beton",
    )
    convert.add_argument(
        "--on-error",
        choices=("raise", "skip"),
        default="raise",
        help="stop at an unreadable image, or list and skip it (default: raise)",
    )
    convert.add_argument("--overwrite", action="store_true", help="replace an existing file")
    convert.add_argument("--workers", type=int, metavar="N", help="processes (default: all cores)")
    convert.add_argument("--split", help="of a named data set (default: train)")
    convert.add_argument(
        "--root",
        type=Path,
        default=Path("data"),
        help="folder for the download of torchvision:NAME (default: data)",
    )

    pair = command(
        "pair",
        _pair,
        "pair each target class with source classes of its own",
        "xmix pair --target pets.beton --source imagenet.beton --model resnet50 -o pairing.json",
        "xmix pair --target pets.beton --source imagenet.beton --model resnet50 -o pairing.json"
        " --min-images 200000 --json",
    )
    pair.add_argument(
        "--target",
        type=Path,
        required=True,
        metavar="T.beton",
        action="append",
        help="may be given several times",
    )
    pair.add_argument(
        "--source",
        type=Path,
        required=True,
        metavar="S.beton",
        action="append",
        help="may be given several times",
    )
    pair.add_argument(
        "--model", required=True, help="a torchvision classifier, e.g. resnet50, or timm:NAME"
    )
    pair.add_argument(
        "--weights",
        default="default",
        metavar="default|none|FILE",
        help="downloaded, random, or a state dict (default: default)",
    )
    pair.add_argument("-o", "--output", type=Path, required=True, metavar="PAIRING.json")
    amount = pair.add_mutually_exclusive_group()
    amount.add_argument("--rounds", type=int, metavar="R", help="one-to-one rounds (default: 1)")
    amount.add_argument(
        "--min-images", type=int, metavar="K", help="as many rounds as select K source images"
    )
    pair.add_argument(
        "--strict",
        action="store_true",
        help="with --min-images: stop within the round, at the pair that reaches K",
    )
    pair.add_argument(
        "--num-images",
        type=int,
        metavar="K",
        help="shrink or grow the selection to K source images",
    )
    pair.add_argument(
        "--method",
        default="greedy",
        choices=("greedy", "in-order", "optimal", "random", "random-images"),
        help="how classes are selected (default: greedy, the best remaining pair first)",
    )
    pair.add_argument("--seed", type=int, default=0, help="of what is random (default: 0)")
    pair.add_argument(
        "--crop",
        type=int,
        metavar="PIXELS",
        help="centre crop that the model sees (default: what it was trained for)",
    )
    pair.add_argument("--device", default=None, help="default: cuda where there is one")
    pair.add_argument("--batch-size", type=int, default=256)
    pair.add_argument("--workers", type=int, metavar="N", help="threads (default: all cores)")
    pair.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        default=_cache_folder(),
        help="keep features here, for the next pairing (default: %(default)s)",
    )
    pair.add_argument("--no-cache", dest="cache", action="store_const", const=None)
    pair.add_argument("--overwrite", action="store_true", help="replace an existing file")

    report = command(
        "report",
        _report,
        "show a pairing with its pictures as one HTML page",
        "xmix report pairing.json --target pets.beton --source imagenet.beton -o report.html",
        "xmix report pairing.json --target pets.beton --source imagenet.beton -o report.html"
        " --alpha 2 --beta 1 --overwrite",
    )
    report.add_argument("pairing", type=Path, metavar="PAIRING.json")
    report.add_argument(
        "--target",
        type=Path,
        required=True,
        metavar="T.beton",
        action="append",
        help="may be given several times",
    )
    report.add_argument(
        "--source",
        type=Path,
        required=True,
        metavar="S.beton",
        action="append",
        help="may be given several times",
    )
    report.add_argument("-o", "--output", type=Path, required=True, metavar="REPORT.html")
    for name in ("alpha", "beta"):
        report.add_argument(
            f"--{name}",
            type=float,
            default=1.0,
            help="of the λ that mixed samples are shown for (default: 1)",
        )
    report.add_argument("--overwrite", action="store_true", help="replace an existing file")

    train = command(
        "train",
        _train,
        "fine-tune by one of the methods, with or without a source",
        "xmix train --method xmixup --target pets.beton --source imagenet.beton"
        " --pairing pairing.json --model resnet50 --test pets-test.beton --output run",
        "xmix train --method finetune --target pets.beton --model resnet50"
        " --test pets-test.beton --output plain --iterations 3000 --amp --json",
    )
    train.add_argument(
        "--method",
        required=True,
        choices=("finetune", "l2sp", "bss", "seqtrain", "cotrain", "mixup", "xmixup", "gradmix"),
    )
    train.add_argument(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="an option of the method, e.g. eta=0.01; may be given several times",
    )
    for name, needed in (
        ("target", True),
        ("source", False),
        ("test", False),
        ("unlabelled", False),
    ):
        train.add_argument(
            f"--{name}",
            type=Path,
            required=needed,
            action="append",
            metavar="BETON",
            help="may be given several times",
        )
    train.add_argument("--pairing", type=Path, metavar="PAIRING.json")
    train.add_argument(
        "--model", required=True, help="a torchvision classifier, e.g. resnet50, or timm:NAME"
    )
    train.add_argument(
        "--weights",
        default="default",
        metavar="default|none|FILE",
        help="downloaded, random, or a state dict (default: default)",
    )
    train.add_argument(
        "--same-rows",
        action="store_true",
        help="the weights' classifier knows the source's classes, in the beton's order",
    )
    train.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="metrics, checkpoint, result; a run that was interrupted goes on",
    )
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
        "--on-error",
        choices=("raise", "replace"),
        default="raise",
        help="at a damaged image: stop, or take another of its class (default: raise)",
    )
    train.add_argument("--no-flip", dest="flip", action="store_false", help="mirror no images")
    train.add_argument("--amp", action="store_true", help="forward passes in bfloat16")
    train.add_argument("--compile", action="store_true", help="torch.compile the network")
    train.add_argument("--tensorboard", action="store_true", help="write for TensorBoard as well")
    train.add_argument("--device", default=None, help="default: cuda where there is one")
    train.add_argument("--workers", type=int, metavar="N", help="decoding threads")

    inspect = command(
        "inspect",
        _inspect,
        "say what a beton holds",
        "xmix inspect source.beton --verify",
        "xmix inspect source.beton --json",
    )
    inspect.add_argument("file", metavar="FILE.beton", type=Path)
    inspect.add_argument("--verify", action="store_true", help="check the hash and decode all")

    doctor = command(
        "doctor",
        _doctor,
        "say what is installed, found and missing, and what feeds the GPU",
        "xmix doctor",
        "xmix doctor source.beton --json",
    )
    doctor.add_argument(
        "beton",
        metavar="FILE.beton",
        type=Path,
        nargs="?",
        help="measure the storage where it lies, and the decoding of its JPEGs",
    )

    bench = command(
        "bench",
        _bench,
        "measure the loader against this machine's own limits",
        "xmix bench --data flowers/train",
        "xmix bench --rounds 3 --json bench.json",
        json=False,
    )
    bench.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="a class folder of photographs (default: pictures are made up)",
    )
    bench.add_argument(
        "--crop",
        type=int,
        default=224,
        metavar="PIXELS",
        help="random crop, of images stored with 256 (default: 224)",
    )
    bench.add_argument("--rounds", type=int, default=5, help="of all rows in turn (default: 5)")
    bench.add_argument(
        "--json",
        type=_file_or_stdout,
        nargs="?",
        const=True,
        metavar="FILE",
        help="print the figures as JSON, and nothing else, to standard output; with FILE, print "
        "words and write the figures there",
    )

    demo = command(
        "demo",
        _demo,
        "do the whole job in a minute, on data that packages ship",
        "xmix demo",
        "xmix demo --output first-look --seeds 1",
    )
    demo.add_argument(
        "--output",
        type=Path,
        default=Path("demo-output"),
        metavar="DIR",
        help="where betons, pairing and pictures go (default: demo-output)",
    )
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


def _file_or_stdout(text: str) -> Path | bool:
    return True if text == "-" else Path(text)


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


def _convert(options: argparse.Namespace) -> _Answer:
    from xmix_data.beton import open_images, write_beton
    from xmix_data.images import named_source, select
    from xmix_data.pairing import Pairing

    path = options.out
    if options.shard:
        index, count = options.shard
        path = path.with_name(f"{path.stem}-{index:05}-of-{count:05}{path.suffix}")
    if path.exists() and not options.overwrite:
        raise FileExistsError(f"{path}: exists; choose another name or add --overwrite")
    source = named_source(options.src, split=options.split or "train", root=options.root)
    if source is None:
        if options.split:
            raise ValueError(
                f"--split {options.split}: {options.src} has no splits; give the folder or file of "
                "the part that is meant"
            )
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
    return _Answer(_facts(beton), [_describe(beton)])


def _facts(beton: Any, *, verified: bool = False) -> dict[str, Any]:
    keys = (
        "num_samples",
        "class_names",
        "class_counts",
        "encoding",
        "image_size",
        "byte_length",
        "page_size",
        "fingerprint",
        "shard",
    )
    facts: dict[str, Any] = {"path": str(beton.path)}
    facts |= {key: getattr(beton, key) for key in keys}
    facts["manifest"] = beton.manifest is not None
    facts["skipped"] = (beton.manifest or {}).get("skipped", [])
    facts["verified"] = verified
    return facts


def _describe(beton: Any) -> str:
    megabytes = beton.byte_length / 1e6
    size = "sizes vary" if beton.image_size is None else f"shorter edge {beton.image_size}"
    return (
        f"{beton.path}: {beton.num_samples} images, {len(beton.class_names)} classes, "
        f"{beton.encoding}, {size}, {megabytes:.1f} MB"
    )


def _pair(options: argparse.Namespace) -> _Answer | None:
    _check_output(options)
    from xmix_data.augment import CenterCrop
    from xmix_data.backbones import load_backbone
    from xmix_data.beton import open_domain
    from xmix_data.features import class_centroids
    from xmix_data.pairing import check_options, pair_classes, pairs_table

    chosen = {
        key: getattr(options, key)
        for key in ("method", "rounds", "min_images", "num_images", "strict", "seed")
    }
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
                domain.betons,
                backbone,
                device=device,
                batch_size=options.batch_size,
                num_workers=options.workers,
                cache=options.cache,
                progress=rank == 0,
                crop=None if options.crop is None else CenterCrop(options.crop),
            )
            for domain in domains
        )
    if rank:
        return None
    pairing = pair_classes(target, source, **chosen)
    pairing.save(options.output)
    lines = [
        *pairs_table(pairing),
        f"{options.output}: {pairing!r}, mean cosine {pairing.mean_cosine:.3f}",
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
    document = {
        "path": str(options.output),
        "num_images": pairing.num_images,
        "mean_cosine": pairing.mean_cosine,
        "similarity": similarity,
        "pairs": _pairs(options.output),
    }
    return _Answer(document, lines)


def _pairs(path: Path) -> Any:
    """As the pairing's file has them."""
    return json.loads(path.read_text("utf-8", "surrogateescape"))["pairs"]


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


def _report(options: argparse.Namespace) -> _Answer:
    _check_output(options)
    for path in (options.pairing, *options.target, *options.source):
        if options.output.resolve() == path.resolve():
            raise ValueError(f"{path}: would be overwritten by its report; give another name")
    from xmix_data.pairing import Pairing
    from xmix_data.report import write_report

    path = write_report(
        Pairing.load(options.pairing),
        options.target,
        options.source,
        options.output,
        alpha=options.alpha,
        beta=options.beta,
        overwrite=options.overwrite,
    )
    size = path.stat().st_size
    return _Answer(
        {"path": str(path), "byte_length": size},
        [f"{path}: {size / 1e6:.1f} MB; open it in a browser"],
    )


def _train(options: argparse.Namespace) -> _Answer | None:
    from xmix_data.backbones import load_backbone
    from xmix_data.methods import METHODS
    from xmix_data.training import Recipe, fit

    method = _with_options(METHODS[options.method], options.set)
    recipe = Recipe(
        **{
            f.name: getattr(options, f.name)
            for f in dataclasses.fields(Recipe)
            if hasattr(options, f.name)
        }
    )
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
        return None
    came_out = (
        "trained; no test set was given"
        if result.accuracy is None
        else f"top-1 accuracy {100 * result.accuracy:.2f} %"
    )
    document = json.loads((options.output / "result.json").read_text())
    return _Answer(document, [f"{options.output}: {came_out}"])


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


def _inspect(options: argparse.Namespace) -> _Answer:
    from xmix_data.beton import Beton

    beton = Beton(options.file)
    if options.verify:
        beton.verify(progress=True)
    facts = _facts(beton, verified=options.verify)
    counts = beton.class_counts
    lines = [
        _describe(beton),
        f"images a class: {min(counts)} to {max(counts)}",
        f"fingerprint: {beton.fingerprint}",
    ]
    if beton.manifest is None:
        lines.append(
            "no manifest: written elsewhere, or its .json was left behind; classes are numbers"
        )
    lines += [f"skipped at conversion: {s['path']}: {s['reason']}" for s in facts["skipped"]]
    if options.verify:
        lines.append("verified: every image decodes, and the content is what was written")
    return _Answer(facts, lines)


def _doctor(options: argparse.Namespace) -> _Answer:
    from xmix_data.doctor import examine, feeding

    beton = None
    if options.beton is not None:
        from xmix_data.beton import Beton

        beton = Beton(options.beton)
    checks = examine()
    complete = all(check.ok or check.optional for check in checks)
    if complete:
        checks += feeding(_pictures(), beton)
    width = max(len(check.name) for check in checks)
    lines = [f"{check.mark:<7}  {check.name:<{width}}  {check.found}" for check in checks]
    problem = "" if complete else "something that xmix_data needs is missing; see the list"
    return _Answer([check.document() for check in checks], lines, problem)


def _pictures() -> list[bytes]:
    """JPEGs as large as those of photographs of 256 pixels."""
    from xmix_data.bench import Photographs
    from xmix_data.encoding import encode_image

    made = Photographs(classes=1, per_class=8)
    return [
        encode_image(made[i][0], encoding="jpg", image_size=None, crop="none", quality=90).data
        for i in range(len(made))
    ]


def _bench(options: argparse.Namespace) -> _Answer:
    file = options.json if isinstance(options.json, Path) else None
    if file is not None and not file.parent.is_dir():
        raise FileNotFoundError(f"{file.parent}: no such folder; create it first")
    from xmix_data.bench import report

    logging.getLogger("xmix_data").setLevel(logging.WARNING)  # its loaders are not the user's
    result, text = report(options.data, crop=options.crop, rounds=options.rounds)
    if file is not None:
        file.write_text(json.dumps(result, indent=1) + "\n")
    return _Answer(result, text.splitlines())


def _demo(options: argparse.Namespace) -> _Answer:
    from xmix_data.demo import run
    from xmix_data.pairing import Pairing

    measured = run(options.output, seeds=options.seeds)
    pairing = options.output / "pairing.json"
    names = ("source.beton", "target.beton", "test.beton", "report.html", "mixed.png")
    return _Answer(
        {
            "files": [str(options.output / name) for name in names] + [str(pairing)],
            "mean_cosine": Pairing.load(pairing).mean_cosine,
            "pairs": _pairs(pairing),
            **measured,
        }
    )
