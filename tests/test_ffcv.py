"""`xmix_data.ffcv` in the pipelines of stock FFCV Loaders; the trials are in `ffcv_operations`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

TRIALS = Path(__file__).with_name("ffcv_operations.py")
QUICK = (
    "labels_and_images_belong_together",
    "another_beton_is_an_error_at_construction",
    "a_wrong_place_is_an_error_at_construction",
    "several_sizes_at_once_are_each_as_alone",
    "a_damaged_source_image_is_replaced_by_its_class",
    "a_class_without_a_sound_image_is_an_error_and_no_hang",
    "a_label_outside_its_block_is_an_error_and_no_hang",
)
TIMEOUT_S = 240


def tried(folder: Path, *names: str) -> None:
    done = subprocess.run(
        [sys.executable, TRIALS, folder, *names], capture_output=True, text=True, timeout=TIMEOUT_S
    )
    failed = re.findall(r"^failed .*", done.stdout, re.M)
    assert done.returncode == 0 and not failed, done.stdout + done.stderr
    assert "Warning" not in done.stderr, done.stderr
    ended = re.findall(r"^ok (\w+)", done.stdout, re.M)
    every = re.findall(r"^@trial\ndef (\w+)", TRIALS.read_text(), re.M)
    assert ended == list(names or every) and len(every) == 15


def test_mixing_in_a_pipeline(tmp_path: Path) -> None:
    tried(tmp_path, *QUICK)


@pytest.mark.slow
def test_mixing_in_a_pipeline_in_every_way_that_ffcv_may_be_used(tmp_path: Path) -> None:
    tried(tmp_path)


def test_without_ffcv_the_error_says_how_to_get_it() -> None:
    code = "import sys; sys.modules['ffcv'] = None; import xmix_data.ffcv"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "pip install ffcv setuptools" in done.stderr
    assert "MissingDependencyError" in done.stderr
