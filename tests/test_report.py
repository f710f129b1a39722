"""The report: what the page says, held against the pairing, and how it behaves in a browser."""

from __future__ import annotations

import base64
import html
import io
import json
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from conftest import Images
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from xmix_data import (
    Beton,
    BetonError,
    Centroids,
    PairedClass,
    Pairing,
    pair_classes,
    write_beton,
)
from xmix_data.beton import open_domain
from xmix_data.pairing import Draw, Similarity
from xmix_data.plan import ImageSizes, SourcePool
from xmix_data.report import charts, write_report
from xmix_data.report import pictures as report_pictures
from xmix_data.report.render import render
from xmix_data.report.rows import limits_of, rows_of
from xmix_data.report.summary import summary_of

HOSTILE = "</script><img src=x onerror=alert(1)>"
TARGETS = ("class 10", "class 2", HOSTILE, 'quoted "&" <b>bold</b>', "Ünïcode 犬", "a" * 90)
SOURCES = ("roses", "tulips", "Daisies", "oak", "elm", "ash " + HOSTILE, "ivy", "moss", "fern")


def beton(path: Path, names: Sequence[str], counts: Sequence[int], **options: Any) -> Beton:
    images = Images(counts, "", seed=len(names))
    images.classes = list(names)
    kept = {"encoding": "jpg", "image_size": 40, "num_workers": 0, "progress": False}
    return write_beton(images, path, **{**kept, **options})


def centroids(names: Sequence[str], counts: Sequence[int], seed: int) -> Centroids:
    values = np.random.default_rng(seed).normal(size=(len(names), 12))
    return Centroids(values, np.array(counts), list(names), {"model": "resnet18"})


class Made(NamedTuple):
    target: Beton
    source: Beton
    pairing: Pairing
    path: Path

    @property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("report")
    target_counts, source_counts = [4, 3, 5, 2, 6, 1], [7, 5, 3, 8, 2, 4, 9, 1, 6]
    target = beton(folder / "t<img src=x onerror=alert(2)>.beton", TARGETS, target_counts)
    source = beton(folder / "source.beton", SOURCES, source_counts, encoding="raw")
    pairing = pair_classes(
        centroids(TARGETS, target_counts, 1), centroids(SOURCES, source_counts, 2)
    )
    return Made(
        target, source, pairing, write_report(pairing, target, source, folder / "report.html")
    )


def rows(text: str) -> dict[str, str]:
    """The pairs table: target class to its row, in the page's order."""
    found = re.findall(r"<tr role=\"row\" data-cosine.*?</tr>", text, re.DOTALL)
    return {html.unescape(re.findall(r'class="name">(.*?)</span>', row)[0]): row for row in found}


def pictures(part: str) -> list[np.ndarray]:
    return [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
        for data in re.findall(r'src="data:image/jpeg;base64,(.*?)"', part)
    ]


def on_one_line(text: str) -> str:
    return " ".join(text.split())


def section(text: str, name: str) -> str:
    return re.findall(rf'<section id="{name}">.*?</section>', on_one_line(text))[0]


def test_every_pair_has_its_row(made: Made) -> None:
    found = rows(made.text)
    assert set(found) == set(TARGETS)
    cosines = []
    for name, row in found.items():
        paired = made.pairing.pairs[name][0]
        names = [html.unescape(n) for n in re.findall(r'class="name">(.*?)</span>', row)]
        assert names == [name, paired.name]
        assert f">{paired.cosine:.3f}</td>" in row and f">{paired.images}</td>" in row
        own = made.target.class_counts[TARGETS.index(name)]
        shown = [(name, min(3, own)), (paired.name, min(3, paired.images))]
        alts = [html.unescape(alt) for alt in re.findall(r'alt="(.*?)"', row)]
        assert alts == [
            f"{n}, picture {k + 1} of {count}" for n, count in shown for k in range(count)
        ]
        assert len(pictures(row)) == len(alts)
        cosines.append(paired.cosine)
    assert cosines == sorted(cosines)


def test_a_source_class_of_several_target_classes_counts_once(made: Made, tmp_path: Path) -> None:
    pairing = Pairing({name: [PairedClass(SOURCES[0], 0.5, 7)] for name in TARGETS})
    text = write_report(pairing, made.target, made.source, tmp_path / "r.html").read_text()
    numbers = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", text))
    assert numbers["Source images"] == "7 of 45" and numbers["Source classes"] == "1 of 9"


