"""The examples in docstrings: every public name has one, and each does what it shows."""

from __future__ import annotations

import contextlib
import doctest
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Betons

import xmix_data

WITHOUT_EXAMPLE = {"IMAGENET_MEAN", "IMAGENET_STD", "methods"}
"""Public names that are no classes or functions; errors are left out too."""

SHOWN = {
    *(f"xmix_data.{name}" for name in xmix_data.__all__ if not name.endswith("Error")),
    "xmix_data.MixedBatch.soft_labels",
    *(
        f"xmix_data.methods.{name}"
        for name in ("XMixup", "TransferNetwork", "split_classifier", "source_head")
    ),
    *(f"xmix_data.training.{name}" for name in ("Recipe", "evaluate", "fit")),
    "xmix_data.backbones.load_backbone",
    "xmix_data.bench.explain",
    "xmix_data.beton.open_domain",
} - {f"xmix_data.{name}" for name in WITHOUT_EXAMPLE}

IMPORTED = {
    "xmix_data",
    *(f"xmix_data.{n}" for n in ("backbones", "bench", "beton", "methods", "training")),
}
"""Modules whose public names, like np and torch, an example uses without importing them."""


def modules() -> Iterator[ModuleType]:
    root = Path(xmix_data.__file__).parent
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        # Triton is not everywhere; FFCV changes torch's threads, see `test_ffcv`.
        if parts[-1] != "mixing_triton" and parts[-2:] != ("xmix_data", "ffcv"):
            yield importlib.import_module(".".join(parts).removesuffix(".__init__"))


def examples() -> dict[str, doctest.DocTest]:
    """Docstrings with an example, by module and name."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = (test for module in modules() for test in finder.find(module, module.__name__))
    return {test.name: test for test in found if test.examples}


EXAMPLES = examples()


def home(name: str) -> str:
    """Where a public name is defined, as doctest names it."""
    module, _, attribute = name.rpartition(".")
    with contextlib.suppress(ImportError):
        value = getattr(importlib.import_module(module), attribute)
        return f"{value.__module__}.{value.__qualname__}"
    return f"{home(module)}.{attribute}"


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    known: dict[str, Any] = {"np": np, "torch": torch}
    for module in map(importlib.import_module, IMPORTED):
        known |= {name: getattr(module, name) for name in module.__all__}
    return known


@pytest.fixture
def workplace(betons: Betons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with the files that examples name: 40 x 40 pixels, 4 and 6 classes."""
    monkeypatch.chdir(tmp_path)
    for name, beton in (("target", betons.target_raw), ("source", betons.source_raw)):
        for suffix in ("", ".json"):
            Path(f"{name}.beton{suffix}").symlink_to(f"{beton.path}{suffix}")
    betons.pairing.save("pairing.json")


@pytest.mark.parametrize("name", sorted(SHOWN))
def test_a_public_name_shows_an_example(name: str) -> None:
    assert home(name) in EXAMPLES


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_an_example_does_what_it_shows(
    name: str, names: dict[str, Any], workplace: None, capsys: pytest.CaptureFixture[str]
) -> None:
    EXAMPLES[name].globs = names.copy()
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    assert not runner.run(EXAMPLES[name]).failed, capsys.readouterr().out
