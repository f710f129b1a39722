"""``xmix demo``: the whole job on data that packages ship."""

from __future__ import annotations

import argparse

from xmix_data.commands.answer import Answer, saved_pairs
from xmix_data.commands.arguments import add_json
from xmix_data.options import whole_number
from xmix_data.outputs import local_path

__all__ = ["EXAMPLES", "HELP", "add_arguments", "run"]

HELP = "do the whole job in a minute, on data that packages ship"
EXAMPLES = (
    "xmix demo",
    "xmix demo --output first-look --seeds 1",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    add_json(parser)
    parser.add_argument(
        "--output",
        default="demo-output",
        metavar="DIR",
        help="where betons, pairing and pictures go (default: demo-output)",
    )
    parser.add_argument("--seeds", type=int, default=3, help="fine-tuning runs (default: 3)")


def run(options: argparse.Namespace) -> Answer:
    """Do the whole job; the demo prints what happens."""
    folder = local_path(options.output)
    whole_number("--seeds", options.seeds, 1)  # torch is not to be waited for
    from xmix_data.demo import run
    from xmix_data.pairing import Pairing

    measured = run(folder, seeds=options.seeds)
    pairing = folder / "pairing.json"
    names = ("source.beton", "target.beton", "test.beton", "report.html", "mixed.png")
    return Answer(
        {
            "files": [str(folder / name) for name in names] + [str(pairing)],
            "mean_cosine": Pairing.load(pairing).mean_cosine,
            "pairs": saved_pairs(pairing),
            **measured,
        }
    )
