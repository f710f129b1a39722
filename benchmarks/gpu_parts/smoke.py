"""Part smoke: whether everything that trains runs on the device, on small images for a minute.

Goes out: accuracy and seconds of `fit` with each method, in half precision and in CUDA graphs, of
one that is compiled, resumed, and in a job of one process; class centroids of the device beside
those of the CPU. With so few iterations the accuracies say no more than that it learns.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpu_parts.data import prepare, small_beton
from gpu_parts.record import Figures, Options
from xmix_data import Beton, CenterCrop, ImageLoader, PairedClass, Pairing, class_centroids
from xmix_data.backbones import load_backbone
from xmix_data.methods import METHODS
from xmix_data.training import Recipe, fit

MODEL = "resnet18"
TRAINED = tuple(name for name in METHODS if name != "delta")
"""Uncompiled; DELTA is among `COMPILED` alone: its attention takes a forward pass a channel."""
COMPILED = tuple(name for name in METHODS if name != "gradmix")
"""One after the other in one process: Dynamo takes a graph again where it believes that it fits.
GradMix computes its gradients with the bare network."""


class Training:
    """Short trainings on the small betons."""

    def __init__(self, options: Options) -> None:
        prepare(options)
        self.device = options.device
        self.target, self.source, self.test = (
            Beton(small_beton(name)) for name in ("target", "source", "test")
        )
        names = zip(self.target.class_names, self.source.class_names, strict=False)
        self.pairing = Pairing({t: [PairedClass(s, 0.5, 30)] for t, s in names})
        self.recipe: dict[str, Any] = {
            "iterations": 2 if options.tiny else 40,
            "batch_size": 4 if options.tiny else 64,
            "crop": 32 if options.tiny else 56,
            "log_every": 10,
            "save_every": 20,
        }

    def run(self, name: str, folder: Path | None = None, **recipe: Any) -> dict[str, Any]:
        """Accuracy and seconds of one."""
        started = time.perf_counter()
        result = fit(
            METHODS[name](),
            load_backbone(MODEL, "none"),
            self.target,
            source=self.source,
            pairing=self.pairing,
            test=self.test,
            recipe=Recipe(**{**self.recipe, **recipe}),
            device=self.device,
            output=folder,
        )
        return {"accuracy": result.accuracy, "s": time.perf_counter() - started}

    def resumed(self, **recipe: Any) -> dict[str, Any]:
        """From the last checkpoint of a run whose result is lost."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            self.run("xmixup", folder, **recipe)
            (folder / "result.json").unlink()
            return self.run("xmixup", folder, **recipe)

    def in_a_job(self, **recipe: Any) -> dict[str, Any]:
        """With a process group of one process: what several tell each other is not tried."""
        backend = "nccl" if self.device == "cuda" else "gloo"
        with tempfile.TemporaryDirectory() as folder:
            torch.distributed.init_process_group(
                backend, init_method=f"file://{folder}/store", rank=0, world_size=1
            )
            try:
                return self.run("xmixup", **recipe)
            finally:
                torch.distributed.destroy_process_group()

    def centroids(self) -> dict[str, float]:
        """How far those of the device are from the CPU's, and what that changes in a pairing."""
        backbone = load_backbone(MODEL, "none")
        ours, reference = (
            class_centroids(self.test, backbone, device=device).values
            for device in (self.device, "cpu")
        )
        a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (ours, reference))
        return {
            "relative_error": float(np.linalg.norm(ours - reference) / np.linalg.norm(reference)),
            "largest_change_of_a_cosine": float(np.abs(a @ a.T - b @ b.T).max()),
        }

    def backend(self) -> list[Any]:
        """Which backend ``"auto"`` is here, and the size of a batch of it."""
        crop = CenterCrop(self.recipe["crop"])
        with ImageLoader(
            self.target, batch_size=8, crop=crop, device=self.device, backend="auto"
        ) as loader:
            return [type(loader._backend).__name__, len(next(iter(loader))[0])]


def run(options: Options) -> bool:
    """Train in all ways."""
    training = Training(options)
    configuration = {"rounds": 1, "device": options.device, "model": MODEL, **training.recipe}
    figures = Figures("smoke", options, configuration)
    amp = options.cuda  # in bfloat16 CPUs are slow
    for name in TRAINED:
        figures.tried(f"{name}, amp", training.run, name, amp=amp)
    figures.tried("xmixup, float32", training.run, "xmixup")
    figures.tried("xmixup, resumed at its end", training.resumed, amp=amp)
    figures.tried("centroids, device against CPU", training.centroids)
    figures.tried("xmixup, amp, a job of one process", training.in_a_job, amp=amp)
    figures.tried("backend auto", training.backend)
    if options.cuda:  # a CPU's compiler takes longer than all the rest
        torch._dynamo.config.recompile_limit = 64  # past its limit Dynamo only warns
        figures.tried("xmixup, amp, compile", training.run, "xmixup", amp=amp, compile=True)
        graphs = {"compile": True, "compile_mode": "reduce-overhead"}
        for name in COMPILED:
            figures.tried(f"{name}, CUDA graphs", training.run, name, **graphs)
    return not figures.failed
