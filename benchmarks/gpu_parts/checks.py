"""Parts versions, tests and doctor: the machine, and whether the project works on it.

Goes out: versions.json, tests.xml (JUnit) and doctor.json in $OUT; nothing of it is a measurement.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import NoReturn

import torch

from gpu_parts.record import OUT, ROOT, Figures, Options
from xmix_data.files import whole_file

PACKAGES = (
    "torch",
    "torchvision",
    "triton",
    "numpy",
    "numba",
    "llvmlite",
    "scipy",
    "pillow",
    "timm",
    "lightning",
    "transformers",
    "scikit-learn",
    "faiss-cpu",
    "faiss-gpu",
    "nvidia-dali-cuda130",
)
ASKED = (
    "name,driver_version,pcie.link.gen.current,pcie.link.width.current,clocks.sm,clocks.mem,"
    "power.limit"
)
"""Of nvidia-smi."""


def versions(options: Options) -> bool:
    """What is installed, and what the GPU says of itself."""
    figures = Figures("versions", options, {"rounds": 1}, keep=False)
    figures.save("python", platform.python_version())
    figures.save("packages", {name: version_of(name) for name in PACKAGES})
    figures.save("cuda", torch.version.cuda)
    figures.save("cudnn", torch.backends.cudnn.version())
    if options.cuda and shutil.which("nvidia-smi"):
        figures.tried("nvidia-smi", nvidia_smi)
    return not figures.failed


def version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def nvidia_smi() -> dict[str, str]:
    command = ["nvidia-smi", f"--query-gpu={ASKED}", "--format=csv,noheader"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(zip(ASKED.split(","), done.stdout.splitlines()[0].split(", "), strict=True))


def tests(options: Options) -> NoReturn:
    """Become the tests that need a GPU."""
    files = [p for p in sorted((ROOT / "tests").glob("test_*.py")) if "mark.gpu" in p.read_text()]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "gpu",
        "-q",
        "--tb=short",
        "--durations=8",
        "-p",
        "no:cacheprovider",
        f"--junitxml={OUT / 'tests.xml'}",
        *map(str, files),
    ]
    os.chdir(ROOT)
    os.execv(sys.executable, command)  # so that the signal to end reaches pytest itself


def doctor(options: Options) -> bool:
    """What `xmix doctor` finds."""
    command = [sys.executable, "-m", "xmix_data", "doctor", "--json"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE)
    with whole_file(OUT / "doctor.json") as file:
        file.write(done.stdout)
    return done.returncode == 0
