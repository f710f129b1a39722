"""What a command answers: plain values for programs, lines for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from xmix_data.remote import text_of

__all__ = ["Answer", "saved_pairs"]


class Answer(NamedTuple):
    """Answer of a command: what it has found out or made."""

    document: Any
    """Plain values for ``--json``: numbers, texts, lists and objects."""
    lines: Sequence[str] = ()
    """Lines for people."""
    problem: str = ""
    """Reason why the command has failed in spite of its answer; empty where it has not."""


def saved_pairs(path: Path | str) -> Any:
    """Read the pairs of a pairing's file, as they stand there."""
    return json.loads(text_of(path))["pairs"]
