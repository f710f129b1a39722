"""What all tables are made of: rows in Markdown, medians with their ranges."""

from __future__ import annotations

import statistics


def table(head: list[str], rows: list[list[str]], line: str) -> str:
    """Markdown, with the line that says where the figures come from."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + f"\n\n{line}\n"


def spread(values: list[float] | None) -> str:
    """Median and range, or nothing."""
    if values is None:
        return ""
    return f"{statistics.median(values):,.0f} ({min(values):,.0f}-{max(values):,.0f})"


def shares(values: list[float]) -> str:
    """Median and range of ratios."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"