def test_pictures_are_those_of_the_class(made: Made) -> None:
    """The raw source's pictures, but for the JPEG that they become on the page."""
    for name, row in rows(made.text).items():
        label = made.source.class_names.index(made.pairing.pairs[name][0].name)
        stored = [
            made.source.data(i).reshape(40, 40, 3).astype(int)
            for i in np.flatnonzero(made.source.labels == label).tolist()
        ]
        shown = pictures(row)[min(3, made.target.class_counts[TARGETS.index(name)]) :]
        found = [
            int(np.argmin([np.abs(picture - image).mean() for image in stored]))
            for picture in shown
        ]
        assert len(set(found)) == len(shown), "the same picture twice"
        for picture, nearest in zip(shown, found, strict=True):
            assert np.abs(picture - stored[nearest]).mean() < 6


def test_the_same_input_gives_the_same_page(made: Made, tmp_path: Path) -> None:
    again = write_report(made.pairing, made.target.path, [made.source.path], tmp_path / "r.html")
    assert again == tmp_path / "r.html"
    assert again.read_bytes() == made.path.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]


def test_the_page_needs_nothing_else(made: Made) -> None:
    text = made.text
    assert not re.findall(r"https?:|@import|url\(|<link(?! rel=\"icon\" href=\"data:,\")", text)
    assert {link[:5] for link in re.findall(r"(?<![\w-])src=\"(.*?)\"", text)} == {"data:"}
    assert "default-src 'none'" in text


def test_names_are_text_wherever_they_stand(made: Made) -> None:
    text = made.text
    assert "<img src=x" not in text and "<b>bold" not in text
    assert text.count("</script>") == 2
    assert HOSTILE in json.loads(data_of(text))["targets"]


class Parsed(HTMLParser):
    """A page as a browser takes it apart: its structure, and what is said in each of its parts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.structure: list[Any] = []
        self.said: dict[str, str] = defaultdict(str)
        self._part = "head"
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.structure.append((tag, *given))
        if tag in ("header", "section", "script"):
            self._part = given.get("id") or tag
        self.said[self._part] += "".join(f"[{value}]" for value in given.values())

    def handle_endtag(self, tag: str) -> None:
        self.structure.append(f"/{tag}")

    def handle_data(self, text: str) -> None:
        self.said[self._part] += text


def page_of(folder: Path, name: str, file: str) -> str:
    """A page that shows the name wherever a page shows a user's text."""
    folder.mkdir()
    targets, sources = ([f"{kind} {k} {name}" for k in range(6)] for kind in ("target", "source"))
    target = beton(folder / f"t{file}.beton", targets, [3] * 6)
    source = beton(folder / f"s{file}.beton", sources, [3, 4, 5, 6, 7, 8])
    other = beton(folder / os.fsdecode(b"\xff" + f"{file}.beton".encode()), sources, [2] * 6)
    pairs = {
        target: [PairedClass(s, (j - k) / 6, 0, domain=j % 2) for j, s in enumerate(sources)]
        for k, target in enumerate(targets)
    }
    domains = [{"files": [f"{kind} {name}"], "fingerprints": [name]} for kind in ("a", "b")]
    recorded = {"model": name, name: [name], "domains": domains}
    options = {"method": f"random {name}", "rounds": name}
    by_method = {f"random {name}": 0.1, "greedy": 0.2, "optimal": 0.3}
    similarity = Similarity(0.95, 0.1, np.linspace(-1, 1, 36).reshape(6, 6), by_method)
    pairing = Pairing(pairs, options, recorded, recorded, similarity)
    path = write_report(pairing, target, [source, other], folder / "r.html")
    return re.sub("sha256:[0-9a-f]{64}", "sha256", path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "hostile",
    [
        HOSTILE,
        '" onmouseover="alert(1)" x="',
        "' autofocus onfocus='alert(1)' x='",
        "</title></style></svg></p></li></td>--><b>bold</b><!--",
        "{{ 7 * 7 }}{% raw %}{# &lt;&amp; #}",
    ],
)
def test_a_hostile_name_is_inert_in_every_section(tmp_path: Path, hostile: str) -> None:
    """The page differs from that of harmless names in these names only."""
    in_files = hostile.replace("/", "")
    harmless = Parsed(page_of(tmp_path / "harmless", "NAME", "FILE"))
    found = Parsed(page_of(tmp_path / "hostile", hostile, in_files))
    assert found.structure == harmless.structure
    data = json.loads(found.said.pop("data").partition("]")[2].partition("]")[2])
    assert data["targets"] == [f"target {k} {hostile}" for k in range(6)]
    assert data["sources"] == [f"source 0 {hostile}"] * 6
    for part in ("header", "pairs", "similarity", "matrix", "images", "mixed", "provenance"):
        assert "NAME" in harmless.said[part], part
    for part, said in found.said.items():
        assert said == harmless.said[part].replace("NAME", hostile).replace("FILE", in_files)
    assert f"?{in_files}.beton" in found.said["provenance"], "bytes that are no text"


