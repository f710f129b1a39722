"""``xmix bench``: the loader against this machine's own limits."""

from __future__ import annotations

import argparse
import json
import logging

from xmix_data.commands.answer import Answer
from xmix_data.files import whole_file
from xmix_data.options import whole_number
from xmix_data.outputs import local_path, refuse_inputs
from xmix_data.remote import path_or_url, require_writable

__all__ = ["EXAMPLES", "HELP", "add_arguments", "run"]

HELP = "measure the loader against this machine's own limits"
EXAMPLES = (
    "xmix bench --data flowers/train",
    "xmix bench --rounds 3 --json bench.json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument(
        "--data",
        type=path_or_url,
        metavar="FOLDER",
        help="a class folder of photographs (default: pictures are made up)",
    )
    parser.add_argument(
        "--crop",
        type=int,
        default=224,
        metavar="PIXELS",
        help="random crop, of images stored with 256 (default: 224)",
    )
    parser.add_argument("--rounds", type=int, default=5, help="of all rows in turn (default: 5)")
    parser.add_argument(
        "--json",
        type=_file_or_stdout,
        nargs="?",
        const=True,
        metavar="FILE",
        help="print the figures as JSON, and nothing else, to standard output; with FILE, print "
        "words and write the figures there",
    )


def _file_or_stdout(text: str) -> str | bool:
    return True if text == "-" else text


def run(options: argparse.Namespace) -> Answer:
    """Measure the loader, and report as words and figures."""
    file = local_path(options.json) if isinstance(options.json, str) else None
    if file is not None:
        refuse_inputs(file, [options.data])
        require_writable(file, overwrite=True)
    whole_number("--rounds", options.rounds, 1)  # torch is not to be waited for
    from xmix_data.bench import report

    logging.getLogger("xmix_data").setLevel(logging.WARNING)  # its loaders are not the user's
    result, text = report(options.data, crop=options.crop, rounds=options.rounds)
    if file is not None:
        with whole_file(file) as stream:
            stream.write(json.dumps(result, indent=1).encode() + b"\n")
    return Answer(result, text.splitlines())
