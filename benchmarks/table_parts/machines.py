"""The machines and versions of the README's tables, once.

Comes in: the results. Goes out: a list in Markdown.
"""

from __future__ import annotations

from table_parts import gpu, loading, training

SHOWN = {
    "steps on a GPU": gpu.gpu_steps,
    "loaders": loading.loaders,
    "steps on a CPU": training.step_cost,
    "accuracy": training.accuracy,
    "encodings": loading.conversion,
}


def machines() -> str:
    """The line under each table."""
    lines = (table().strip().rpartition("\n\n")[2] for table in SHOWN.values())
    return "".join(f"- *{what}*: {line}\n" for what, line in zip(SHOWN, lines, strict=True))