def data_of(text: str) -> str:
    return re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)[0]


def test_the_matrix_is_that_of_the_pairing(made: Made) -> None:
    similarity, text = made.pairing.similarity, made.text
    assert similarity is not None
    data = json.loads(data_of(text))
    found = np.frombuffer(base64.b64decode(data["cosines"]), "<i2").reshape(6, 6) / 1000
    assert np.abs(found - similarity.matrix).max() < 0.0006
    assert data["targets"] == list(made.pairing.pairs)
    assert data["sources"] == [paired[0].name for paired in made.pairing.pairs.values()]
    (png,) = re.findall(r"data:image/png;base64,(.*?)\"", text)
    seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("L")).astype(int)
    assert (np.diff(seen.ravel()[np.argsort(similarity.matrix, axis=None)]) >= 0).all()
    assert seen.max() - seen.min() > 150, "lighter is more"


def test_a_pairing_made_by_hand_has_no_matrix(made: Made, tmp_path: Path) -> None:
    named = zip(TARGETS, SOURCES, strict=False)
    by_hand = Pairing({name: [PairedClass(s, 0.5, 1)] for name, s in named})
    text = write_report(by_hand, made.target, made.source, tmp_path / "r.html").read_text()
    assert "made by hand" in section(text, "matrix")
    assert data_of(text) == "null" and "verdict" not in section(text, "pairs")
    assert ">7</td>" in rows(text)[TARGETS[0]], "what is drawn, not what the pairing says"


@pytest.mark.parametrize(
    ("alpha", "beta", "expected"),
    [
        (1.0, 1.0, [0.9, 0.7, 0.5, 0.3, 0.1]),
        (4.0, 1.0, [q**0.25 for q in (0.9, 0.7, 0.5, 0.3, 0.1)]),
        (64.0, 1.0, [0.9, 0.7, 0.5, 0.3, 0.1]),  # its quantiles coincide
        (0.05, 1.0, [0.9, 0.7, 0.5, 0.3, 0.1]),
    ],
)
def test_mixed_samples_are_mixed(
    made: Made, tmp_path: Path, alpha: float, beta: float, expected: list[float]
) -> None:
    path = write_report(
        made.pairing, made.target, made.source, tmp_path / "r.html", alpha=alpha, beta=beta
    )
    part = section(path.read_text(), "mixed")
    assert ("fixed values" in part) == (alpha in (64, 0.05))
    assert f"mean is {alpha / (alpha + beta):.2f}" in part
    strips = re.findall(r'<div class="strip">.*?</figure>', part, re.DOTALL)
    assert len(strips) == 5
    for strip in strips:
        lams = [float(x) for x in re.findall(r"λ (0\.\d\d)</div>", strip)]
        assert lams == pytest.approx(expected, abs=0.006)
        first, *mixed, last = (picture.astype(float) for picture in pictures(strip))
        for lam, picture in zip(expected, mixed, strict=True):
            assert np.abs(picture - (lam * first + (1 - lam) * last)).mean() < 4


def with_similarity(made: Made, mean: float, std: float, **options: Any) -> Pairing:
    similarity = Similarity(mean, std, made.pairing.similarity.matrix, {})
    return Pairing(made.pairing.pairs, options, similarity=similarity)


