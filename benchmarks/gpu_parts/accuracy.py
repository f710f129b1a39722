"""Part accuracy: what the methods gain with pre-trained weights, several trainings side by side.

Comes in: $ACCURACY_DATA, a folder with the class folders target/train, target/test, source/train
and, maybe, second/train; and model.py, whose function ``backbone`` makes the network with its
weights. Goes out: benchmarks/results/transfer_accuracy_pretrained_gpu.json, and the same as
$OUT/accuracy.json. What would not end within $LIMIT seconds is not begun; run it again, and it goes
on with what is missing.

The iterations are those of the CPU's table. With 9,000 of them in every row, as
`transfer_accuracy.py --scale pretrained-gpu` has, the table is 800,000 steps.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from accuracy_parts import pretrained

from gpu_parts.record import DATA, OUT, RESULTS, Options

JOBS = 3
"""Trainings at a time: a small network's kernels are launched more slowly than a GPU runs them.
Without MPS no two processes' kernels run at once: more than fill the GPU only end later."""
TINY = {"iterations": 12, "tuning_iterations": 2, "crop": 32, "seeds": 1, "every_row": False}


def run(options: Options) -> bool:
    """Train what is missing."""
    named = os.environ.get("ACCURACY_DATA")
    if not named:
        print("accuracy: set ACCURACY_DATA to a folder with target, source and model.py")
        return False
    folder = Path(named).absolute()
    # Each process would start as many compilers as there are cores.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "4")
    regime = replace(
        pretrained.Regime(), device=options.device, compile=options.cuda, every_row=True
    )
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
        JOBS if options.cuda else 1,
        paths,
        seconds=float(os.environ.get("LIMIT", "inf")),
    )
    return True
