"""The map of docs/architecture.md is the package, and its order is the direction of imports."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "xmix_data"
FILES = sorted(PACKAGE.rglob("*.py"))


def module(path: Path) -> str:
    """Name of a file's module; a package's is its face."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def tree() -> list[str]:
    """The modules of the map, in its order."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    text = text.partition("<!-- tree -->")[2].partition("<!-- end of tree -->")[0]
    modules, folder = [], ""
    for indent, name in re.findall(r"^( +)(\w+(?:\.py|/))", text, re.MULTILINE):
        assert len(indent) in (4, 8), name
        if len(indent) == 4:
            folder = ""
        if name.endswith("/"):
            folder = name.removesuffix("/") + "."
        else:
            modules.append(f"xmix_data.{folder}{name.removesuffix('.py')}")
    return modules


def statements(path: Path) -> Iterator[ast.stmt]:
    """All statements but those for type checkers."""
    todo: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.stmt):
            yield node
        todo += ast.iter_child_nodes(node)


def imported(path: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of what a file imports from the package."""
    for node in statements(path):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("xmix_data"):
            for alias in node.names:
                yield str(node.module), alias.name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("xmix_data"):
                    yield alias.name, ""


def test_every_file_is_on_the_map() -> None:
    files = {module(path) for path in FILES if path.name != "__init__.py"}
    assert len(tree()) == len(set(tree()))
    assert set(tree()) == files


def test_the_maps_order_is_the_direction_of_imports() -> None:
    places = {name: place for place, name in enumerate(tree())}
    for name in list(places):  # a face is there when all of its package is
        package = name.rpartition(".")[0]
        if package != "xmix_data":
            places[package] = max(places.get(package, 0), places[name])
    wrong = []
    for path in FILES:
        own = module(path)
        for source, name in imported(path):
            used = f"{source}.{name}" if f"{source}.{name}" in places else source
            if path.name != "__init__.py" and used in places and places[used] >= places[own]:
                wrong.append(f"{own} uses {used}, which the map has below it")
    assert not wrong, "\n".join(wrong)


def test_what_begins_with_an_underscore_stays_in_its_file() -> None:
    taken = []
    for path in [*FILES, *sorted((ROOT / "benchmarks").rglob("*.py"))]:
        own, modules = module(path), set()
        for source, name in imported(path):
            if name.startswith("_") and not name.startswith("__"):
                taken.append(f"{own} imports {source}.{name}")
            if (PACKAGE.parent / source.replace(".", "/") / f"{name}.py").exists():
                modules.add(name)
        for node in statements(path):
            for part in ast.walk(node) if PACKAGE in path.parents else ():
                if (
                    isinstance(part, ast.Attribute)
                    and re.match(r"_[a-z]", part.attr)
                    and isinstance(part.value, ast.Name)
                    and part.value.id in modules
                ):
                    taken.append(f"{own} uses {ast.unparse(part)}")
    assert not taken, "\n".join(taken)


@pytest.mark.parametrize("folder", ["benchmarks", "tests"])
def test_scripts_import_one_way(folder: str) -> None:
    """No circle among the files of a folder that is no package."""
    paths = {path.stem: path for path in (ROOT / folder).glob("*.py")}
    graph: dict[str, set[str]] = {}
    for name, path in paths.items():
        used = graph.setdefault(name, set())
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module in paths:
                used.add(str(node.module))
            elif isinstance(node, ast.Import):
                used |= {alias.name for alias in node.names if alias.name in paths}
    TopologicalSorter(graph).prepare()  # raises where there is a circle