@pytest.mark.parametrize(
    ("mean", "std", "options", "warning"),
    [
        (0.0, 0.01, {}, None),
        (0.95, 0.01, {}, "hardly tell classes apart"),
        (0.89, 0.05, {"method": "greedy"}, "looks hopeless: 6 of 6 target classes"),
        (0.89, 0.05, {"method": "random"}, "what this method is for"),
    ],
)
def test_a_hopeless_pairing_is_called_so(
    made: Made, tmp_path: Path, mean: float, std: float, options: Any, warning: str | None
) -> None:
    pairing = with_similarity(made, mean, std, **options)
    text = write_report(pairing, made.target, made.source, tmp_path / "r.html").read_text()
    found = re.findall(r'<ul class="warnings">.*?</ul>', on_one_line(text))
    assert bool(found) == (warning is not None)
    assert warning is None or warning in found[0]
    verdicts = re.findall(r'class="verdict (\w+)"', "".join(rows(text).values()))
    cosines = [p.cosine for paired in made.pairing.pairs.values() for p in paired]
    assert sorted(verdicts) == sorted(
        "good" if c >= mean + 2 * std else "weak" if c >= mean + std else "poor" for c in cosines
    )


@pytest.mark.parametrize(
    ("mean", "std", "expected"),
    [
        (0.4, 0.1, (0.5, 0.6, False)),
        (0.5, 0.25, (0.75, 0.875, True)),  # two deviations are a cosine of 1
        (-0.2, 0.9, (0.7, 0.85, True)),
        (0.5, 0.5, None),  # one is
        (0.5, 1e-9, None),
    ],
)
def test_limits_are_cosines_below_one(mean: float, std: float, expected: Any) -> None:
    limits = limits_of(Similarity(mean, std, np.zeros((1, 1), np.float32), {}))
    assert limits == (expected and pytest.approx(expected))


def test_a_beton_paired_with_itself_is_clearly_similar(tmp_path: Path) -> None:
    target = beton(tmp_path / "t.beton", ["a", "b", "c"], [1, 1, 1])
    values = np.array([[1, 0, 0.3], [1, 0.5, 0], [1, 0, 0]], np.float32)
    same = Centroids(values, np.ones(3, np.int64), ["a", "b", "c"])
    pairing = pair_classes(same, same)
    similarity = pairing.similarity
    assert similarity is not None and similarity.mean + 2 * similarity.std > 1
    text = write_report(pairing, target, target, tmp_path / "r.html").read_text()
    verdicts = [re.findall(r'class="verdict (\w+)"', row) for row in rows(text).values()]
    assert verdicts == [["good"]] * 3
    assert "halfway from there to 1: two standard deviations" in on_one_line(text)
    domain = open_domain(target)
    chart = summary_of(pairing, rows_of(pairing, domain, domain)).cosines_chart
    assert chart.mark is not None and chart.mark < 1 and chart.stop == pytest.approx(1)
    assert chart.band is not None and chart.band[1] <= 1


def test_a_single_pair_of_classes_has_no_verdict(tmp_path: Path) -> None:
    target = beton(tmp_path / "t.beton", ["a"], [1])
    made = [Centroids(np.array([v], np.float32), np.ones(1), ["a"]) for v in ([1, 0], [-1, 0.1])]
    text = write_report(pair_classes(*made), target, target, tmp_path / "r.html").read_text()
    assert not re.search(r'class="verdict \w+"', text)
    assert "There is nothing to judge a pair by" in on_one_line(text)


def test_hopeless_means_more_than_half(made: Made, tmp_path: Path) -> None:
    cosines = sorted(paired[0].cosine for paired in made.pairing.pairs.values())
    for poor, hopeless in ((3, False), (4, True)):
        pairing = with_similarity(made, 0.0, (cosines[poor - 1] + cosines[poor]) / 2)
        path = write_report(pairing, made.target, made.source, tmp_path / f"{poor}.html")
        assert (f"looks hopeless: {poor} of 6" in on_one_line(path.read_text())) == hopeless


def test_charts_count_every_pair_and_image(made: Made) -> None:
    cosines = [p.cosine for paired in made.pairing.pairs.values() for p in paired]
    titles = re.findall(
        r"<title>(-?[\d.]+) to (-?[\d.]+): (\d+)<", section(made.text, "similarity")
    )
    for low, high, count in titles:
        assert sum(float(low) <= c < float(high) for c in cosines) == int(count)
    assert sum(int(count) for *_, count in titles) == len(cosines)
    bars = re.findall(r"<title>(.*?): (\d+)</title>", section(made.text, "images"))
    expected = {name: paired[0].images for name, paired in made.pairing.pairs.items()}
    assert {html.unescape(name): int(count) for name, count in bars} == expected


