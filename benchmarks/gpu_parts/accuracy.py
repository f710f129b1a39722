"""Part accuracy: what the methods gain with pre-trained weights, several trainings side by side.

Comes in: $ACCURACY_DATA, a folder with the class folders target/train, target/test, source/train
and, maybe, second/train; and model.py, whose function ``backbone`` makes the network with its
weights. Goes out: benchmarks/results/transfer_accuracy_pretrained_gpu.json, and the same as
$OUT/accuracy.json; a part that is stopped leaves every training that had ended, and goes on there.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from accuracy_parts import pretrained

from gpu_parts.record import DATA, OUT, RESULTS, Options

THREADS = 2
"""CPU threads of a training: one launches kernels, the loader's others copy crops."""
TINY = {"iterations": 12, "tuning_iterations": 2, "crop": 32, "seeds": 1, "every_row": False}


def run(options: Options) -> bool:
    """Train what is missing."""
    named = os.environ.get("ACCURACY_DATA")
    if not named:
        print("accuracy: set ACCURACY_DATA to a folder with target, source and model.py")
        return False
    folder = Path(named).absolute()
    regime = replace(pretrained.ON_A_GPU, device=options.device, compile=options.cuda)
    paths = [OUT / "accuracy.json"]
    if options.tiny:
        regime = replace(regime, **TINY)
    elif options.cuda:
        paths.append(RESULTS / "transfer_accuracy_pretrained_gpu.json")
    pretrained.run(
        regime,
        [path for path in (folder / "source", folder / "second") if path.exists()],
        folder / "target",
        f"{folder / 'model.py'}:backbone",
        DATA / "accuracy",
        max(1, len(os.sched_getaffinity(0)) // THREADS),
        paths,
    )
    return True
