"""What people see in a terminal: progress in plain lines, and text that steers nothing."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmix_data import write_beton
from xmix_data.cli import main
from xmix_data.progress import Progress, printable

Capture = pytest.CaptureFixture[str]

NASTY = "\x1b[2Jred\x1b]0;title\x07\r\n\u202ecod.exe\udcff"
SHOWN = r"\x1b[2Jred\x1b]0;title\x07\r\n\u202ecod.exe\udcff"


@pytest.fixture(autouse=True)
def own_handler() -> Iterator[None]:
    """The command's messages go to the stderr of the test that runs it."""
    log = logging.getLogger("xmix_data")
    before, log.handlers = log.handlers, []
    yield
    log.handlers = before


@given(st.text(st.characters(codec=None)))
def test_any_text_can_be_shown(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    shown.encode()
    assert printable(shown) == shown
    if text.isprintable():
        assert shown == text


def test_names_with_control_characters_steer_no_terminal(capsys: Capture, tmp_path: Path) -> None:
    """In what is printed, logged and said as an error; JSON keeps the name as it is."""

    class Images:
        classes = (NASTY,)
        targets = (0,)

        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
            return np.zeros((24, 24, 3), np.uint8), 0

    path = tmp_path / "a.beton"
    made = write_beton(Images(), path, image_size=None, num_workers=0, progress=False)
    with path.open("r+b") as stream:
        stream.seek(int(made.pointers[0]))
        stream.write(b"no")
    (tmp_path / "a.beton.json").write_bytes(
        (tmp_path / "a.beton.json")
        .read_bytes()
        .replace(
            b'"skipped": []', b'"skipped": [{"index": 1, "path": "\\u001b[31m", "reason": "x"}]'
        )
    )
    assert main(["inspect", str(path)]) == 0
    assert r"skipped at conversion: \x1b[31m: x" in capsys.readouterr().out
    assert main(["inspect", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["class_counts"] == [1] or NASTY in str(facts)
    assert main(["convert", str(path), str(tmp_path / "b.beton"), "--workers", "0"]) == 2
    said = capsys.readouterr().err
    assert SHOWN in said and not set("\x1b\x07\r\u202e\udcff") & set(said)
    logging.getLogger("xmix_data").warning("%s", NASTY)
    assert capsys.readouterr().err == f"xmix: {SHOWN}\n"


def test_lines_of_a_task_that_goes_on(capsys: Capture) -> None:
    """What was done earlier is no speed of this run."""
    with Progress("verify", 10, done=10):
        pass
    assert capsys.readouterr().err == "verify: 10/10 (100 %)\n"
    with Progress("verify", 10, done=4) as bar:
        bar.advance(6)
    line = capsys.readouterr().err
    assert line.startswith("verify: 10/10 (100 %), ") and line.endswith(" images/s\n")
    with Progress("train", 1, unit="iterations") as bar:
        time.sleep(2.1)  # a slow step has a speed too, which whole numbers do not tell
        bar.advance()
    line = capsys.readouterr().err
    found = re.fullmatch(r"train: 1/1 \(100 %\), (.*) iterations/s\n", line)
    assert found and 0 < float(found[1]) < 0.5, line
    with Progress(f"convert {NASTY}", 1, enabled=True) as bar:
        bar.advance()
    assert capsys.readouterr().err.startswith(f"convert {SHOWN}: 1/1")
    with Progress("silent", 1, enabled=False) as bar:
        bar.advance()
    assert capsys.readouterr().err == ""
