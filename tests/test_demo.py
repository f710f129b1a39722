"""The demo's two domains, and the whole of it in small."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from xmix_data import Beton, MissingDependencyError, Pairing
from xmix_data.demo import CHARACTERS, Glyphs, HandwrittenDigits, run
from xmix_data.demo.steps import _run, _Settings


def test_glyphs_are_pictures_of_every_character() -> None:
    glyphs = Glyphs(variations=2)
    assert glyphs.classes == tuple(CHARACTERS) and len(set(glyphs.classes)) == 36
    assert len(glyphs.fonts) >= 10
    assert len(glyphs) == 36 * len(glyphs.fonts) * 2
    step = len(glyphs.fonts) * 2
    means = []
    for label in range(36):
        pictures = [glyphs[label * step + i] for i in range(step)]
        assert {y for _, y in pictures} == {label}
        assert {x.size for x, _ in pictures} == {(32, 32)}
        means.append(np.mean([np.asarray(x, float) for x, _ in pictures], axis=0))
    distances = [np.abs(a - b).mean() for i, a in enumerate(means) for b in means[:i]]
    assert min(distances) > 2
    again, _ = Glyphs(variations=2)[7]
    assert np.array_equal(np.asarray(again), np.asarray(glyphs[7][0]))
    with pytest.raises(IndexError):
        glyphs[len(glyphs)]


def test_symbol_fonts_are_left_out() -> None:
    names = {font.stem for font in Glyphs().fonts}
    assert "DejaVuSans" in names
    assert not {name for name in names if "Sym" in name or "cmsy" in name or "cmex" in name}


def test_digits_are_split_without_overlap() -> None:
    parts = {part: HandwrittenDigits(part, 5) for part in ("train", "validation", "test")}
    indices = np.concatenate([part.indices for part in parts.values()])
    assert len(set(indices.tolist())) == len(indices) == 1797
    assert np.bincount(parts["train"].targets).tolist() == [5] * 10
    picture, label = parts["test"][3]
    assert picture.size == (32, 32) and label == parts["test"].targets[3]
    with pytest.raises(ValueError, match="part is 'all'"):
        HandwrittenDigits("all")


def test_the_whole_way_in_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = _Settings()
    settings = _Settings(
        variations=1,
        per_class=3,
        pretraining=replace(given.pretraining, iterations=4, batch_size=15),
        fine_tuning=replace(given.fine_tuning, iterations=4, batch_size=15),
        measured_pairs=60,
    )
    made = _run(tmp_path / "demo", 2, settings)
    assert set(made) == {"own_glyphs", "accuracy_percent", "per_second", "seconds"}
    for accuracies in (made["accuracy_percent"][name] for name in ("plain", "xmixup")):
        assert len(accuracies) == 2 and all(0 < accuracy < 100 for accuracy in accuracies)
    said = capsys.readouterr().out
    assert re.search(r"\d+ of 10 digits found their own glyph", said)
    assert re.search(r"seed 1: plain [\d.]+ %, XMixup [\d.]+ %", said)
    number = r"([+-][\d.]+)"
    told = re.search(
        rf"XMixup - plain +{number} points \(95 % interval {number} to {number}\)", said
    )
    assert told is not None
    plain, mixed = (made["accuracy_percent"][name] for name in ("plain", "xmixup"))
    gains = [m - p for m, p in zip(mixed, plain, strict=True)]
    half = 12.706 * abs(gains[0] - gains[1]) / 2  # the t distribution's 97.5 % quantile, n = 2
    expected = sum(gains) / 2, sum(gains) / 2 - half, sum(gains) / 2 + half
    assert [float(text) for text in told.groups()] == pytest.approx(expected, abs=0.01)
    assert re.search(r"[\d,]+ pairs decoded, cropped, normalised and mixed a second", said)
    assert Beton(tmp_path / "demo" / "target.beton").class_counts == [3] * 10
    assert len(Pairing.load(tmp_path / "demo" / "pairing.json").pairs) == 10
    with Image.open(tmp_path / "demo" / "mixed.png") as sheet:
        assert sheet.width > 8 * 100
    for path in (tmp_path / "demo").glob("*.png"):
        assert str(path) in said
    _run(tmp_path / "demo", 1, settings)  # replaces what an earlier run wrote


def test_impossible_requests_are_named(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    with pytest.raises(ValueError, match="seeds is 0"):
        run(tmp_path / "demo", seeds=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file; choose a folder"):
        run(tmp_path / "file")
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("module", "package"), [("matplotlib", "matplotlib"), ("sklearn.datasets", "scikit-learn")]
)
def test_a_missing_package_is_named_before_any_work(
    module: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=package) as caught:
        run(tmp_path / "demo")
    assert str(caught.value).endswith("pip install 'xmix_data[demo]'")
    assert not (tmp_path / "demo").exists()
