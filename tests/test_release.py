"""What a user gets: the release, its papers, the picture and the notebook."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from importlib.metadata import distribution
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import yaml
from packaging.requirements import Requirement
from PIL import Image
from processes import Server

import xmix_data
from xmix_data.demo import Glyphs

ROOT = Path(__file__).parents[1]
HERE = re.compile(r"/(?:home|root|tmp|work|var|usr|opt)/")
"""A path of a machine."""


def run(
    command: Sequence[str | Path], folder: Path, timeout: float = 300, **environment: str
) -> str:
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**clean, **environment},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# The release


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist of a copy of this tree, and the wheel of the sdist."""
    if not (ROOT / ".git").exists():
        pytest.skip("what belongs to the tree is known in a git checkout only")
    folder = tmp_path_factory.mktemp("release")
    listed = run(["git", "ls-files", "-z", "-co", "--exclude-standard"], ROOT).split("\0")
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "tree" / name).write_bytes((ROOT / name).read_bytes())
    ready = Path(sys.prefix) / ".xmix_data-test"  # this environment, and no other set-up
    run(["make", "release", f"VENV={sys.prefix}", "-o", ready], folder / "tree")
    (sdist,), (wheel,) = (
        list((folder / "tree" / "dist").glob(kind)) for kind in ("*.tar.gz", "*.whl")
    )
    return sdist, wheel


def needed(wheel: Path, extra: str) -> set[Path]:
    """Top-level files and folders of what the wheel asks for, and of what that asks for."""
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        text = archive.read(metadata).decode().partition("\n\n")[0]
    asked = [
        (Requirement(line), {extra}) for line in re.findall(r"^Requires-Dist: (.*)", text, re.M)
    ]
    seen, found = set[tuple[str, frozenset[str]]](), set[Path]()
    while asked:
        requirement, extras = asked.pop()
        if requirement.marker and not any(
            requirement.marker.evaluate({"extra": name}) for name in {"", *extras}
        ):
            continue
        key = requirement.name.lower(), frozenset(requirement.extras)
        if key in seen:
            continue
        seen.add(key)
        installed = distribution(requirement.name)
        asked += [(Requirement(line), set(key[1])) for line in installed.requires or []]
        site = Path(str(installed.locate_file("")))
        names = {file.parts[0] for file in installed.files or [] if file.parts[0] != ".."}
        found |= {site / name for name in names - {"__pycache__", "bin"}}
    return found


