"""Our lines for other people's training code: applied, counted, and bound to what they are for."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest

CLIENTS = Path(__file__).parents[1] / "benchmarks" / "clients"
sys.path.append(str(CLIENTS))
import edits  # noqa: E402

THEIRS = (
    "import torch\n\nloader = DataLoader(\n    dataset,\n)\nfor batch in loader:\n    step(batch)\n"
)
OURS = """@ src/train.py 3-5
loader = XMixLoader(
    paths)
@ src/train.py 2-1
import xmix_data
@ src/train.py 8-7
    print()

@ src/other.py 1-1
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name, text in (("train.py", THEIRS), ("other.py", "a\nb\n")):
        path = tmp_path / "theirs" / "src" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "theirs"


def test_edits_are_applied_and_counted_as_git_counts(checkout: Path, tmp_path: Path) -> None:
    ours = tmp_path / "ours"
    (ours / "src").mkdir(parents=True)
    for path in checkout.glob("src/*"):
        (ours / "src" / path.name).write_text(path.read_text())
    parsed = edits.parse(OURS)
    edits.apply(ours, parsed)
    assert (ours / "src" / "train.py").read_text() == (
        "import torch\nimport xmix_data\n\nloader = XMixLoader(\n    paths)\n"
        "for batch in loader:\n    step(batch)\n    print()\n\n"
    )
    assert (ours / "src" / "other.py").read_text() == "b\n"
    files = [edit.file for edit in parsed]
    assert edits.changed_lines(checkout, ours, files) == {
        "src/train.py": (5, 3),
        "src/other.py": (0, 1),
    }
    assert edits.changed_lines(checkout, checkout, files) == {
        "src/train.py": (0, 0),
        "src/other.py": (0, 0),
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("new line\n", "begin with '@ FILE FIRST-LAST'"),
        ("@ a.py 5-3\n", "LAST = FIRST - 1 to insert"),
        ("@ a.py 0-0\n", "LAST = FIRST - 1 to insert"),
        ("@ a.py 3\n", "LAST = FIRST - 1 to insert"),
    ],
)
def test_a_place_that_cannot_be_is_an_error(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        edits.parse(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "@ src/train.py 3-5\nx\n@ src/train.py 5-6\ny\n",
            "two edits of src/train.py change line 5",
        ),
        ("@ src/train.py 7-8\nx\n", "has 7 lines, and an edit is of 8"),
    ],
)
def test_edits_that_do_not_fit_are_an_error(checkout: Path, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        edits.apply(checkout, edits.parse(text))
    assert (checkout / "src" / "train.py").read_text() == THEIRS


def test_another_version_of_a_file_is_one_clear_error(checkout: Path) -> None:
    right = {"src/train.py": hashlib.sha256(THEIRS.encode()).hexdigest()}
    edits.check(checkout, right, "example.org/repository at commit 1")
    (checkout / "src" / "train.py").write_text(THEIRS + "#\n")
    with pytest.raises(ValueError, match=r"train\.py is not .* check out .* at commit 1"):
        edits.check(checkout, right, "example.org/repository at commit 1")
    (checkout / "src" / "train.py").unlink()
    with pytest.raises(ValueError, match="missing"):
        edits.check(checkout, right, "example.org/repository at commit 1")


@pytest.mark.parametrize(
    "client", sorted(path.parent.name for path in CLIENTS.glob("*/client.json"))
)
def test_every_client_is_whole(client: str) -> None:
    """Edits and hashes name the same files, and the committed result is of these very edits."""
    setup = json.loads((CLIENTS / client / "client.json").read_text())
    port = CLIENTS / client / "port.txt"
    ours = edits.parse((CLIENTS / client / "edits.txt").read_text())
    ports = edits.parse(port.read_text()) if port.exists() else []
    assert {edit.file for edit in [*ours, *ports]} == set(setup["files"])
    assert all(len(digest) == 64 for digest in setup["files"].values())
    result = json.loads((CLIENTS.parent / "results" / "clients.json").read_text())
    found = result["clients"][client]
    assert found["version"] == setup["version"] and found["lost"] == setup["lost"]
    assert found["added"] == sum(len(edit.new) for edit in ours)
    assert found["removed"] == sum(edit.last - edit.first + 1 for edit in ours)
    assert found["resumed"]["equal"] and found["resumed"]["samples_compared"]
