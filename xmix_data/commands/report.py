"""``xmix report``: a pairing as one HTML page."""

from __future__ import annotations

import argparse

from xmix_data.commands.answer import Answer
from xmix_data.commands.arguments import add_betons, add_json, add_overwrite, check_output
from xmix_data.outputs import local_path
from xmix_data.remote import path_or_url

__all__ = ["EXAMPLES", "HELP", "add_arguments", "run"]

HELP = "show a pairing with its pictures as one HTML page"
EXAMPLES = (
    "xmix report pairing.json --target pets.beton --source imagenet.beton -o report.html",
    "xmix report pairing.json --target pets.beton --source imagenet.beton -o report.html"
    " --alpha 2 --beta 1 --overwrite",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    add_json(parser)
    parser.add_argument("pairing", type=path_or_url, metavar="PAIRING.json")
    add_betons(parser, "--target", "T.beton")
    add_betons(parser, "--source", "S.beton")
    parser.add_argument("-o", "--output", required=True, metavar="REPORT.html")
    for name in ("alpha", "beta"):
        parser.add_argument(
            f"--{name}",
            type=float,
            default=1.0,
            help="of the λ that mixed samples are shown for (default: 1)",
        )
    add_overwrite(parser)


def run(options: argparse.Namespace) -> Answer:
    """Write the page that shows a pairing."""
    options.output = local_path(options.output)
    check_output(options)
    from xmix_data.report import write_report

    path = write_report(
        options.pairing,
        options.target,
        options.source,
        options.output,
        alpha=options.alpha,
        beta=options.beta,
        overwrite=options.overwrite,
    )
    size = path.stat().st_size
    return Answer(
        {"path": str(path), "byte_length": size},
        [
            f"wrote {path} ({size / 1e6:.1f} MB): open it in a browser, and see whether the pairs "
            "make sense to you; if they do, go on with `xmix train`"
        ],
    )
