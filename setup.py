"""Package metadata and dependencies, each with the reason for its bound."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup

_HERE = Path(__file__).parent
VERSION = (_HERE / "xmix_data" / "version.py").read_text().split('"')[-2]

REQUIRES = [
    "torch>=2.4",  # what torchvision and current drivers ship; older ones do not run with NumPy 2
    "torchvision>=0.19",  # goes with torch 2.4
    "numpy>=2.0,<3",  # C-API of NumPy 2, which the numba and faiss below are built for
    "numba>=0.61",  # the first with NumPy 2.1 and Python 3.13
    "scipy>=1.11",  # optimal assignment, quantiles of the Beta distribution
    "pillow>=10.2",  # scalable default font, and what conversion and its tests call
    "jinja2>=3.1",  # the pages of `xmix report`; torch brings it anyway
    "tqdm>=4.60",  # progress on a terminal
    "ffcv>=1.0.2,<2",  # the beton format, version 2: its own loader reads what we write
    # One wheel that runs with a GPU and without (Linux x86-64 only); the CPU wheel elsewhere.
    "faiss-gpu>=1.12; platform_system == 'Linux' and platform_machine == 'x86_64'",
    "faiss-cpu>=1.9; platform_system != 'Linux' or platform_machine != 'x86_64'",
]

_DALI = "nvidia-dali-cuda130>=2.4; platform_system == 'Linux'"

EXTRAS = {
    # The loaders that benchmarks/loader_throughput.py compares with; spdl needs Debian's ffmpeg.
    "bench": [
        "matplotlib>=3.8",
        _DALI,
        "spdl>=0.8",
        "torchcodec>=0.17",
    ],
    "dali": [_DALI],  # backend="dali"; for CUDA 12: nvidia-dali-cuda120
    "demo": ["matplotlib>=3.8", "scikit-learn>=1.3"],  # fonts and digits of `xmix demo`
    "docs": ["mkdocs-material>=9.6", "mkdocstrings[python]>=0.30"],
    "test": [
        _DALI,
        "accelerate>=1",  # transformers' Trainer
        "build>=1.2",  # the release, as a user gets it
        "datasets>=3",  # huggingface:FOLDER
        "hypothesis>=6.100",
        "ipykernel>=6.29",  # the notebook of the docs
        "import-linter>=2.1",
        "lightning>=2.2",
        "matplotlib>=3.8",
        "mkdocs-material>=9.6",
        "mkdocstrings[python]>=0.30",
        "mypy>=1.15",
        "nbclient>=0.10",
        "nbformat>=5.10",
        "pytest>=8.2",
        "ruff>=0.9",
        "playwright>=1.40",  # drives the system's chromium; brings no browser of its own
        "scikit-learn>=1.3",
        "setuptools>=77",  # builds without a network; Python 3.12's venv brings none
        "tensorboard>=2.14",
        "timm>=1.0",
        "transformers>=5",
        "webdataset>=0.2.90",  # a recipe of the docs
    ],
}


def require_system_libraries():
    """Say in one line what this package's build, or FFCV's, would fail on in a hundred.

    Set XMIX_SKIP_SYSTEM_CHECK=1 to build this package where ffcv is not going to be installed.
    """
    if os.environ.get("XMIX_SKIP_SYSTEM_CHECK") or sys.platform != "linux":
        return
    tools, libraries = ["pkg-config", "gcc"], ["libjpeg"]
    if not any((Path(sysconfig.get_path(k)) / "ffcv").is_dir() for k in ("platlib", "purelib")):
        tools, libraries = [*tools, "g++"], [*libraries, "opencv4", "libturbojpeg"]
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if "pkg-config" not in missing:
        missing += [
            library
            for library in libraries
            if subprocess.run(["pkg-config", "--exists", library]).returncode
        ]
    if missing:
        sys.exit(
            f"xmix_data: it cannot be built here, missing: {', '.join(missing)}. Install them: "
            "sudo apt-get install g++ pkg-config libjpeg-dev libopencv-dev libturbojpeg0-dev"
        )


require_system_libraries()

setup(
    name="xmix_data",
    version=VERSION,
    description="Cross-domain mixup (XMixup) data loading at the cost of plain fine-tuning",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["xmix_data", "xmix_data.*"]),
    package_data={
        "xmix_data": ["py.typed"],
        "xmix_data.report": ["templates/*"],
        "xmix_data.methods": ["imagenet_wnids.txt"],
    },
    ext_modules=[
        Extension(
            "xmix_data._jpeg",
            ["xmix_data/_jpeg.c"],
            libraries=["jpeg"],
            extra_compile_args=["-O2", "-Wall", "-Wextra"],
            py_limited_api=True,  # called through ctypes: one build serves every Python
        )
    ],
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    options={"bdist_wheel": {"py_limited_api": "cp310"}},  # and so one wheel
    entry_points={"console_scripts": ["xmix=xmix_data.cli:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
