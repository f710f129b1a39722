"""Arguments that several commands take, declared once, and the check of an output file."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
from typing import Any, Literal, get_args, get_origin, get_type_hints

from xmix_data.remote import path_or_url, require_writable

__all__ = [
    "add_betons",
    "add_fields",
    "add_json",
    "add_model",
    "add_overwrite",
    "check_output",
]


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``, for commands whose answer is printed."""
    parser.add_argument(
        "--json",
        action="store_true",
        help="print the result as JSON, and nothing else, to standard output",
    )


def add_betons(
    parser: argparse.ArgumentParser, option: str, metavar: str, *, required: bool = True
) -> None:
    """Add an option that names a domain: one beton, or several."""
    parser.add_argument(
        option,
        type=path_or_url,
        required=required,
        metavar=metavar,
        action="append",
        help="path or URL; may be given several times",
    )


def add_model(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add ``--model`` and ``--weights``, which name a backbone."""
    parser.add_argument(
        "--model",
        required=required,
        help="a torchvision classifier, e.g. resnet50; timm:NAME; or your own, FILE.py:FUNCTION",
    )
    parser.add_argument(
        "--weights",
        default="default",
        metavar="default|none|NAME|FILE",
        help="torchvision's newest or timm's, downloaded; random; torchvision's of that name, e.g. "
        "IMAGENET1K_V1; or a state dict (default: default)",
    )


def add_fields(parser: argparse.ArgumentParser, options: type) -> None:
    """Add an option for each field of a dataclass; one that is not given is left out of the result.

    Name, type and choices are the field's; the help is its entry under ``Args:`` in the docstring
    of the class, with the field's default.
    """
    kinds, helps = get_type_hints(options), _arguments_of(options)
    for field in dataclasses.fields(options):
        kind = kinds[field.name]
        settings: dict[str, Any] = {"default": argparse.SUPPRESS, "help": helps.get(field.name)}
        if kind is bool:
            settings["action"] = argparse.BooleanOptionalAction
        elif get_origin(kind) is Literal:
            settings["choices"] = get_args(kind)
        else:
            settings["type"] = next(iter(get_args(kind)), kind)  # of "int | None" the int
        if settings["help"] and field.default is not None:
            shown = f"{field.default:.3g}" if kind is float else field.default
            settings["help"] += f" (default: {shown})"
        parser.add_argument(f"--{field.name.replace('_', '-')}", **settings)


def _arguments_of(documented: type) -> dict[str, str]:
    """Read each entry under ``Args:`` of a docstring, in lower case and without its full stop."""
    text = inspect.getdoc(documented) or ""
    _, _, entries = text.partition("Args:\n")
    entries, _, _ = entries.partition("\n\n")
    found = re.findall(r"^    (\w[\w, ]*): (.*(?:\n     .*)*)", entries, re.MULTILINE)
    helps: dict[str, str] = {}
    for names, words in found:
        words = " ".join(words.split()).rstrip(".").replace("%", "%%")
        helps |= {name.strip(): words[0].lower() + words[1:] for name in names.split(",")}
    return helps


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """Add ``--overwrite``, for commands that write a file."""
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")


def check_output(options: argparse.Namespace) -> None:
    """Refuse, before any work, to write ``--output`` where that cannot or may not be done.

    Raises:
        OSError: The path is a folder, a file that exists without ``--overwrite``, or in a folder
            that does not exist.
    """
    require_writable(options.output, overwrite=options.overwrite)
