"""The documentation: it builds, its code runs, its commands parse, its messages are real."""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import CodeType
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Betons, reversed_pairing
from pictures import Images, written
from PIL import Image
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock

import xmix_data
from xmix_data import (
    Beton,
    CenterCrop,
    ImageLoader,
    Pairing,
    XMixLoader,
    backends,
    class_centroids,
    images,
)
from xmix_data.cli import _parser, main
from xmix_data.commands.train import _with_options
from xmix_data.methods import METHODS, FineTune
from xmix_data.training import Recipe, fit

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
DOCUMENTED = [
    "xmix_data",
    *(f"xmix_data.{n}" for n in ("methods", "training", "backbones", "images")),
]

ANYTHING = "…"
"""What varies in a message."""


def names(paths: Sequence[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def code_blocks(page: Path, *languages: str) -> list[str]:
    """Fenced blocks, with the files that they take in."""
    text = page.read_text(encoding="utf-8")
    fenced = re.findall(r"^```(?:(\w+)| \{ \.(\w+) \})\n(.*?)^```", text, re.S | re.M)
    return [
        re.sub(r'^--8<-- "(.*)"$', lambda m: (ROOT / m[1]).read_text(), code, flags=re.M)
        for plain, braced, code in fenced
        if (plain or braced) in languages
    ]


# The site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("material", reason="needs mkdocs-material: pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_builds_strictly_with_every_page(site: Path) -> None:
    for page in PAGES[1:]:
        built = site / page.relative_to(DOCS).with_suffix(".html")
        assert built.is_file(), f"{page} is not in the site"
    assert 'id="xmix_data.XMixLoader.state_dict"' in (site / "reference/loaders.html").read_text()


def test_the_site_loads_nothing_from_another_host(site: Path) -> None:
    loads = re.compile(
        r"""<(?:script|link|img|iframe|source)\b[^>]*?(?:src|href)=["']?([^"' >]+)"""
    )
    for page in site.rglob("*.html"):
        for address in loads.findall(page.read_text(encoding="utf-8")):
            assert not re.match(r"(?:https?:)?//", address), f"{page}: {address}"


def test_the_pages_show_no_markup(site: Path) -> None:
    """A docstring's example that is not indented, or a fence that is not closed."""
    for page in PAGES[1:]:
        built = (site / page.relative_to(DOCS).with_suffix(".html")).read_text(encoding="utf-8")
        (article,) = re.findall(r"<article.*?</article>", built, re.S)
        running = re.sub(r"<(pre|code)\b.*?</\1>|<[^>]+>", "", article, flags=re.S)
        assert "`" not in running and "::" not in running, page


def test_links_work_in_the_file_view_too() -> None:
    """mkdocs checks those of the site; the README and the examples are beside it."""
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page}: {target}"


# The reference


def test_every_public_name_is_in_the_reference() -> None:
    pages = sorted((DOCS / "reference").glob("*.md"))
    listed = re.findall(r"^::: (\S+)", "\n".join(p.read_text() for p in pages), re.M)
    assert len(set(listed)) == len(listed)
    for module in DOCUMENTED:
        for name in importlib.import_module(module).__all__:
            if f"{module}.{name}" not in DOCUMENTED:
                assert f"{module}.{name}" in listed
    for name in listed:  # and names nothing that is not there
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name


# Code


def compiled(code: str, name: str) -> CodeType:
    return compile(code, name, "exec", dont_inherit=True)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the pages speak of, large enough for crops of 224."""
    folder = tmp_path_factory.mktemp("docs")
    made = {}
    for name, counts in (("target", [4, 4]), ("source", [3, 4, 3]), ("test", [2, 2])):
        images = Images(counts, name[0], size=(230, 230), seed=len(name))
        images.classes = [f"{'s' if name == 'source' else 't'}{i}" for i in range(len(counts))]
        made[name] = written(images, folder / f"{name}.beton", image_size=230, encoding="raw")
    reversed_pairing(made["target"], made["source"]).save(folder / "pairing.json")
    for name, other in (("target", "T"), ("source", "S"), ("test", "T2")):
        for suffix in (".beton", ".beton.json"):
            (folder / f"{other}{suffix}").symlink_to(folder / f"{name}{suffix}")
    return folder


SMALLER = {
    "batch_size=48": "batch_size=4",
    'resnet50(weights="DEFAULT")': "small_network()",
    "resnet50()": "small_network()",
    '"resnet50"': "small_network()",
    "iterations=9000": "iterations=2, batch_size=4",
    'device="cuda"': 'device="cpu"',
}
"""What a page says, and what a test has time for: fewer steps with another network."""


@pytest.mark.parametrize(
    "page", names([p for p in PAGES[1:] if code_blocks(p, "python")])
)  # README: test_package.py
def test_the_code_of_a_page_runs(
    page: str, workplace: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Block after block, in a folder with the files that it names.

    A block that is a whole example is left to test_examples.py.
    """
    monkeypatch.chdir(tmp_path)
    for file in workplace.iterdir():
        (tmp_path / file.name).symlink_to(file)
    job = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    torch.manual_seed(0)
    namespace: dict[str, Any] = {
        "torch": torch,
        "small_network": lambda: ResNet(BasicBlock, [1, 1, 1, 1]),
        "model": torch.nn.Sequential(
            torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(12, 12)
        ),
        "features": 12,
        "target_head": torch.nn.Linear(12, 2),
    }
    for number, code in enumerate(code_blocks(ROOT / page, "python"), 1):
        if "__main__" in code:
            continue
        for said, done in SMALLER.items():
            code = code.replace(said, done)
        exec(compiled(code, f"{page}, block {number}"), namespace)


@pytest.mark.parametrize("page", names([p for p in PAGES if code_blocks(p, "python", "py")]))
def test_all_code_compiles(page: str) -> None:
    for number, code in enumerate(code_blocks(ROOT / page, "python", "py"), 1):
        assert compiled(code, f"{page}, block {number}").co_names


# One file each


KINDS = {
    "methods": {cls.__module__.rpartition(".")[2] for cls in METHODS.values()},
    "images": set(images.NAMED.values()),
    "backends": set(backends.BACKENDS),
}
"""Packages whose modules are found by a name in a registry."""

KNOWN_ELSEWHERE = {
    ("xmix_data/beton/source.py", "images.huggingface"),  # its datasets are objects, and folders
}


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("kind", KINDS)
def test_each_of_a_kind_is_one_file_that_the_rest_does_not_know(kind: str) -> None:
    modules = KINDS[kind]
    known = {
        (path, name.removeprefix("xmix_data."))
        for path, tree in sources()
        if not path.startswith(f"xmix_data/{kind}/")
        for name in imported(tree)
        if name in {f"xmix_data.{kind}.{module}" for module in modules}
    }
    assert known == {(path, name) for path, name in KNOWN_ELSEWHERE if name.startswith(kind)}
    assert all((ROOT / "xmix_data" / kind / f"{module}.py").is_file() for module in modules)
    assert len(modules) >= 3


def block_with(page: str, text: str) -> str:
    (code,) = (code for code in code_blocks(DOCS / page, "python") if text in code)
    return code


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Makes a module of a package of code that a page shows, as if its file lay there."""
    made = []

    def put(module: str, code: str) -> None:
        package, _, name = module.rpartition(".")
        folder = tmp_path / package
        folder.mkdir()
        (folder / f"{name}.py").write_text(code, encoding="utf-8")
        owner = importlib.import_module(package)
        monkeypatch.setattr(owner, "__path__", [*owner.__path__, str(folder)])
        made.append(module)

    yield put
    for module in made:
        sys.modules.pop(module, None)


def test_a_source_is_one_file_and_its_name(
    put: Callable[[str, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put("xmix_data.images.table", block_with("architecture.md", "open_source"))
    monkeypatch.setitem(images.NAMED, "table", "table")
    rows = ["file,label,split"]
    for number, (label, split) in enumerate([("b", "test"), ("a", "train"), ("a", "test")]):
        colour = (90 * number, 10, 200)
        Image.new("RGB", (30, 24), colour).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{label},{split}")
    (tmp_path / "images.csv").write_text("\n".join(rows) + "\n")
    out = tmp_path / "out.beton"
    options = ["--split", "test", "--image-size", "16", "--encoding", "raw", "--workers", "0"]
    assert main(["convert", f"table:{tmp_path / 'images.csv'}", str(out), *options]) == 0
    beton = Beton(out)
    assert beton.class_names == ["a", "b"] and beton.labels.tolist() == [1, 0]
    assert beton.data(1)[:3].tolist() == [180, 10, 200]


def test_a_method_is_one_file_and_its_name() -> None:
    """That it trains is the page's own code; its options are found by --set."""
    namespace: dict[str, Any] = {}
    code, _, _ = block_with("architecture.md", "class Smoothed").partition("classifier =")
    exec(compiled(code, "architecture.md"), namespace)
    method = _with_options(namespace["Smoothed"], ["smoothing=0.25"])
    assert method.name == "smoothed" and method.smoothing == 0.25
    assert method.phases == FineTune().phases


def test_a_backend_is_one_file_and_its_name(
    put: Callable[[str, str], None], betons: Betons, monkeypatch: pytest.MonkeyPatch
) -> None:
    put("xmix_data.backends.whole", block_with("architecture.md", "class WholeBackend"))
    monkeypatch.setitem(backends.BACKENDS, "whole", "WholeBackend")

    def epoch(backend: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
        options: dict[str, Any] = {"batch_size": 4, "crop": CenterCrop(40), "shuffle": True}
        with ImageLoader(betons.target_raw, dtype=torch.uint8, backend=backend, **options) as made:
            return list(made)

    for ours, reference in zip(epoch("whole"), epoch("reference"), strict=True):
        assert torch.equal(ours[0], reference[0]) and torch.equal(ours[1], reference[1])
        assert ours[0].is_contiguous(memory_format=torch.channels_last)


# Commands


def commands(page: Path) -> Iterator[tuple[str, bool]]:
    """Arguments of each ``xmix`` that a page names, and whether the line is whole.

    In indented lines commands are whole, unless they say ``...``; in running text they name a
    command and some of its options.
    """
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        if line.startswith("    "):
            found = re.match(r"\s+(?:xmix|torchrun .*-m xmix_data) (.*)", line)
            if found:
                yield found[1], "..." not in found[1]
        else:
            for spoken in re.findall(r"`(?:xmix|torchrun [^`]*-m xmix_data) ([^`]*)`", line):
                yield spoken, False


def parsers() -> dict[str, argparse.ArgumentParser]:
    actions = _parser()._subparsers
    assert actions is not None
    (choices,) = [a.choices for a in actions._actions if isinstance(a.choices, dict)]
    return choices


def test_every_command_of_the_docs_parses(capsys: pytest.CaptureFixture[str]) -> None:
    known, whole = parsers(), 0
    for page in PAGES:
        for text, complete in commands(page):
            arguments = shlex.split(text, comments=True)
            if complete and "--help" not in arguments:
                with contextlib.suppress(SystemExit):
                    _parser().parse_args(arguments)
                    whole += 1
                    continue
                pytest.fail(f"{page}: xmix {text}\n{capsys.readouterr().err}")
            if arguments[0] in ("COMMAND", "..."):
                continue
            assert arguments[0] in known, f"{page}: xmix {text}"
            options = known[arguments[0]]._option_string_actions
            for argument in arguments[1:]:
                if argument.startswith("-"):
                    assert argument.partition("=")[0] in options, f"{page}: xmix {text}"
    assert whole > 40


def test_every_command_is_in_the_reference() -> None:
    page = (DOCS / "reference" / "commands.md").read_text()
    assert set(re.findall(r"^\| `xmix (\w+)`", page, re.M)) == set(parsers())


# Messages


def words(node: ast.AST) -> str | None:
    """A text of the source, with `ANYTHING` for what is put in."""
    if isinstance(node, ast.JoinedStr):
        text = "".join(
            str(part.value) if isinstance(part, ast.Constant) else ANYTHING for part in node.values
        )
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        text = re.sub(r"%[sd]", ANYTHING, node.value)
    else:
        return None
    return " ".join(text.split())


def sources() -> list[tuple[str, ast.Module]]:
    paths = [ROOT / "setup.py", *sorted((ROOT / "xmix_data").rglob("*.py"))]
    return [(str(p.relative_to(ROOT)), ast.parse(p.read_text(encoding="utf-8"))) for p in paths]


def troubles() -> list[str]:
    """The messages that the page lists."""
    text = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    table, _, _ = text.partition("## No message, and still wrong")
    cells = re.findall(r"^\| (`.*?`) \| ", table, re.M)
    return [message for cell in cells for message in re.findall(r"`([^`]+)`", cell)]


def pattern(message: str) -> str:
    """To search a message of one line by."""
    return ".*".join(re.escape(part) for part in message.strip(ANYTHING).split(ANYTHING))


def test_every_message_that_is_listed_is_one_of_the_program() -> None:
    nodes = (node for _, tree in sources() for node in ast.walk(tree))
    texts = "\n".join({text for node in nodes if (text := words(node))})
    listed = troubles()
    assert len(listed) > 150
    unknown = [message for message in listed if not re.search(pattern(message), texts)]
    assert not unknown, "the program does not say\n" + "\n".join(unknown)


# Formats


def keys(document: Any) -> set[str]:
    return {str(key) for key in document}


def test_the_formats_page_names_every_key(tmp_path: Path) -> None:
    page = (DOCS / "formats.md").read_text(encoding="utf-8")
    parts = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", page, re.S | re.M))

    def told(title: str) -> set[str]:
        (text,) = (text for name, text in parts.items() if title in name)
        return set(re.findall(r"`([\w.]+)`", text))

    target, source = (
        written(Images(counts, name[0], size=(24, 24)), tmp_path / f"{name}.beton", image_size=24)
        for name, counts in (("target", [3, 3]), ("source", [3, 3, 3]))
    )
    manifest = json.loads((tmp_path / "target.beton.json").read_text())
    assert keys(manifest) <= told("manifest") >= {"index", "count", "set", "path", "reason"}

    network = torch.nn.Sequential(
        torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(12, 4)
    )
    made = [class_centroids(b, network, crop=CenterCrop(16)) for b in (target, source)]
    made[0].save(tmp_path / "centroids.npz")
    with np.load(tmp_path / "centroids.npz") as arrays:
        assert keys(arrays) | keys(json.loads(str(arrays["meta"]))) <= told("Centroids")

    pairing: Pairing = xmix_data.pair_classes(*made, num_images=4)
    pairing.save(tmp_path / "pairing.json")
    document = json.loads((tmp_path / "pairing.json").read_text())
    inner = [document["pairs"][0], document["similarity"], document["source"]]
    inner += [document["source"]["domains"][0], *document["pairs"][0]["sources"]]
    assert keys(document).union(*map(keys, inner)) - {"domains"} <= told("PAIRING.json")

    with XMixLoader(target, source, pairing, batch_size=2, crop=xmix_data.RandomCrop(16)) as loader:
        assert keys(loader.state_dict()) == told("loader's state") - {"state_dict"}

    recipe = Recipe(iterations=1, batch_size=2, crop=16)
    fit(FineTune(), network, target, test=target, recipe=recipe, output=tmp_path / "run")
    saved = [
        torch.load(tmp_path / "run" / f"{n}.pt", weights_only=True) for n in ("checkpoint", "model")
    ]
    results = [json.loads((tmp_path / "run" / "result.json").read_text())]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    results += [json.loads(line) for line in lines]
    assert len(lines) == 2
    assert set[str]().union(*map(keys, saved + results + [saved[0]["identity"]])) <= told(
        "xmix train"
    )
    assert Beton(target.path).num_samples == 6
