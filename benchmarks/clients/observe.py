"""Run a script of somebody else's, and write down its steps and the samples that it gets.

    python observe.py SCRIPT [ARGUMENTS]

What to do stands in the environment, so that the script sees its own arguments alone:

    XMIX_OBSERVED      the file that lines of JSON are added to
    XMIX_SAMPLES       "loader": the batches of every XMixLoader; "ffcv": what LabelXMixup draws
    XMIX_STOP_AFTER    the number of optimizer steps after which the process kills itself

A step is one of torch's optimizers: of the first that steps, where there are several.
"""

from __future__ import annotations

import hashlib
import json
import os
import runpy
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook


def main() -> None:
    """Watch, then run the script as if it were started alone."""
    written = open(os.environ["XMIX_OBSERVED"], "a", buffering=1)  # noqa: SIM115

    def write(**record: Any) -> None:
        written.write(json.dumps(record) + "\n")

    stop, steps, first = int(os.environ.get("XMIX_STOP_AFTER", 0)), 0, 0

    def stepped(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        nonlocal steps, first
        first = first or id(optimizer)
        if id(optimizer) != first:
            return
        steps += 1
        write(step=steps, seconds=time.perf_counter())
        if steps == stop:
            os.kill(os.getpid(), signal.SIGKILL)

    register_optimizer_step_post_hook(stepped)
    {"loader": watch_loaders, "ffcv": watch_ffcv, "": lambda _: None}[
        os.environ.get("XMIX_SAMPLES", "")
    ](write)
    script = sys.argv[1]
    sys.argv = sys.argv[1:]
    sys.path[0] = str(Path(script).resolve().parent)
    runpy.run_path(script, run_name="__main__")


def watch_loaders(write: Any) -> None:
    """Write down what is drawn for each batch that the script receives, and its pixels' hash."""
    from xmix_data import XMixLoader

    begin = XMixLoader.__iter__

    class Watched:
        def __init__(self, loader: XMixLoader) -> None:
            self.loader, self.batches = loader, begin(loader)

        def __iter__(self) -> Watched:
            return self

        def __next__(self) -> Any:
            batch = next(self.batches)
            rows = self.loader.last_rows
            assert rows is not None and rows.source is not None
            digest = hashlib.sha256()
            for tensor in batch.values() if isinstance(batch, dict) else batch:
                digest.update(tensor.contiguous().cpu().view(torch.uint8).numpy().tobytes())
            write(
                epoch=rows.epoch,
                target=rows.target.tolist(),
                source=rows.source.tolist(),
                sha256=digest.hexdigest(),
            )
            return batch

    XMixLoader.__iter__ = lambda loader: Watched(loader)  # type: ignore[method-assign]


def watch_ffcv(write: Any) -> None:
    """Write down what is drawn for each target image of a stock FFCV Loader's batches."""
    from xmix_data.ffcv import LabelXMixup

    mix = LabelXMixup.mixed

    def mixed(self: LabelXMixup, batch: Any, out: Any, indices: Any, place: Any) -> None:
        mix(self, batch, out, indices, place)
        write(epoch=place.epoch, target=indices.tolist(), source=out.tolist())

    LabelXMixup.mixed = mixed  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
