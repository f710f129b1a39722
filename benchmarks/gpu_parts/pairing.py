"""Part pairing: the cosines of 1,000 target and 21,841 source classes, by FAISS and by torch.

Goes out: seconds, call by call (the first pays for what is made once); how far each is from
float64, the library's rounding to 6 decimals included; how far the GPU's cosines are from the
CPU's.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import torch

from gpu_parts.record import Figures, Options
from xmix_data.pairing.matching import COSINE_DECIMALS, METHODS, cosine_similarity

CLASSES, CLASSES_TINY = (1000, 21_841, 2048), (50, 300, 64)
"""Target classes, source classes, dimensions."""
CALLS = 4

Matrix = npt.NDArray[np.float32]


def run(options: Options) -> bool:
    """Measure the library, its parts, and torch."""
    n, m, d = CLASSES_TINY if options.tiny else CLASSES
    configuration = {
        "rounds": CALLS,
        "device": options.device,
        "target_classes": n,
        "source_classes": m,
        "dimensions": d,
    }
    figures = Figures("pairing", options, configuration)
    figures.tried("import_faiss_s", import_seconds)
    centroids = Centroids(n, m, d)
    try:
        by_faiss(figures, centroids, gpu=options.cuda)
    except ImportError as error:
        figures.error("faiss", error)
    for device in ("cpu", "cuda") if options.cuda else ("cpu",):
        figures.tried(f"torch, float32, {device}", by_torch, centroids, device)
    return not figures.failed


class Centroids:
    """Target (n, d) and source (m, d), as alike as those of a network's features."""

    def __init__(self, n: int, m: int, d: int) -> None:
        random = np.random.default_rng(0)
        common = random.random((1, d), dtype=np.float32)
        self.target, self.source = (
            random.random((count, d), dtype=np.float32) ** 4 + common for count in (n, m)
        )
        t, s = self.normalised()
        self.exact = t.astype(np.float64) @ s.astype(np.float64).T

    def normalised(self) -> list[Matrix]:
        """Both, with rows of length 1."""
        both = self.target, self.source
        return [x / np.linalg.norm(x, axis=1, keepdims=True) for x in both]

    def measured(self, cosines_of: Callable[[], Matrix]) -> tuple[dict[str, Any], Matrix]:
        """Seconds of some calls and how far the cosines are from float64; and the cosines."""
        seconds = []
        for _ in range(CALLS):
            started = time.perf_counter()
            cosines = cosines_of()
            seconds.append(time.perf_counter() - started)
        error = float(np.abs(cosines - self.exact).max())
        return {"seconds": seconds, "error_to_float64": error}, cosines


def import_seconds() -> float:
    """Of FAISS, in a process that has not loaded CUDA's libraries for torch."""
    code = "import time; t = time.perf_counter(); import faiss; print(time.perf_counter() - t)"
    return float(subprocess.check_output([sys.executable, "-c", code]))


def by_faiss(figures: Figures, centroids: Centroids, *, gpu: bool) -> None:
    """The library's way, on the GPU and without one."""
    import faiss

    figures.save("faiss", [faiss.__version__, getattr(faiss, "get_num_gpus", int)()])
    found: dict[str, Matrix] = {}

    def library(device: str) -> dict[str, Any]:
        row, found[device] = centroids.measured(
            lambda: cosine_similarity(centroids.target, centroids.source)
        )
        return row

    if gpu:
        figures.tried("cosine_similarity, GPU", library, "GPU")
    with patch.object(faiss, "get_num_gpus", int, create=True):  # as if there were none
        figures.tried("cosine_similarity, CPU", library, "CPU")
    if len(found) == 2:
        figures.tried("GPU against CPU", compared, found["GPU"], found["CPU"])
        figures.tried("parts of the GPU's way", parts, centroids)


def by_torch(centroids: Centroids, device: str) -> dict[str, Any]:
    """A product of matrices, from host memory to host memory."""
    t, s = map(torch.from_numpy, centroids.normalised())
    row, _ = centroids.measured(lambda: (t.to(device) @ s.to(device).T).cpu().numpy())
    return row


def compared(ours: Matrix, reference: Matrix) -> dict[str, Any]:
    """Cosines of the GPU and the CPU."""
    return {
        "max_difference": float(np.abs(ours - reference).max()),
        "share_that_differs_after_rounding": float((ours != reference).mean()),
        "decimals": COSINE_DECIMALS,
        "classes_paired_otherwise": int((paired(ours) != paired(reference)).sum()),
    }


def paired(cosines: Matrix) -> npt.NDArray[np.int64]:
    """The source class of each target class, (n,), by the default method."""
    n, m = cosines.shape
    source = np.empty(n, np.int64)
    for t, s in METHODS["greedy"](cosines, np.random.Philox(0)):
        source[t] = s
    assert len(set(source.tolist())) == n <= m
    return source


def parts(centroids: Centroids) -> dict[str, float]:
    """Seconds of what `cosine_similarity` does on a GPU, step by step."""
    import faiss

    seconds: dict[str, float] = {}

    def timed(name: str, function: Callable[..., Any], *args: Any) -> Any:
        started = time.perf_counter()
        value = function(*args)
        seconds[f"{name}_s"] = time.perf_counter() - started
        return value

    def pairwise(resources: Any) -> Matrix:
        metric = faiss.METRIC_INNER_PRODUCT
        return faiss.pairwise_distance_gpu(resources, t, s, metric=metric)

    def rounded(cosines: Matrix) -> Matrix:
        np.round(cosines, COSINE_DECIMALS, out=cosines)
        return np.clip(cosines, -1, 1, out=cosines)

    t, s = timed("normalise", centroids.normalised)
    resources = timed("resources", faiss.StandardGpuResources)
    for name in ("first", "second", "third"):
        cosines = timed(f"pairwise_{name}", pairwise, resources)
    timed("round_and_clip", rounded, cosines)
    small = faiss.StandardGpuResources()
    small.setPinnedMemory(0)
    small.setTempMemory(64 << 20)
    timed("pairwise_without_pinned_buffer_first", pairwise, small)
    return seconds
