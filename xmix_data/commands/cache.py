"""``xmix cache``: betons that were fetched from URLs."""

from __future__ import annotations

import argparse
import time

from xmix_data.commands.answer import Answer
from xmix_data.commands.arguments import add_json

__all__ = ["EXAMPLES", "HELP", "add_arguments", "run"]

HELP = "list or clear the betons that were fetched from URLs"
EXAMPLES = ("xmix cache", "xmix cache --clear source.beton", "xmix cache --clear all")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    add_json(parser)
    parser.add_argument(
        "--clear",
        metavar="NAME|HASH|all",
        help="remove the betons of this name, or whose content hash begins so, or all of them",
    )


def run(options: argparse.Namespace) -> Answer:
    """List what is in the cache, or what is removed from it."""
    from xmix_data.cache import clear, entries
    from xmix_data.remote import cache_folder

    found = entries()
    wanted = options.clear
    if wanted is not None:
        chosen = [e for e in found if wanted in ("all", e.name) or e.folder.name.startswith(wanted)]
        if not chosen and wanted != "all":
            raise ValueError(
                f"--clear {wanted}: nothing in {cache_folder()} has this name or hash; see "
                "`xmix cache`"
            )
        found = [entry for entry in chosen if clear(entry)]
        busy = len(chosen) - len(found)
    document = [
        {
            "name": e.name,
            "content_hash": e.folder.name,
            "byte_length": e.size,
            "used": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(e.used)),
            "whole": e.whole,
        }
        for e in found
    ]
    lines = [
        f"{e.folder.name[:12]}  {e.size / 1e6:>10.1f} MB  "
        f"{time.strftime('%Y-%m-%d %H:%M', time.localtime(e.used))}  {e.name}"
        + ("" if e.whole else " (not fetched to its end)")
        for e in found
    ]
    total = sum(e.size for e in found) / 1e6
    verb = "holds" if wanted is None else "cleared of"
    lines.append(f"{cache_folder()}: {verb} {len(found)} betons, {total:.1f} MB")
    problem = ""
    if wanted is not None and busy:
        problem = f"{busy} of them are being fetched by another process, and were left"
    return Answer(document, lines, problem)
