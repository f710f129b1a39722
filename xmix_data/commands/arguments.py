"""Arguments that several commands take, declared once, and the check of an output file."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["add_betons", "add_json", "add_model", "add_overwrite", "check_output"]


def add_json(parser: argparse.ArgumentParser) -> None:
    """``--json``, for commands whose answer is printed."""
    parser.add_argument(
        "--json",
        action="store_true",
        help="print the result as JSON, and nothing else, to standard output",
    )


def add_betons(
    parser: argparse.ArgumentParser, option: str, metavar: str, *, required: bool = True
) -> None:
    """An option that names a domain: one beton, or several."""
    parser.add_argument(
        option,
        type=Path,
        required=required,
        metavar=metavar,
        action="append",
        help="may be given several times",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """``--model`` and ``--weights`` of a backbone."""
    parser.add_argument(
        "--model", required=True, help="a torchvision classifier, e.g. resnet50, or timm:NAME"
    )
    parser.add_argument(
        "--weights",
        default="default",
        metavar="default|none|FILE",
        help="downloaded, random, or a state dict (default: default)",
    )


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """``--overwrite``, for commands that write a file."""
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")


def check_output(options: argparse.Namespace) -> None:
    """Refuse, before any work, to write ``--output`` where that cannot or may not be done.

    Raises:
        OSError: It is a folder, exists without ``--overwrite``, or its folder does not exist.
    """
    if options.output.is_dir():
        raise IsADirectoryError(f"{options.output}: is a folder; give the name of a file")
    if options.output.exists() and not options.overwrite:
        raise FileExistsError(f"{options.output}: exists; choose another name or add --overwrite")
    if not options.output.parent.is_dir():
        raise FileNotFoundError(f"{options.output.parent}: no such folder; create it first")
