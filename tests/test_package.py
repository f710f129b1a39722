"""The package as a whole: imports, names, layers, commands, the README's example."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from conftest import NumberedBetons
from PIL import Image
from processes import Server

import xmix_data
from xmix_data.cli import main

ROOT = Path(__file__).parents[1]
HEAVY = ["torch", "torchvision", "numba", "ffcv", "faiss", "nvidia.dali", "matplotlib", "scipy"]


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_loads_nothing_heavy() -> None:
    code = "import sys, xmix_data; print([n for n in sys.argv[1:] if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code, *HEAVY], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_loading_never_imports_ffcv(numbered: NumberedBetons) -> None:
    """`import ffcv` takes seconds and changes torch's threads; its library is enough."""
    print_modules = (
        "import sys; from xmix_data import ImageLoader, CenterCrop\n"
        f"next(iter(ImageLoader({str(numbered.target.path)!r}, batch_size=4, crop=CenterCrop(8))))"
        "\nprint([n for n in ('ffcv', 'torchvision', 'faiss', 'matplotlib')"
        " if n in sys.modules])"
    )
    assert run_python(print_modules).strip() == "[]"


def test_every_public_name_exists_once() -> None:
    for name in xmix_data.__all__:
        assert getattr(xmix_data, name) is not None
    assert set(xmix_data.__all__) == {*xmix_data._MODULE_OF, "methods"}
    assert set(xmix_data.__all__) <= set(dir(xmix_data))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        xmix_data.Nothing  # noqa: B018


def test_version_stands_in_one_place() -> None:
    from importlib.metadata import version

    assert xmix_data.__version__ == version("xmix_data")


def test_a_checkout_that_is_not_installed_writes_betons(tmp_path: Path) -> None:
    """A copied folder on ``PYTHONPATH`` has no metadata, and betons name the version."""
    site, code = tmp_path / "site", tmp_path / "code"
    for folder in (site, code, tmp_path / "images" / "a"):
        folder.mkdir(parents=True)
    (code / "xmix_data").symlink_to(ROOT / "xmix_data")
    for entry in Path(numpy.__file__).parents[1].iterdir():
        if "xmix_data" not in entry.name:
            (site / entry.name).symlink_to(entry)
    Image.new("RGB", (40, 40), "green").save(tmp_path / "images" / "a" / "1.png")
    command = [sys.executable, "-S", "-m", "xmix_data", "convert"]
    done = subprocess.run(
        [*command, str(tmp_path / "images"), str(tmp_path / "a.beton"), "--workers", "0"],
        env={**os.environ, "PYTHONPATH": f"{code}:{site}"},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "a.beton.json").read_text())
    assert manifest["versions"]["xmix_data"] == xmix_data.__version__


def test_the_readme_example_runs(tmp_path: Path, forked: Server) -> None:
    """The ten lines that turn fine-tuning into XMixup, as printed but for the size of a batch."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (example,) = [b for b in re.findall(r"```python\n(.*?)```", readme, re.S) if "xmixup_loss" in b]
    for name, classes in (("flowers", 2), ("imagenet", 3)):
        for number in range(classes):
            folder = tmp_path / name / "train" / f"{name}{number}"
            folder.mkdir(parents=True)
            for image in range(4):
                picture = Image.new("RGB", (256, 256), (80 * number, 60 * image, 9))
                picture.save(folder / f"{image}.jpg")
    setting = (
        "import os, torch\n"
        f"os.chdir({str(tmp_path)!r})\n"
        "torch.manual_seed(0)\n"
        "model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())\n"
        "features = 12\n"
    )
    assert len(example.splitlines()) <= 12
    assert "batch_size=48" in example
    example = example.replace("batch_size=48", "batch_size=4")
    script = tmp_path / "example.py"
    script.write_text(setting + example + "\nprint('loss', float(loss))\n")
    done = forked.run(str(script), timeout=120)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) > 0


def test_help_of_every_command_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    commands = re.findall(r"^    (\w+) ", capsys.readouterr().out, re.M)
    assert {"convert", "pair", "inspect", "doctor", "demo"} <= set(commands)
    for command in commands:
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0
        assert f"Example: xmix {command}" in capsys.readouterr().out


def test_doctor_finds_what_runs_these_tests(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)}
    assert checks["ffcv"]["ok"] and checks["libjpeg-turbo"]["ok"] and checks["faiss"]["ok"]
    assert main(["doctor"]) == 0
    assert "numba" in capsys.readouterr().out


def test_pair_command_writes_what_the_loader_takes(
    numbered: NumberedBetons, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pairing.json"
    command = ["pair", "--target", str(numbered.target.path), "--source", str(numbered.source.path)]
    command += ["--model", "resnet18", "--weights", "none", "--device", "cpu", "-o", str(path)]
    assert main(command) == 0
    pairing = xmix_data.Pairing.load(path)
    assert list(pairing.pairs) == ["t0", "t1", "t2"]
    assert pairing.target["domains"][0]["fingerprints"] == [numbered.target.fingerprint]
    assert pairing.target["model"] == "resnet18"
    out = capsys.readouterr().out
    assert "mean cosine" in out and "was the backbone trained (--weights)?" in out
    xmix_data.XMixLoader(
        numbered.target, numbered.source, path, batch_size=4, crop=xmix_data.RandomCrop(8)
    )
    assert main(command) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [
                "pair",
                "--target",
                "T",
                "--source",
                "no.beton",
                "--model",
                "resnet18",
                "-o",
                "p.json",
            ],
            "no.beton: no such beton",
        ),
        (
            ["pair", "--target", "T", "--source", "S", "--model", "no", "-o", "p.json"],
            "torchvision has no classifier 'no'",
        ),
        (
            ["pair", "--target", "S", "--source", "T", "--model", "resnet18", "-o", "p.json"],
            "1 round(s) for 4 target classes need 4 source classes, and there are 3",
        ),
        (
            ["pair", "--target", "T", "--source", "S", "--model", "resnet18", "-o", "no/p.json"],
            "no: no such folder",
        ),
        (["inspect", "no.beton"], "no.beton: no such beton"),
    ],
)
def test_errors_are_one_line_and_status_2(
    numbered: NumberedBetons,
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = {"T": str(numbered.target.path), "S": str(numbered.source.path)}
    assert main([paths.get(a, a) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(FileNotFoundError):
        main(["inspect", "no.beton", "--debug"])


def test_python_m_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "xmix_data", "--version"], capture_output=True, text=True
    )
    assert done.stdout == f"xmix_data {xmix_data.__version__}\n"
