"""What the methods gain: every one of them on one target set, with the same budget.

    python benchmarks/transfer_accuracy.py SOURCE TARGET --scale pretrained --model FILE.py:FUNCTION
    python benchmarks/transfer_accuracy.py SOURCE TARGET --scale cpu

SOURCE and TARGET are folders with the class folders ``train`` and ``test`` (of a pretrained scale's
source ``train`` is enough); their classes must not overlap.

    pretrained      weights that know ImageNet, few images, 3,000 iterations
    pretrained-gpu  the same with 9,000 iterations and five seeds for every row
    cpu, gpu        a small network that is trained from scratch on the source

Every training is kept as soon as it has ended: run again after an interruption.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

from accuracy_parts import pretrained, small

ROOT = Path(__file__).parents[1]
REGIMES = {
    "pretrained": pretrained.Regime(),
    "pretrained-gpu": pretrained.ON_A_GPU,
}


def main() -> None:
    """Train everything that is not there yet, and write the JSON."""
    description, _, more = __doc__.partition("\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--scale", choices=(*REGIMES, *small.SCALES), default="cpu")
    parser.add_argument("--work", type=Path, default=Path("transfer-accuracy"))
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, default=None)
    pre = parser.add_argument_group("pretrained scales")
    pre.add_argument("--second-source", type=Path, help="a source beside the first")
    pre.add_argument("--model", help="as xmix train takes it, with weights of its own")
    pre.add_argument("--only", default="", help="train the rows whose names fit this expression")
    pre.add_argument(
        "--every-seed", action="store_true", help="all seeds of these rows, beyond the plan"
    )
    for name in ("iterations", "tuning-iterations", "crop", "seeds"):
        pre.add_argument(f"--{name}", type=int)
    options = parser.parse_args()
    work = options.work / options.scale
    name = options.scale.replace("-", "_")
    path = options.json or ROOT / f"benchmarks/results/transfer_accuracy_{name}.json"
    if options.scale in small.SCALES:
        small.run(options.scale, options.source, options.target, work, options.jobs, path)
        return
    if options.model is None:
        parser.error(f"--scale {options.scale} needs --model")
    given = {
        name: getattr(options, name)
        for name in ("iterations", "tuning_iterations", "crop", "seeds")
        if getattr(options, name) is not None
    }
    regime = replace(REGIMES[options.scale], **given)
    sources = [options.source, *filter(None, [options.second_source])]
    pretrained.run(
        regime,
        sources,
        options.target,
        options.model,
        work,
        options.jobs,
        [path],
        options.only,
        every_seed=options.every_seed,
    )


if __name__ == "__main__":
    main()