def drawn(chart: charts.Chart) -> str:
    return render("chart.html", chart=chart)


def coordinates(svg: str) -> list[float]:
    """All numbers that place something, but for the widths and heights of bars."""
    drawn = re.findall(r' (?:points|x|y|d)="(.*?)"', svg)
    return [float(number) for part in drawn for number in re.findall(r"-?[\d.]+|nan|inf", part)]


@given(
    st.lists(st.floats(-1, 1), min_size=1, max_size=30),
    st.none() | st.tuples(st.floats(-1, 1), st.floats(-1, 1)).map(sorted),
    st.none() | st.floats(-1, 1),
)
@settings(deadline=None, max_examples=100)
def test_a_histogram_counts_anything(values: list[float], band: Any, mark: float | None) -> None:
    chart = charts.histogram(np.array(values), band, mark)
    svg = drawn(chart)
    assert chart.stop <= 1 + 1e-9  # there is no cosine above
    assert sum(map(int, re.findall(r": (\d+)</title>", svg))) == len(values)
    assert all(-8.5 <= number <= 400 for number in coordinates(svg))


@given(st.floats(1e-3, 1e6), st.floats(1e-3, 1e6))
@settings(deadline=None, max_examples=60)
def test_any_density_can_be_drawn(alpha: float, beta: float) -> None:
    svg = drawn(charts.beta_density(alpha, beta, [0.1, 0.9]))
    assert "nan" not in svg and all(-8.5 <= number <= 400 for number in coordinates(svg))


def test_a_density_is_that_of_the_distribution() -> None:
    """Beta(2, 2): a parabola, 6 λ (1 - λ), which is 1.5 in the middle."""
    (points,) = re.findall(r'points="(.*?)"', drawn(charts.beta_density(2, 2, [])))
    x, y = np.array([list(map(float, point.split(","))) for point in points.split()]).T
    lam, height = (x - x[0]) / (x[-1] - x[0]), y.max() - y
    assert np.abs(height / height.max() - 4 * lam * (1 - lam)).max() < 0.01


def test_several_sources_and_parts_of_classes(made: Made, tmp_path: Path) -> None:
    """Random images: shares of classes over two betons, and what is drawn adds up."""
    other = beton(tmp_path / "other.beton", ["roses", "palm"], [5, 6])
    pairs = {
        name: [
            PairedClass("roses", 0.9 - k / 10, 1, first=k),
            PairedClass("roses", 0.1, 0, domain=1) if k == 0 else PairedClass("palm", 0.2, 1, k, 1),
            *(PairedClass(s, 0.3, 1) for s in SOURCES[k + 1 : k + 2]),
            *(PairedClass(s, 0.3, 0) for s in SOURCES[-2:] * (k == 5)),
        ]
        for k, name in enumerate(TARGETS)
    }
    domains = [
        {"files": [b.path.name], "fingerprints": [b.fingerprint]} for b in (made.source, other)
    ]
    pairing = Pairing(pairs, {"seed": 3}, source={"domains": domains})
    path = write_report(pairing, made.target, [made.source, other], tmp_path / "r.html")
    found = rows(path.read_text())
    first = found[TARGETS[0]]
    assert 'data-images="11"' in first, "1 of 7 roses, all 5 of the other beton, 5 tulips"
    assert "other.beton" in first and "source.beton" in first
    assert ">0.264</td>" in first, "the mean over these images"
    sizes = ImageSizes(made.source.heights, made.source.widths)
    for k, name in enumerate(TARGETS):
        pool = SourcePool(made.source.labels, [[Draw(0, k, 1)]], sizes, seed=3)
        stored = made.source.data(int(pool.images[0])).reshape(40, 40, 3).astype(int)
        shown = pictures(re.findall(r"<li>.*?</li>", found[name], re.DOTALL)[0])
        assert len(shown) == 1 and np.abs(shown[0] - stored).mean() < 6
    assert first.count("<details>") == 0 and found[TARGETS[5]].count("<details>") == 1
    assert "1 more source class<" in found[TARGETS[5]]


