"""Our lines for a file of somebody else's, without a line of theirs.

Comes in: the text of an edit list, and a checkout. Goes out: the checkout, edited; how many lines
that changed. An edit list has no context and no removed lines, as a diff would have:

    @ train.py 12-14
    three lines of train.py, 12 to 14, are replaced by these two,
    which follow the line that says where
    @ train.py 20-19
    this line is inserted before line 20

Line numbers are those of the file as it is published. What binds a list to it are the SHA-256 of
the files, which `check` compares.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

_PLACE = re.compile(r"@ (\S+) (\d+)-(\d+)")


@dataclass(frozen=True)
class Edit:
    """Lines ``first`` .. ``last`` of a file, counted from 1, give way to ``new``."""

    file: str
    first: int
    last: int
    new: tuple[str, ...]


def parse(text: str) -> list[Edit]:
    """Read an edit list.

    Raises:
        ValueError: It begins with something else than a place, or a place is impossible.
    """
    edits: list[Edit] = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("@ "):
            place = _PLACE.fullmatch(line)
            if place is None or not 1 <= int(place[2]) <= int(place[3]) + 1:
                raise ValueError(
                    f"line {number} of an edit list is {line!r}; write '@ FILE FIRST-LAST', "
                    "with LAST = FIRST - 1 to insert before FIRST"
                )
            edits.append(Edit(place[1], int(place[2]), int(place[3]), ()))
        elif edits:
            last = edits[-1]
            edits[-1] = Edit(last.file, last.first, last.last, (*last.new, line))
        else:
            raise ValueError(f"an edit list begins with {line!r}; begin with '@ FILE FIRST-LAST'")
    return edits


def check(checkout: Path, hashes: Mapping[str, str], published: str) -> None:
    """Compare the files that are edited with those that the edits are for.

    Raises:
        ValueError: A file is missing or another one.
    """
    for name, wanted in hashes.items():
        path = checkout / name
        found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "missing"
        if found != wanted:
            raise ValueError(
                f"{path} is not the file that the edits are for (SHA-256 {found}, expected "
                f"{wanted}); check out {published}"
            )


def apply(checkout: Path, edits: Iterable[Edit]) -> None:
    """Edit the files of a checkout in place.

    Raises:
        ValueError: Edits overlap, or go beyond a file's end.
    """
    by_file: dict[str, list[Edit]] = {}
    for edit in edits:
        by_file.setdefault(edit.file, []).append(edit)
    for name, own in by_file.items():
        path = checkout / name
        lines = path.read_bytes().splitlines(keepends=True)
        end = b"\r\n" if lines and lines[0].endswith(b"\r\n") else b"\n"
        own.sort(key=lambda edit: (edit.first, edit.last))
        for before, after in pairwise(own):
            if after.first <= before.last:
                raise ValueError(f"two edits of {name} change line {after.first}; make them one")
        for edit in reversed(own):  # from the end, so that line numbers stay true
            if edit.last > len(lines):
                raise ValueError(f"{name} has {len(lines)} lines, and an edit is of {edit.last}")
            lines[edit.first - 1 : edit.last] = [line.encode() + end for line in edit.new]
        path.write_bytes(b"".join(lines))


def changed_lines(before: Path, after: Path, files: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Count added and removed lines of each file, as ``git diff --numstat`` does."""
    counts = {}
    for name in sorted(set(files)):
        said = subprocess.run(
            ["git", "diff", "--no-index", "--numstat", "--", before / name, after / name],
            capture_output=True,
            text=True,
        ).stdout
        added, removed, _ = (said or "0 0 -").split(maxsplit=2)
        counts[name] = int(added), int(removed)
    return counts