@pytest.fixture(scope="module")
def installed(release: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scripts of an environment that holds the wheel and what it asks for, and nothing else."""
    folder = tmp_path_factory.mktemp("empty") / "env"
    run([sys.executable, "-m", "venv", "--without-pip", folder], folder.parent)
    python = folder / "bin" / "python"
    wheel = release[1]
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    run([*pip, "--no-index", "--no-deps", wheel], folder.parent)
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run([python, "-c", code], folder.parent).strip())
    for path in needed(wheel, "demo"):
        if path.exists() and not (site / path.name).exists():
            (site / path.name).symlink_to(path)
    return folder / "bin"


def test_the_sdist_holds_what_the_build_needs_and_no_more(release: tuple[Path, Path]) -> None:
    with tarfile.open(release[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"setup.py", "LICENSE", "CHANGELOG.md", "CITATION.cff", "xmix_data/_jpeg.c"} <= names
    assert not [n for n in names if n.startswith(("tests", "benchmarks", "docs", "."))]
    assert not [n for n in names if re.search(r"\.(beton|so|png|jpe?g|json|pt)$", n, re.I)]


def test_the_wheel_holds_the_package_whole(release: tuple[Path, Path]) -> None:
    version = re.escape(xmix_data.__version__)
    assert re.fullmatch(rf"xmix_data-{version}-cp310-abi3-[\w.]+\.whl", release[1].name)
    with zipfile.ZipFile(release[1]) as archive:
        names = set(archive.namelist())
    tracked = run(["git", "ls-files", "-co", "--exclude-standard", "xmix_data"], ROOT).split("\n")
    assert {n for n in tracked if n and not n.endswith(".c") and (ROOT / n).exists()} <= names
    assert [n for n in names if re.fullmatch(r"xmix_data/_jpeg\..*so", n)]
    assert [n for n in names if n.endswith("licenses/LICENSE")]
    assert [n for n in names if n.endswith("licenses/NOTICE")]
    assert {re.split("[-/]", n)[0] for n in names} == {"xmix_data", "xmix_data.libs"}


def test_the_wheel_brings_libjpeg_and_asks_for_an_old_libc(
    release: tuple[Path, Path], installed: Path, tmp_path: Path
) -> None:
    """So that it needs neither a compiler nor a package of the system."""
    tags = [int(minor) for minor in re.findall(r"manylinux_2_(\d+)_", release[1].name)]
    assert tags and max(tags) <= 28, release[1].name
    with zipfile.ZipFile(release[1]) as archive:
        assert [n for n in archive.namelist() if re.fullmatch(r"xmix_data\.libs/libjpeg-.*", n)]
    code = (
        "import xmix_data.jpeg as j; j.Decoder()\n"
        "print(*{line.split()[-1] for line in open('/proc/self/maps') if 'libjpeg' in line})"
    )
    (path,) = run([installed / "python", "-c", code], tmp_path, PATH="/nowhere").split()
    assert Path(path).is_relative_to(installed.parent)


def test_the_wheel_asks_for_nothing_that_is_compiled_where_it_is_installed(
    release: tuple[Path, Path],
) -> None:
    with zipfile.ZipFile(release[1]) as archive:
        (metadata,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        text = archive.read(metadata).decode().partition("\n\n")[0]
    asked = [Requirement(line) for line in re.findall(r"^Requires-Dist: (.*)", text, re.M)]
    always = {r.name for r in asked if r.marker is None or "extra" not in str(r.marker)}
    assert "torch" in always and not always & {"ffcv", "setuptools"}
    (ffcv,) = (r for r in asked if r.name == "ffcv" and r.marker and '"ffcv"' in str(r.marker))
    assert ffcv.specifier


def test_a_build_without_the_header_says_so_in_a_line(
    release: tuple[Path, Path], tmp_path: Path
) -> None:
    with tarfile.open(release[0]) as archive:
        archive.extractall(tmp_path, filter="data")
    (tree,) = tmp_path.iterdir()
    for compiler, problem in (("gcc -nostdinc", "jpeglib.h"), ("no-compiler", "C compiler")):
        done = subprocess.run(
            [sys.executable, "setup.py", "--version"],
            cwd=tree,
            capture_output=True,
            text=True,
            env={**os.environ, "CC": compiler},
        )
        assert done.returncode == 1 and problem in done.stderr
        assert done.stderr.count("\n") == 1 and "apt-get install gcc libjpeg-dev" in done.stderr


DEMO = """
from pathlib import Path
from xmix_data.demo.steps import _run, _Settings
from xmix_data.training import Recipe
short = Recipe(iterations=4, batch_size=15, crop=28, flip=False)
_run(Path("demo"), 1, _Settings(variations=1, per_class=3, pretraining=short, fine_tuning=short,
                                measured_pairs=60))
"""
"""The whole of `xmix demo`, each step in small; as written it trains for a minute."""


@pytest.fixture(scope="module")
def demo(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What the demo said in that environment, and the folder that it wrote."""
    folder = tmp_path_factory.mktemp("elsewhere")
    return run([installed / "python", "-c", DEMO], folder), folder / "demo"


IMPORTS = """
import importlib, pkgutil, sys, xmix_data
for module in pkgutil.walk_packages(xmix_data.__path__, "xmix_data."):
    # A command, a library of C, and what needs FFCV.
    if not module.name.endswith(("__main__", "_jpeg", "xmix_data.ffcv")):
        importlib.import_module(module.name)
print(xmix_data.__file__, xmix_data.__version__, "torch" in sys.modules)
print(importlib.util.find_spec("pytest"))
"""


def test_the_wheel_imports_with_no_more_than_it_asks_for(installed: Path, tmp_path: Path) -> None:
    """All of its modules, outside of the checkout."""
    file, version, torch, pytest = run([installed / "python", "-c", IMPORTS], tmp_path).split()
    assert Path(file).is_relative_to(installed.parent) and not Path(file).is_relative_to(ROOT)
    assert (version, torch, pytest) == (xmix_data.__version__, "True", "None")
    assert run([installed / "xmix", "--version"], tmp_path) == f"xmix_data {version}\n"


@pytest.mark.slow
def test_the_wheel_runs_the_demo_outside_of_the_checkout(
    installed: Path, demo: tuple[str, Path], tmp_path: Path
) -> None:
    said, folder = demo
    assert re.search(r"seed 0: plain [\d.]+ %, XMixup [\d.]+ %", said) and "Done in" in said
    inspect = [installed / "xmix", "inspect", folder / "source.beton", "--verify", "--json"]
    assert json.loads(run(inspect, tmp_path))["num_samples"] == len(Glyphs(variations=1))


PYTHONS = ("3.10", "3.11", "3.12", "3.13")
CHECKED = ("contract", "convert", "pairing", "training")


def interpreter(version: str) -> Path:
    """A Python of a version, on the PATH or of pyenv."""
    found = shutil.which(f"python{version}")
    if found and subprocess.run([found, "-c", ""], capture_output=True).returncode == 0:
        return Path(found)  # pyenv puts a script there that may refuse
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    paths = sorted((pyenv / "versions").glob(f"{version}.*/bin/python"))
    if not paths:
        pytest.skip(f"there is no Python {version}, neither on the PATH nor in {pyenv}")
    return paths[-1]


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[Path]:
    """Place of an environment that goes when its test ends: with torch it has some gigabytes."""
    yield tmp_path / "env"
    shutil.rmtree(tmp_path / "env", ignore_errors=True)


def lowest(wheel: Path, *extras: str) -> list[str]:
    """The lowest version of each package that a wheel asks for, as pip takes it."""
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        text = archive.read(metadata).decode()
    found = []
    for line in re.findall(r"^Requires-Dist: (.*)$", text, re.M):
        wanted = Requirement(line)
        if wanted.marker and not any(wanted.marker.evaluate({"extra": e}) for e in extras):
            continue
        (bound,) = (s.version for s in wanted.specifier if s.operator == ">=")
        found.append(f"{wanted.name}=={bound}")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("bounds", ["newest", "lowest"])
@pytest.mark.parametrize("version", PYTHONS)
def test_the_wheel_works_from_nothing_on_every_python(
    version: str, bounds: str, release: tuple[Path, Path], environment: Path
) -> None:
    """What it asks for comes from the package index, with no compiler and no other program."""
    if bounds == "lowest" and version != PYTHONS[0]:
        pytest.skip("packages that old have no wheels for a newer Python")
    run([interpreter(version), "-m", "venv", environment], environment.parent)
    python = environment / "bin" / "python"
    wanted = [f"{release[1]}[dali,demo]", "hypothesis", "pytest", "tensorboard"]
    if bounds == "lowest":
        wanted += lowest(release[1], "dali", "demo")
    pip = [python, "-m", "pip", "install", "--quiet", "--only-binary=:all:", *wanted]
    run(pip, environment.parent, timeout=1800, PATH=str(environment / "bin"), PKG_CONFIG="none")
    folder = environment.parent / "elsewhere"
    folder.mkdir()
    assert "Done in" in run([python, "-c", DEMO], folder, PATH=str(environment / "bin"))
    files = [ROOT / "tests" / f"test_{name}.py" for name in CHECKED]
    tests = [python, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", *files]
    said = run(tests, folder, timeout=1800)
    print(f"Python {version}, {bounds} versions: {said.splitlines()[-1]}")
    assert re.search(r"\d+ passed", said) and not re.search(r"failed|error", said.splitlines()[-1])


def test_the_wheel_says_which_pythons_it_is_tried_on(release: tuple[Path, Path]) -> None:
    """The next one is named as well: all that the wheel asks for can be had for it."""
    with zipfile.ZipFile(release[1]) as archive:
        (metadata,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        text = archive.read(metadata).decode().partition("\n\n")[0]
    named = re.findall(r"^Classifier: Programming Language :: Python :: (3\.\d+)$", text, re.M)
    assert named == [*PYTHONS, "3.14"] and "\nRequires-Python: >=3.10\n" in text


# Its papers


def test_citation_names_the_version_and_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0" and citation["message"]
    assert citation["title"] == "xmix_data" and citation["authors"]
    assert str(citation["version"]) == xmix_data.__version__
    assert citation["license"] == "Apache-2.0"
    (paper,) = citation["references"]
    assert paper["type"] == "article" and "XMixup" in paper["title"] and len(paper["authors"]) == 5
    assert paper["url"].endswith(paper["identifiers"][0]["value"].removeprefix("arXiv:"))


def test_the_changelog_begins_with_this_version() -> None:
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert headings[0] == xmix_data.__version__


def test_the_workflow_only_calls_the_makefile() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == ["make test"]
    assert job["strategy"]["matrix"]["python"][0] == "3.10"


# The picture


@pytest.fixture(scope="module")
def pictures() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pictures", ROOT / "benchmarks" / "pictures.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_picture(svg: str) -> None:
    """Rows of target, source and their mix by the weight that is written below them."""
    tiles: list[npt.NDArray[np.float64]] = []
    for kind, data in re.findall(r'<image [^>]*href="data:([\w/]+);base64,([^"]+)"', svg):
        assert kind == "image/png"
        tiles.append(np.asarray(Image.open(io.BytesIO(base64.b64decode(data))), float))
    weights = [float(w) for w in re.findall(r"([\d.]+) × digit", svg)]
    assert len(tiles) == 3 * len(weights) == 9
    for (target, source, mixed), lam in zip(
        zip(*[iter(tiles)] * 3, strict=True), weights, strict=True
    ):
        assert target.shape == (28, 28) and min(np.ptp(t) for t in (target, source, mixed)) > 50
        # A weight of two decimals is off by up to 0.005, each rounding by 0.5.
        assert np.abs(lam * target + (1 - lam) * source - mixed).max() < 0.005 * 255 + 1.5
    assert "http" not in svg.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert "prefers-color-scheme: dark" in svg and len(svg) < 100_000 and not HERE.search(svg)


def test_the_picture_shows_what_the_loader_mixes(pictures: ModuleType) -> None:
    check_picture(pictures.PICTURE.read_text(encoding="utf-8"))


def test_the_picture_is_drawn_anew(
    pictures: ModuleType, forked: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = forked.run("-c", DEMO, timeout=120)
    assert done.returncode == 0, done.stderr
    svg = pictures.draw(pictures.samples(tmp_path / "demo"))
    check_picture(svg)
    same = re.compile(r'base64,[^"]+|[\d.]+ × (?:digit|glyph) \w')
    assert same.sub("", svg) == same.sub("", pictures.PICTURE.read_text(encoding="utf-8"))


# The notebook


def outputs(notebook: Any) -> list[Any]:
    return [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]


def check_notebook(notebook: Any) -> None:
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    said = outputs(notebook)
    assert not [o for o in said if o.output_type == "error" or o.get("name") == "stderr"]
    assert [o for o in said if "image/png" in o.get("data", {})]
    texts = [o.get("text", "") + o.get("data", {}).get("text/plain", "") for o in said]
    assert not HERE.search("\n".join(texts))
    assert re.search(r"top-1 [\d.]+ %", "\n".join(texts))


def test_the_notebook_was_run_from_top_to_bottom(pictures: ModuleType) -> None:
    import nbformat

    notebook = nbformat.read(pictures.NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    check_notebook(notebook)
    assert pictures.NOTEBOOK.stat().st_size < 300_000


def test_the_code_of_the_notebook_runs(pictures: ModuleType, forked: Server) -> None:
    """Cell after cell, with fewer glyphs and epochs."""
    import nbformat

    cells = nbformat.read(pictures.NOTEBOOK, as_version=4).cells
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    for name, many in (("variations=", 4), ("range(", 8), ("range(", 50)):
        assert f"{name}{many}" in code
        code = code.replace(f"{name}{many}", f"{name}1")
    done = forked.run("-c", code, timeout=120)
    assert done.returncode == 0, done.stderr
    assert re.search(r"top-1 [\d.]+ % of \d+ digits", done.stdout) and not done.stderr


@pytest.mark.slow
def test_the_notebook_runs(pictures: ModuleType) -> None:
    check_notebook(pictures.execute(pictures.NOTEBOOK))