def test_many_classes_have_fewer_pictures(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    for budget, expected in ((1e9, 3), (9e4, 2), (4e4, 1), (0, 0)):
        monkeypatch.setattr(report_pictures, "_PICTURE_BYTES", budget)
        path = tmp_path / f"{budget}.html"
        found = rows(write_report(made.pairing, made.target, made.source, path).read_text())
        sizes.append(path.stat().st_size)
        row = found[TARGETS[0]]
        assert len(pictures(row.split("<td")[0])) == expected
    assert sizes == sorted(sizes, reverse=True)


def test_a_beton_of_the_paired_classes_alone_will_do(made: Made, tmp_path: Path) -> None:
    """As `xmix convert --pairing` makes it: the page says that it is not the one paired."""
    used = made.pairing.source_classes
    part = beton(tmp_path / "part.beton", used, [2] * len(used))
    domains = [{"files": ["source.beton"], "fingerprints": [made.source.fingerprint]}]
    pairing = Pairing(made.pairing.pairs, source={"domains": domains})
    path = write_report(pairing, made.target, part, tmp_path / "r.html")
    assert "computed on other source betons" in section(path.read_text(), "provenance")
    path = write_report(pairing, made.target, made.source, path, overwrite=True)
    assert "computed on other" not in on_one_line(path.read_text())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"alpha": 0}, ValueError, "alpha is 0; .* above 0"),
        ({"beta": float("nan")}, ValueError, "beta is nan"),
        ({"alpha": float("inf")}, ValueError, "alpha is inf"),
        ({"alpha": "2"}, ValueError, "alpha is '2'; it must be a number"),
        ({"beta": None}, ValueError, "beta is None; it must be a number"),
        ({"pairing": "no.json"}, FileNotFoundError, "no.json"),
        ({"cosine": float("inf")}, ValueError, "'lonely' and source class 'roses' .* of inf; give"),
        ({"cosine": 1.5}, ValueError, "'lonely' and source class 'roses' .* of 1.5; give a number"),
        (
            {"cosine": float("nan")},
            ValueError,
            "no cosines to report: it was made without features",
        ),
        ({"path": "missing/r.html"}, FileNotFoundError, "missing: no such folder"),
        ({"path": "there.html"}, FileExistsError, "there.html: exists"),
        ({"target": "nowhere.beton"}, FileNotFoundError, "nowhere.beton: no such beton"),
        ({"pairing": {"other": "roses"}}, ValueError, "'other' is not in the target beton"),
        ({"pairing": {"lonely": "cactus"}}, ValueError, "'cactus', paired with 'lonely', is in no"),
        ({"pairing": {"lonely": "empty"}}, ValueError, "'empty', paired with 'lonely', has no im"),
        ({"target": "hollow.beton"}, ValueError, "target class 'gone' has no images"),
        ({"target": ["target.beton"] * 2}, ValueError, "two target classes are named 'lonely'"),
    ],
    ids=lambda x: str(x) if isinstance(x, dict) else "",
)
def test_bad_input_is_named_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, error: type, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    beton(Path("target.beton"), ["lonely"], [2])
    beton(Path("hollow.beton"), ["lonely", "gone"], [2, 0])
    beton(Path("source.beton"), ["roses", "empty"], [2, 0])
    Path("there.html").write_text("mine")
    before = sorted(Path().iterdir())
    options = {"target": "target.beton", "source": "source.beton", "path": "r.html", **change}
    names, cosine = options.pop("pairing", {"lonely": "roses"}), options.pop("cosine", 0.5)
    if options["target"] == "hollow.beton":
        names = {"lonely": "roses", "gone": "roses"}
    pairing = names
    if isinstance(names, dict):
        pairing = Pairing({t: [PairedClass(s, cosine, 2)] for t, s in names.items()})
    with pytest.raises(error, match=message):
        write_report(pairing, **options)
    assert sorted(Path().iterdir()) == before
    assert Path("there.html").read_text() == "mine"


def test_the_first_class_without_a_cosine_is_named(tmp_path: Path) -> None:
    target = beton(tmp_path / "t.beton", ["a", "b", "c"], [1, 1, 1])
    cosines = {"a": 0.5, "b": float("nan"), "c": float("nan")}
    pairing = Pairing({name: [PairedClass(name, cosine, 1)] for name, cosine in cosines.items()})
    with pytest.raises(
        ValueError, match="target class 'b' and source class 'b' have a cosine of nan"
    ):
        write_report(pairing, target, target, tmp_path / "r.html")


