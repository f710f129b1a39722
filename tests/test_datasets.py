"""Users' datasets as a conversion reads them: open files, faults of their own, workers that die."""

from __future__ import annotations

import errno
import io
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import encoded, picture, pixels_of, written
from PIL import Image

from xmix_data import Beton, DatasetError, ImageError, XMixError, write_beton
from xmix_data.images import MapDataset, select

TIMEOUT_S = 120
COUNT = 300
RAW = {"encoding": "raw", "image_size": None, "crop": "none", "progress": False}


def files_in(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def flat(index: int) -> Image.Image:
    """An image of one colour, which tells its index."""
    return Image.new("RGB", (48, 40), (index % 256, index // 256, 7))


def indices_in(beton: Beton) -> list[int]:
    pixels = [beton.data(i)[:2].astype(int) for i in range(len(beton))]
    return [int(p[0] + 256 * p[1]) for p in pixels]


# Datasets with something open


class Packed:
    """Images in one file that is open; each kind of archive has one position for all readers."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.open()

    def open(self) -> None:
        raise NotImplementedError

    def image(self, index: int) -> Any:
        raise NotImplementedError

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.image(index), index % 10


class OpenFile(Packed):
    def open(self) -> None:
        self.places = []
        path = self.place / "pack"
        with path.open("wb") as stream:
            for i in range(COUNT):
                data = encoded(flat(i), "PNG")
                self.places.append((stream.tell(), len(data)))
                stream.write(data)
        self.file = path.open("rb", buffering=0)

    def image(self, index: int) -> Any:
        self.file.seek(self.places[index][0])
        return self.file.read(self.places[index][1])


class Zip(Packed):
    def open(self) -> None:
        with zipfile.ZipFile(self.place / "pack.zip", "w") as archive:
            for i in range(COUNT):
                archive.writestr(f"{i}.png", encoded(flat(i), "PNG"))
        self.file = zipfile.ZipFile(self.place / "pack.zip")

    def image(self, index: int) -> Any:
        return Image.open(self.file.open(f"{index}.png"))  # lazily: it is read when it is loaded


class Tar(Packed):
    def open(self) -> None:
        with tarfile.open(self.place / "pack.tar", "w") as archive:
            for i in range(COUNT):
                data = encoded(flat(i), "PNG")
                member = tarfile.TarInfo(f"{i}.png")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        self.file = tarfile.TarFile(self.place / "pack.tar")

    def image(self, index: int) -> Any:
        stream = self.file.extractfile(f"{index}.png")
        assert stream is not None
        return Image.open(stream)


class Hdf5(Packed):
    def open(self) -> None:
        h5py = pytest.importorskip("h5py")
        with h5py.File(self.place / "pack.h5", "w") as file:
            file["images"] = np.stack([np.asarray(flat(i)) for i in range(COUNT)])
        self.file = h5py.File(self.place / "pack.h5")

    def image(self, index: int) -> Any:
        return self.file["images"][index]


class OneBuffer(Packed):
    """Each sample is read into the memory of the one before."""

    def open(self) -> None:
        self.buffer = np.zeros((40, 48, 3), np.uint8)

    def image(self, index: int) -> Any:
        self.buffer[:] = np.asarray(flat(index))
        return self.buffer


class OneTensor(OneBuffer):
    def image(self, index: int) -> Any:
        super().image(index)
        return torch.from_numpy(self.buffer).permute(2, 0, 1)


@pytest.mark.parametrize("kind", [OpenFile, Zip, Tar, Hdf5, OneBuffer, OneTensor])
def test_what_a_dataset_holds_open_is_read_by_one_process(
    tmp_path: Path, kind: type[Packed]
) -> None:
    dataset = kind(tmp_path)
    for number, part in enumerate((dataset, torch.utils.data.Subset(dataset, range(COUNT)))):  # type: ignore[arg-type]
        beton = write_beton(part, tmp_path / f"{number}.beton", **RAW)
        assert indices_in(beton) == list(range(COUNT))
        assert beton.labels.tolist() == [i % 10 for i in range(COUNT)]


class Watched:
    """Notes which process and thread reads."""

    classes = ("even", "odd")

    def __init__(self) -> None:
        self.readers: set[tuple[int, int]] = set()

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> tuple[Any, int]:
        self.readers.add((os.getpid(), threading.get_ident()))
        return np.full((2, 2, 3), os.getpid() % 251, np.uint8), index % 2


@pytest.mark.parametrize("workers", [None, 0])
def test_this_thread_reads_a_dataset_unless_more_are_asked_for(
    tmp_path: Path, workers: int | None
) -> None:
    dataset = Watched()
    for name, source in (("all", dataset), ("part", select(MapDataset(dataset), classes=["odd"]))):
        write_beton(source, tmp_path / f"{name}.beton", num_workers=workers, **RAW)
    assert dataset.readers == {(os.getpid(), threading.get_ident())}
    write_beton(dataset, tmp_path / "more.beton", num_workers=2, **RAW)
    assert len(dataset.readers) == 1  # other processes read, with copies of the dataset
    found = {int(beton) for beton in pixels_of(Beton(tmp_path / "more.beton"), 0).ravel()}
    assert found != {os.getpid() % 251}


def test_threads_encode_what_processes_do(tmp_path: Path) -> None:
    images = [(encoded(picture(90 + i, 70), quality=95), i % 3) for i in range(40)]
    made = [
        write_beton(images, tmp_path / f"{n}.beton", image_size=48, num_workers=n, progress=False)
        for n in (None, 0, 2)
    ]
    assert len({beton.path.read_bytes() for beton in made}) == 1


# Faults of a dataset


class Samples:
    """Sound samples but for one, or all, that a function makes."""

    def __init__(self, make: Callable[[], Any], *, throughout: bool = True) -> None:
        self.make, self.throughout = make, throughout

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Any:
        if self.throughout or index == 13:
            return self.make()
        return picture(8, 8, index), index % 2


def raising(error: BaseException) -> Any:
    raise error


PIXELS = picture(8, 8)
FAULTS: dict[str, tuple[Callable[[], Any], str]] = {
    "floats": (lambda: (torch.zeros(3, 8, 8), 0), "an image of type Tensor, dtype float32"),
    "float array": (lambda: (np.zeros((8, 8, 3)), 0), "an image of type ndarray, dtype float64"),
    "name": (lambda: ("a.png", 0), "an image of type str"),
    "float label": (lambda: (PIXELS, 1.0), r"the label is 1\.0, expected an integer"),
    "text label": (lambda: (PIXELS, "cat"), "the label is 'cat', expected an integer"),
    "one-hot label": (lambda: (PIXELS, torch.eye(3)[0]), r"the label is tensor\(\[1\., 0"),
    "no label": (lambda: (PIXELS, None), "the label is None, expected an integer"),
    "dict": (lambda: {"image": PIXELS, "label": 0}, r"the sample is \{'image': array"),
    "three": (lambda: (PIXELS, 0, 0), "the sample is .*expected a pair"),
    "image alone": (lambda: PIXELS, "the sample is .*expected a pair"),
    "error": (lambda: raising(KeyError("row")), "the dataset raised KeyError: 'row'"),
    "value error": (lambda: raising(ValueError("a\nb")), "the dataset raised ValueError: a b"),
    "not written": (lambda: raising(NotImplementedError()), "the dataset raised NotImpl"),
}


@pytest.mark.parametrize("workers", [None, 0, 2])
@pytest.mark.parametrize("throughout", [True, False])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_dataset_is_named_and_never_skipped(
    tmp_path: Path, fault: str, throughout: bool, workers: int | None
) -> None:
    if workers == 2 and (throughout or fault not in ("floats", "error", "dict")):
        return  # as without workers
    make, said = FAULTS[fault]
    for on_error in ("raise", "skip"):
        with pytest.raises(DatasetError, match=said) as caught:
            write_beton(
                Samples(make, throughout=throughout),
                tmp_path / "x.beton",
                on_error=on_error,
                num_workers=workers,
                progress=False,
            )
        index = 0 if throughout else 13
        message = str(caught.value)
        assert message.startswith(f"Samples[{index}]: ") and message.endswith("correct the dataset")
        assert "skip" not in message and "\n" not in message
        assert files_in(tmp_path) == []


class Unsendable(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


@pytest.mark.parametrize("workers", [None, 2])
def test_the_error_of_a_dataset_is_the_cause(tmp_path: Path, workers: int | None) -> None:
    for error, kind in ((KeyError("row"), KeyError), (Unsendable(1, 2), Unsendable)):
        dataset = Samples(lambda error=error: raising(error), throughout=False)  # type: ignore[misc]
        with pytest.raises(DatasetError, match=r"Samples\[13\]: the dataset raised") as caught:
            write_beton(dataset, tmp_path / "x.beton", num_workers=workers, progress=False)
        cause = caught.value.__cause__
        sendable = workers is None or kind is KeyError
        assert isinstance(cause, kind if sendable else RuntimeError)
        assert "Unsendable: 1 and 2" in str(cause) if not sendable else True


def truncated() -> Any:
    return Image.open(io.BytesIO(encoded(picture(200, 200))[:900])), 0


@pytest.mark.parametrize("workers", [None, 0, 2])
@pytest.mark.parametrize(
    "make",
    [
        truncated,
        lambda: (encoded(picture(50, 50))[:300], 0),
        lambda: (None, 0),
        lambda: (Image.open("nowhere.png"), 0),
        lambda: (Image.open(io.BytesIO(b"none")).convert("RGB"), 0),
        lambda: raising(Image.DecompressionBombError("large")),
        lambda: (Image.frombytes("RGB", (2, 2), b"few"), 0),  # a ValueError of Pillow's
    ],
)
def test_an_image_that_cannot_be_read_may_be_skipped(
    tmp_path: Path, make: Callable[[], Any], workers: int | None
) -> None:
    dataset = Samples(make, throughout=False)
    options: dict[str, Any] = {"num_workers": workers, "progress": False, "image_size": 8}
    with pytest.raises(ImageError, match=r"^Samples\[13\]: .*; mend or remove it, or skip such"):
        write_beton(dataset, tmp_path / "x.beton", **options)
    beton = write_beton(dataset, tmp_path / "x.beton", on_error="skip", **options)
    assert beton.manifest is not None
    assert [entry["index"] for entry in beton.manifest["skipped"]] == [13]


@pytest.mark.parametrize("workers", [None, 2])
@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(24, "Too many open files", "i.png"),
        OSError(errno.ENOTCONN, "Transport endpoint is not connected", "i.png"),
        OSError(errno.ESTALE, "Stale file handle", "i.png"),
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    ],
)
def test_a_limit_of_the_system_is_not_blamed_on_an_image(
    tmp_path: Path, error: Exception, workers: int | None
) -> None:
    dataset = Samples(lambda: raising(error), throughout=False)
    with pytest.raises(XMixError, match=r"Samples\[13\]: .*; the image is not to blame") as caught:
        write_beton(
            dataset, tmp_path / "x.beton", on_error="skip", num_workers=workers, progress=False
        )
    assert not isinstance(caught.value, ImageError)
    assert files_in(tmp_path) == []


class Stream(torch.utils.data.IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield PIXELS, 0


class StreamWithLength(Stream):
    def __len__(self) -> int:
        return 1


class LengthUnknown:
    def __len__(self) -> int:
        raise TypeError("no length is known")

    def __getitem__(self, index: int) -> Any:
        return PIXELS, 0


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        (
            {"train": [], "val": []},
            r"dict is no dataset but holds several \(train, val\)",
        ),
        (Stream(), "Stream is a stream of samples"),
        (StreamWithLength(), "StreamWithLength is a stream of samples"),
        (LengthUnknown(), "LengthUnknown is no source of images"),
        (torch.utils.data.DataLoader([(PIXELS, 0)]), "DataLoader is no source of images"),  # type: ignore[arg-type]
        ((x for x in [(PIXELS, 0)]), "generator is no source of images"),
    ],
)
def test_what_is_no_dataset_is_named(tmp_path: Path, dataset: Any, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        write_beton(dataset, tmp_path / "x.beton")
    assert files_in(tmp_path) == []


def test_sets_of_splits_streams_and_transforms_of_hugging_face(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
    )
    rows = {"image": [{"bytes": encoded(flat(i), "PNG"), "path": None} for i in range(6)]}
    whole = datasets.Dataset.from_dict({**rows, "label": [0, 1] * 3}, features)
    splits = datasets.DatasetDict({"train": whole, "test": whole})
    with pytest.raises(TypeError, match=r"DatasetDict is no .* \(train, test\); .*\['train'\]"):
        write_beton(splits, tmp_path / "x.beton")
    with pytest.raises(TypeError, match="IterableDataset is a stream of samples"):
        write_beton(whole.to_iterable_dataset(), tmp_path / "x.beton")
    to_tensors = whole.with_transform(lambda rows: {"image": [torch.zeros(3, 4, 4)], "label": [0]})
    for number, dataset in enumerate((to_tensors, whole.with_format("torch"))):
        beton = write_beton(dataset, tmp_path / f"{number}.beton", num_workers=0, **RAW)
        assert indices_in(beton) == list(range(6)) and beton.labels.tolist() == [0, 1] * 3


# Workers that die


def run_script(path: Path, script: str, *arguments: Any) -> subprocess.CompletedProcess[str]:
    path.write_text(script)
    return subprocess.run(
        [sys.executable, str(path), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


ENDED = """
import ctypes, os, signal, sys
import numpy as np
from torch.utils.data import get_worker_info
from xmix_data import XMixError, write_beton

class Images:
    def __len__(self):
        return 200

    def __getitem__(self, index):
        if index == 150 and get_worker_info() is not None:
            if sys.argv[2] == "exit":
                os._exit(3)
            os.kill(os.getpid(), int(sys.argv[2]))
        return np.zeros((8, 8, 3), np.uint8), 0

def convert():
    try:
        write_beton(Images(), sys.argv[1], num_workers=2, progress=False)
    except XMixError as error:
        print(error)

if sys.argv[3:]:
    import threading
    thread = threading.Thread(target=convert)
    thread.start()
    thread.join()
else:
    convert()
"""


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (
            "9 thread",
            "(SIGKILL): the system ends processes so when memory runs out; free",
        ),
        (signal.SIGKILL, "(SIGKILL): the system ends processes so when memory runs out; free"),
        (signal.SIGSEGV, "(SIGSEGV): a library crashed; convert in this process (num_workers=0)"),
        (signal.SIGBUS, "(SIGBUS): a file that it read was cut short meanwhile, or /dev/shm is"),
        (signal.SIGUSR1, "(SIGUSR1): something outside ended it; run it again"),
        ("exit", "(exit status 3); what it printed says why: the dataset or a library ended it"),
    ],
)
def test_a_worker_s_death_is_named_by_its_cause(tmp_path: Path, end: Any, said: str) -> None:
    how = end.split() if isinstance(end, str) else [int(end)]
    (tmp_path / "out").mkdir()
    done = run_script(tmp_path / "s.py", ENDED, tmp_path / "out" / "x.beton", *how)
    assert done.stdout.startswith(f"a conversion worker died {said}"), done
    assert done.stdout.count("\n") == 1
    assert files_in(tmp_path / "out") == []


UNGUARDED = """
import multiprocessing, sys
from xmix_data import write_beton
multiprocessing.set_start_method(sys.argv[1], force=True)
write_beton(sys.argv[2], sys.argv[3], num_workers=2, image_size=None, progress=False)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(40):
        (tmp_path / "in" / f"{i % 2}").mkdir(parents=True, exist_ok=True)
        flat(i).save(tmp_path / "in" / f"{i % 2}" / f"{i}.png")
    (tmp_path / "out").mkdir()
    return tmp_path / "in"


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_script_without_a_main_guard_is_told_so(
    tmp_path: Path, folder: Path, method: str
) -> None:
    out = tmp_path / "out" / "x.beton"
    done = run_script(tmp_path / "s.py", UNGUARDED, method, folder, out)
    assert done.returncode == 1
    # The script and its workers all end so, in any order.
    said = [line for line in done.stderr.splitlines() if "xmix_data.errors.XMixError: " in line]
    words = f"with the start method {method!r} each worker imports the script anew"
    assert any(words in line and 'under `if __name__ == "__main__":`' in line for line in said), (
        done.stderr
    )
    assert files_in(tmp_path / "out") == []


GUARDED = """
import multiprocessing, sys
from xmix_data import write_beton
if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1], force=True)
    write_beton(sys.argv[2], sys.argv[3], num_workers=2, image_size=None, progress=False)
"""


def test_a_script_with_a_main_guard_converts(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "out" / "x.beton"
    done = run_script(tmp_path / "s.py", GUARDED, "spawn", folder, out)
    assert done.returncode == 0, done.stderr
    assert len(Beton(out)) == 40


UNPICKLED = """
import multiprocessing, sys
from xmix_data import write_beton
if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    class Local:
        def __len__(self):
            return 4
        def __getitem__(self, index):
            return b"", (lambda: 0)()
    dataset = Local()
    dataset.transform = lambda image: image
    write_beton(dataset, sys.argv[1], num_workers=2)
"""


def test_a_dataset_that_cannot_be_sent_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    done = run_script(tmp_path / "s.py", UNPICKLED, tmp_path / "out" / "x.beton")
    assert "XMixError: worker processes cannot be started (" in done.stderr
    assert done.stderr.rstrip().endswith("a dataset must be one that can be pickled"), done.stderr
    assert files_in(tmp_path / "out") == []


LIMITED = """
import os, resource, sys
import numpy as np
from xmix_data import XMixError, write_beton

folder, out = sys.argv[1:]
pairs = [(np.zeros((8, 8, 3), np.uint8), 0)] * 4
options = {"image_size": 8, "progress": False, "overwrite": True}
for source, workers in ((folder, 2), (pairs, None)):  # what these import may be out of reach later
    write_beton(source, out, num_workers=workers, **options)
if os.getuid() == 0:  # whom no limit holds
    os.setgid(65534)
    os.setuid(65534)
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
for source, workers in ((folder, 2), (pairs, None)):
    try:
        write_beton(source, out, num_workers=workers, **options)
    except XMixError as error:
        print(error)
"""


def test_a_limit_of_processes_is_not_blamed_on_the_disk(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as place:
        here = shutil.copytree(folder, Path(place) / "images")
        os.chmod(place, 0o777)  # for who the script becomes
        script = Path(place) / "s.py"
        done = run_script(script, LIMITED, here, Path(place) / "x.beton")
        said = done.stdout.splitlines()
        assert len(said) == 2, done.stderr
        for line in said:
            assert line.startswith("no more processes or threads can be started ("), line
            assert "convert in this one (num_workers=0, --workers 0), or raise the limits" in line
        assert files_in(Path(place)) == ["images", "s.py", "x.beton", "x.beton.json"]


def convert_shard(folder: Path, out: Path, index: int) -> list[int]:
    path = out / f"{index}.beton"
    return list(write_beton(folder, path, image_size=24, shard=(index, 2), progress=False).labels)


def test_a_process_of_a_pool_converts(tmp_path: Path, folder: Path) -> None:
    """It may have no processes of its own."""
    with multiprocessing.Pool(2) as pool:
        parts = pool.starmap(convert_shard, [(folder, tmp_path, index) for index in (0, 1)])
    whole = write_beton(folder, tmp_path / "whole.beton", image_size=24, progress=False)
    assert [*parts[0], *parts[1]] == whole.labels.tolist()


def test_a_conversion_under_another_default_device(tmp_path: Path, folder: Path) -> None:
    torch.set_default_device("meta")
    try:
        for workers in (0, 2):
            written(folder, tmp_path / f"{workers}.beton", num_workers=workers, image_size=None)
    finally:
        torch.set_default_device(None)
    assert Beton(tmp_path / "2.beton").path.read_bytes() == (tmp_path / "0.beton").read_bytes()


@pytest.mark.parametrize("workers", [None, 0, 2])
def test_an_image_that_was_only_opened_is_checked_as_its_file_is(
    tmp_path: Path, workers: int | None
) -> None:
    """A data set that opens and does not decode: what is damaged, or of a depth that is not known,
    is found, whoever decodes it."""
    sound, damaged = (bytearray(encoded(picture(64, 64, seed), "JPEG")) for seed in (1, 2))
    middle = len(damaged) // 2
    damaged[middle : middle + 200] = bytes(range(1, 201))

    class Opened:
        classes = ("a",)

        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            return Image.open(io.BytesIO((sound, damaged, sound)[index])), 0

    options: dict[str, Any] = {"image_size": 32, "progress": False, "num_workers": workers}
    with pytest.raises(ImageError, match=r"Opened\[1\]"):
        write_beton(Opened(), tmp_path / "a.beton", **options)
    beton = write_beton(Opened(), tmp_path / "b.beton", on_error="skip", **options)
    assert len(beton) == 2 and beton.manifest is not None
    assert [entry["index"] for entry in beton.manifest["skipped"]] == [1]