def test_a_pairing_comes_from_its_file_too(made: Made, tmp_path: Path) -> None:
    made.pairing.save(tmp_path / "p.json")
    for number, file in enumerate((tmp_path / "p.json", str(tmp_path / "p.json"))):
        path = write_report(file, made.target, made.source, tmp_path / f"{number}.html")
        assert rows(path.read_text()) == rows(made.text)


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    target = beton(tmp_path / "t.beton", ["a", "b"], [1, 1])
    source = beton(tmp_path / "s.beton", ["c", "d"], [1, 1])
    start, size = int(source.pointers[1]), int(source.sizes[1])
    with source.path.open("r+b") as stream:
        stream.seek(start + size // 2)
        stream.write(bytes(size // 4))
    pairing = Pairing({"a": [PairedClass("c", 0.5, 1)], "b": [PairedClass("d", 0.4, 1)]})
    with pytest.raises(BetonError, match=r"s\.beton: image 1 \(class 'd'\).*convert it again"):
        write_report(pairing, target, source, tmp_path / "r.html")
    assert not list(tmp_path.glob("r.html*"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real browser: Debian's Chromium, driven by Playwright."""
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="needs Playwright: pip install playwright"
    )
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("needs a browser: sudo apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path=found, args=["--no-sandbox", "--disable-gpu"]
        )
        yield launched
        launched.close()


class Visit:
    """A page that remembers everything it should not do."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.problems: list[str] = []
        note = self.problems.append
        self.page.on("console", lambda message: note(f"console: {message.text}"))
        self.page.on("pageerror", lambda error: note(f"error: {error}"))
        self.page.on("dialog", lambda dialog: (note(f"dialog: {dialog.message}"), dialog.dismiss()))
        own = path.as_uri()
        self.page.on("request", lambda r: r.url in (own, "data:,") or self._picture(r.url))
        self.page.goto(own)

    def _picture(self, url: str) -> None:
        if not url.startswith("data:image/"):
            self.problems.append(f"request: {url}")

    def __enter__(self) -> Any:
        return self.page

    def __exit__(self, kind: Any, *rest: Any) -> None:
        self.context.close()
        if kind is None:
            assert self.problems == []


def shown(page: Any) -> list[str]:
    """Target classes as the page has them now, hidden ones left out."""
    script = """rows => rows.filter(r => r.offsetHeight > 0)
                            .map(r => r.querySelector('.name').textContent)"""
    return list(page.locator("#pairs tbody tr").evaluate_all(script))


def natural(name: str) -> list[Any]:
    parts = re.split(r"(\d+)", name.lower())
    return [int(part) if part.isdigit() else part for part in parts]


def test_the_page_renders_and_names_stay_text(browser: Any, made: Made) -> None:
    with Visit(browser, made.path) as page:
        assert sorted(shown(page)) == sorted(TARGETS)
        assert page.locator("img[src=x], b").count() == 0
        assert "<img src=x onerror=alert(2)>" in page.locator("h1").inner_text()
        sizes = "images => images.map(i => i.loading = 'eager') && Promise.all(" + (
            "images.map(i => i.decode().then(() => i.naturalWidth)))"
        )
        assert min(page.locator("img").evaluate_all(sizes)) >= 6
        for chart in page.locator("svg").all():
            box = chart.bounding_box()
            assert box["width"] > 300 and box["height"] > 100


def test_every_column_sorts_both_ways(browser: Any, made: Made) -> None:
    pairs = made.pairing.pairs
    with Visit(browser, made.path) as page:
        assert shown(page) == sorted(TARGETS, key=lambda name: pairs[name][0].cosine)
        for key, of in (
            ("name", None),
            ("images", lambda name: pairs[name][0].images),
            ("cosine", lambda name: pairs[name][0].cosine),
        ):
            head = page.locator(f"th[data-key={key}]")
            for direction in ("ascending", "descending"):
                head.locator("button").click()
                assert head.get_attribute("aria-sort") == direction
                assert page.locator("th[aria-sort=none]").count() == 2
                if of is None:
                    digits = [name for name in shown(page) if name.startswith("class")]
                    expected = ["class 2", "class 10"]
                else:
                    digits, expected = shown(page), sorted(TARGETS, key=of)
                assert digits == (expected if direction == "ascending" else expected[::-1])


def test_search_filters_and_counts(browser: Any, made: Made) -> None:
    pairs = made.pairing.pairs
    with Visit(browser, made.path) as page:
        box, count = page.get_by_label("Search classes"), page.locator(".search output")
        assert count.inner_text() == "6 of 6 target classes"
        source = pairs["class 2"][0].name
        for typed, expected in (
            ("CLASS", {"class 2", "class 10"}),
            ("10 class", {"class 10"}),
            (source.upper(), {"class 2"}),
            ("犬", {"Ünïcode 犬"}),
            ("<b>", {'quoted "&" <b>bold</b>'}),
            ("nothing of that name", set()),
            ("", set(TARGETS)),
        ):
            box.fill(typed)
            assert set(shown(page)) == expected
            assert count.inner_text() == f"{len(expected)} of 6 target classes"
        box.fill("class")
        page.locator("th[data-key=images] button").click()
        assert set(shown(page)) == {"class 2", "class 10"}, "sorting keeps the search"


def test_the_matrix_tells_what_is_pointed_at(browser: Any, made: Made) -> None:
    similarity = made.pairing.similarity
    assert similarity is not None
    names = list(made.pairing.pairs)
    with Visit(browser, made.path) as page:
        cells, told = page.locator(".cells"), page.locator("#matrix output")
        cells.scroll_into_view_if_needed()
        box = cells.bounding_box()
        assert box["width"] == pytest.approx(box["height"], abs=1)
        for row, column in ((0, 5), (3, 3), (5, 0)):
            page.mouse.move(
                box["x"] + (column + 0.5) * box["width"] / 6,
                box["y"] + (row + 0.5) * box["height"] / 6,
            )
            own = " (its own pair)" if row == column else ""
            source = made.pairing.pairs[names[column]][0].name
            value = f"{similarity.matrix[row, column]:.3f}"
            assert told.inner_text() == f"{names[row]} with {source}{own}: {value}"
        cells.focus()
        for key in ("ArrowUp", "ArrowRight", "ArrowDown", "ArrowDown", "ArrowLeft"):
            page.keyboard.press(key)
        assert told.inner_text().startswith(
            f"{names[5]} with {made.pairing.pairs[names[0]][0].name}"
        )


def test_a_phone_shows_cards_without_scrolling_sideways(browser: Any, made: Made) -> None:
    phone = {"width": 390, "height": 844}
    with Visit(browser, made.path, viewport=phone, is_mobile=True, has_touch=True) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.evaluate("innerWidth") == 390
        beyond = "all => all.filter(e => e.getBoundingClientRect().right > 391).length"
        assert page.locator("body *").evaluate_all(beyond) == 0
        row = page.locator("#pairs tbody tr").first
        assert row.evaluate("row => getComputedStyle(row).display") == "block"
        tops = "all => all.map(e => e.getBoundingClientRect().top)"
        assert len(set(page.locator("th[data-key] button").evaluate_all(tops))) == 1
        page.locator("th[data-key=name] button").tap()
        assert [name for name in shown(page) if name[:5] == "class"] == ["class 2", "class 10"]
        page.get_by_label("Search classes").fill("class")
        assert set(shown(page)) == {"class 2", "class 10"}
        page.locator(".cells").tap(position={"x": 5, "y": 5})
        assert (
            page.locator("#matrix output").inner_text().startswith(next(iter(made.pairing.pairs)))
        )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_readers_choice(browser: Any, made: Made, scheme: Any) -> None:
    with Visit(browser, made.path, color_scheme=scheme) as page:
        style = "e => [getComputedStyle(e).backgroundColor, getComputedStyle(e).color]"
        back, ink = (
            max(map(int, re.findall(r"\d+", colour)[:3]))
            for colour in page.locator("body").evaluate(style)
        )
        assert (back < 60 and ink > 200) if scheme == "dark" else (back > 240 and ink < 60)


def test_without_scripts_only_the_controls_are_missing(browser: Any, made: Made) -> None:
    with Visit(browser, made.path, java_script_enabled=False) as page:
        assert page.locator("#pairs tbody tr").count() == len(TARGETS)
        assert not page.locator("#search").is_visible()
        assert page.locator(".cells img").is_visible()
