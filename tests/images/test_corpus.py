"""Everything that can be wrong with the files in a folder, in one run of the real program.

What must become of each file, and the picture that a sound one shows, is the corpus's to say and
not ours to compute.
"""

from __future__ import annotations

import csv
import fcntl
import gzip
import io
import os
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import termios
import time
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
import torch
from corpus import DOT, GONE, NO_IMAGE, Item, photo, png, saved, write_corpus
from PIL import Image
from places import REPOSITORY
from torchvision.transforms import functional as reference

from vggfeat import Extractor, Settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

SETTINGS = Settings(
    layers="conv1_1,conv1_1:map", model="vgg11", weights="random:0", size=32, precision="float32",
    device="cpu", dtype="float32", batch_size=4,
)  # fmt: skip
WORDS = [
    "--layers", "conv1_1,conv1_1:map", "--model", "vgg11", "--weights", "random:0", "--size", "32",
    "--precision", "float32", "--device", "cpu", "--dtype", "float32",
]  # fmt: skip

SECONDS = 600
"""The run takes six on two cores; what hangs is given up after sixty, which then shows."""

PEAK = 300 * 2**20
"""Bytes by which no process of a run may exceed the largest of a run over one small picture.

The largest picture, 6000 x 6000 with 4 bytes a pixel, takes 140 MiB. Each of the headers that claim
13,000 x 13,000 would take 645 MiB if its pixels were filled in. Below all that lies what the main
process takes for torch, 300 to 800 MiB by the kind of its libraries.
"""

# Gives up root's right to read what nobody may, runs a command, and notes the largest of its
# processes in KiB, and whether the right could not be given up. A small process of its own, because
# a child's peak begins with the memory of the process it was forked from. The limit is for the
# machine's sake, should a test fail.
WRAPPER = """
import ctypes, os, resource, subprocess, sys
resource.setrlimit(resource.RLIMIT_DATA, (2**32, 2**32))
kept = [ctypes.CDLL(None).prctl(24, capability, 0, 0, 0) for capability in (1, 2)]
ended = subprocess.run(sys.argv[2:], check=False).returncode
with open(sys.argv[1], "w") as note:
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(peak, int(os.geteuid() == 0 and any(kept)), file=note)
sys.exit(ended)
"""


@dataclass(frozen=True, slots=True, eq=False)
class DatasetExtent:
    """What a run left: states, reasons and features by path, and what it took."""

    states: Mapping[bytes, str]
    reasons: Mapping[bytes, str]
    rows: Mapping[bytes, int]
    features: Mapping[str, NDArray[np.float32]]
    stderr: bytes
    peak: int
    reads_all: bool


def extract(sources: Sequence[Path], out: Path, *more: str) -> DatasetExtent:
    """Runs the program, which must end with 0 in time, and reads its file by h5py alone."""
    note = out.with_suffix(".note")
    words = [sys.executable, "-m", "vggfeat", "extract", *map(str, sources), "--out", str(out)]
    ended = subprocess.run(
        [sys.executable, "-c", WRAPPER, str(note), *words, *WORDS, "--quiet", *more],
        cwd=REPOSITORY, capture_output=True, check=False, timeout=SECONDS,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr.decode(errors="replace")
    peak, reads_all = map(int, note.read_text().split())
    with h5py.File(out) as file:
        paths = [bytes(path) for path in file["images/path"][()]]
        known = ["pending", "done", "failed", "removed"]
        states = [known[number] for number in file["images/state"][()]]
        reasons = [bytes(reason).decode() for reason in file["images/error"][()]]
        features = {name: data[()] for name, data in file["features"].items()}
    return DatasetExtent(
        states=dict(zip(paths, states, strict=True)),
        reasons=dict(zip(paths, reasons, strict=True)),
        rows={path: row for row, path in enumerate(paths)},
        features=features, stderr=ended.stderr, peak=peak * 1024, reads_all=bool(reads_all),
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("corpus")


@pytest.fixture(scope="module")
def corpus(folder: Path) -> tuple[Item, ...]:
    return write_corpus(folder / "images")


@pytest.fixture(scope="module")
def run(folder: Path, corpus: tuple[Item, ...]) -> DatasetExtent:
    """The run that everything is asked of, over the whole corpus, by two decoding processes."""
    assert corpus
    options = ("--workers", "2", "--batch-size", "4", "--failures", str(folder / "f.csv"))
    return extract([folder / "images"], folder / "feats.h5", *options)


@pytest.fixture(scope="module")
def expected(corpus: tuple[Item, ...], run: DatasetExtent) -> dict[bytes, Item]:
    """Every file that has a row, by name."""
    items = {item.name: item for item in corpus if item.state != "skipped"}
    if run.reads_all:
        name = b"special/unreadable.png"
        items[name] = Item(name, None, "done", picture=photo("special"))
    return items


@pytest.fixture(scope="module")
def peak(folder: Path) -> int:
    """Bytes that the largest process of a run may take."""
    (folder / "dot.png").write_bytes(saved(DOT, "PNG"))
    return extract([folder / "dot.png"], folder / "dot.h5", "--workers", "1").peak + PEAK


def misfits(run: DatasetExtent, items: Mapping[bytes, Item]) -> dict[bytes, str]:
    """Reasons that are not as the corpus says; what is done must have none."""
    wanted = {path: item.reason if item.state == "failed" else "$" for path, item in items.items()}
    return {
        path: run.reasons[path]
        for path, pattern in wanted.items()
        if not re.match(pattern, run.reasons[path])
    }


def seen(picture: NDArray[np.uint8]) -> torch.Tensor:
    """What torchvision's own transform shows the network, uint8 (3, 32, 32)."""
    preprocess = SETTINGS.preprocess()
    assert preprocess.resize is not None
    image = reference.resize(Image.fromarray(picture), [preprocess.resize], antialias=True)
    cut = np.array(reference.center_crop(image, [preprocess.size]))
    return torch.from_numpy(cut).permute(2, 0, 1)


def test_there_is_enough_of_everything(corpus: tuple[Item, ...], folder: Path) -> None:
    """The corpus is large in kinds and small on disk, and names nothing twice."""
    counts = dict.fromkeys(("done", "failed", "skipped"), 0)
    for item in corpus:
        counts[item.state] += 1
        assert (item.picture is not None) == (item.state == "done"), item.name
        assert bool(item.reason) == (item.state == "failed"), item.name
    assert counts["done"] >= 150
    assert counts["failed"] >= 250
    assert counts["skipped"] >= 20
    assert len({item.name for item in corpus}) == len(corpus)
    assert sum(path.lstat().st_size for path in (folder / "images").rglob("*")) < 60_000_000


def test_every_file_is_in_the_state_it_must_be(
    run: DatasetExtent, expected: dict[bytes, Item]
) -> None:
    """Whatever lies in a folder, the run ends well, and exactly the sound images are done."""
    assert run.states == {path: item.state for path, item in expected.items()}


def test_reasons_say_what_is_wrong(run: DatasetExtent, expected: dict[bytes, Item]) -> None:
    """Each failed row has its reason in one printable line, and no other row has one."""
    assert misfits(run, expected) == {}
    assert all(reason.isprintable() for reason in run.reasons.values())


def test_failures_are_listed_outside_too(run: DatasetExtent, folder: Path) -> None:
    """The CSV names the failed rows in their order, bytes that are no UTF-8 escaped."""
    with open(folder / "f.csv", newline="", encoding="utf-8") as file:
        listed = list(csv.reader(file))[1:]
    assert listed == [
        [os.fsdecode(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"),
         run.reasons[path]]
        for path in run.rows if run.reasons[path]
    ]  # fmt: skip


def test_done_rows_are_those_of_the_pictures(
    run: DatasetExtent, expected: dict[bytes, Item]
) -> None:
    """Every done row is what the picture alone gives, decoded and cut without our decoder."""
    items = [item for item in expected.values() if item.picture is not None]
    images = torch.stack([seen(item.picture) for item in items if item.picture is not None])
    rows = [run.rows[item.name] for item in items]
    for name, features in Extractor(SETTINGS)(images).items():
        found, alone = run.features[name][rows], features.numpy()
        scale = float(np.abs(alone).max())
        apart = np.abs(found - alone).reshape(len(items), -1).max(axis=1) / scale
        # In a map, one level of one channel of one pixel is some ten-thousandths of the scale.
        wrong = {item.name: far for item, far in zip(items, apart, strict=True) if not far < 1e-5}
        assert wrong == {}, name


def test_failed_rows_hold_nothing(run: DatasetExtent) -> None:
    """Failed rows are NaN throughout, and no other row has one."""
    failed = np.array([run.states[path] == "failed" for path in run.rows])
    for features in run.features.values():
        empty = np.isnan(features.reshape(len(features), -1))
        np.testing.assert_array_equal(empty.all(axis=1), failed)
        np.testing.assert_array_equal(empty.any(axis=1), failed)


def test_memory_stays_bounded(run: DatasetExtent, peak: int) -> None:
    """No process takes memory for pixels that a header only claims, or that a bomb unpacks to."""
    assert run.peak < peak


def test_nothing_but_our_own_lines_is_told(run: DatasetExtent) -> None:
    """With --quiet nothing is written to standard error, whatever the images are."""
    assert run.stderr == b""


def test_the_same_without_workers(run: DatasetExtent, folder: Path, peak: int) -> None:
    """Decoded in the main process, states, reasons and features are the same to the bit."""
    options = ("--workers", "0", "--batch-size", "4")
    single = extract([folder / "images"], folder / "single.h5", *options)
    assert single.states == run.states
    assert single.reasons == run.reasons
    assert single.peak < peak
    for name, features in run.features.items():
        np.testing.assert_array_equal(single.features[name], features)


def packed_tar(items: Iterable[Item], path: Path) -> None:
    with tarfile.open(path, "w:gz", compresslevel=1, format=tarfile.GNU_FORMAT) as archive:
        for item in items:
            entry = tarfile.TarInfo(os.fsdecode(item.name))
            entry.size = len(item.data or b"")
            archive.addfile(entry, io.BytesIO(item.data or b""))


def packed_zip(items: Iterable[Item], path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for item in items:
            name = zipfile.ZipInfo(os.fsdecode(item.name))
            archive.writestr(name, item.data or b"", zipfile.ZIP_DEFLATED)


def test_the_same_out_of_archives(
    run: DatasetExtent, corpus: tuple[Item, ...], folder: Path, peak: int
) -> None:
    """Packed in a tar or a zip, each file fares as it does in the folder."""
    members = [item for item in corpus if item.data is not None and item.name[:8] != b"special/"]
    text = [item for item in members if item.name.decode(errors="ignore").encode() == item.name]
    zeros = Item(b"zeros.png", bytes(2**26), "failed", NO_IMAGE)  # 64 kB in a zip
    packed_tar(members[::2], folder / "x.tar.gz")
    packed_zip([*text[1::2], zeros], folder / "y.zip")
    archives = [folder / "x.tar.gz", folder / "y.zip"]
    out = extract(archives, folder / "archives.h5", "--workers", "2", "--batch-size", "4")
    both = {b"x.tar.gz!": members[::2], b"y.zip!": [*text[1::2], zeros]}
    inside = {
        archive + item.name: item
        for archive, items in both.items()
        for item in items
        if item.state != "skipped"
    }
    assert out.states == {path: item.state for path, item in inside.items()}
    assert misfits(out, inside) == {}
    assert out.peak < peak
    sound = {path: item.name for path, item in inside.items() if item.state == "done"}
    for name, features in run.features.items():
        found = out.features[name][[out.rows[path] for path in sound]]
        plain = features[[run.rows[path] for path in sound.values()]]
        np.testing.assert_allclose(found, plain, rtol=0, atol=1e-5)


def test_archives_in_bad_shape_are_one_line(folder: Path, tmp_path: Path) -> None:
    """Archives that are cut, empty or something else end the run, all at once, before it begins."""
    sound = [Item(b"x.png", saved(DOT, "PNG"), "done")]
    packed_tar(sound, tmp_path / "whole.tgz")
    packed_zip(sound, tmp_path / "whole.zip")
    tar = gzip.decompress((tmp_path / "whole.tgz").read_bytes())
    broken = {
        "cut.tar": tar[:600], "cut.tar.gz": gzip.compress(tar)[:-9], "empty.zip": b"",
        "html.zip": b"<html>404</html>", "folder.tar": b"", "cut.zip":
        (tmp_path / "whole.zip").read_bytes()[:-30], "noise.tar.xz": b"\xfd7zXZ\0" + bytes(99),
    }  # fmt: skip
    for name, data in broken.items():
        (tmp_path / name).write_bytes(data)
    sources = [str(path) for path in sorted(tmp_path.iterdir())]
    ended = subprocess.run(
        [sys.executable, "-m", "vggfeat", "extract", *sources, "--out", str(folder / "no.h5"),
         *WORDS],
        cwd=REPOSITORY, capture_output=True, check=False, timeout=SECONDS, text=True,
    )  # fmt: skip
    assert ended.returncode == 3
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"vggfeat: cannot read '{tmp_path}/cut.tar' (cut short")
    assert "and 2 more; every archive must be whole" in line
    assert ended.stdout == ""
    assert not list(folder.glob("no.h5*"))


def unread_pipe(leaving: int) -> tuple[int, int]:
    """Both ends of a pipe that is full but for so many bytes: whoever writes more waits."""
    read_end, write_end = os.pipe()
    size = fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, 4096)
    os.write(write_end, bytes(size - leaving))
    return read_end, write_end


def bytes_in(pipe: int) -> int:
    (count,) = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))
    return int(count)


@pytest.mark.skipif(not hasattr(fcntl, "F_SETPIPE_SZ"), reason="needs Linux, Python 3.10")
def test_what_changes_between_listing_and_decoding(tmp_path: Path) -> None:
    """Files that vanish or change during the run are failed rows that say what was found."""
    images = tmp_path / "images"
    names = ("cut.png", "dangling.png", "emptied.png", "folder.png", "gone.png", "pipe.png",
             "stays.png", "gone-folder/x.png", "file-for-folder/x.png")  # fmt: skip
    rows = [row.tobytes() for row in photo("changing")]
    for name in names:
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        (images / name).write_bytes(png(64, 48, 8, 2, rows))
    (images / "not-an-image.txt").touch()
    out = tmp_path / "feats.h5"
    # The run tells first what it skipped, which has room in the pipe, and so is past listing;
    # then that weights are random, for which it must wait, and only then begins to decode.
    read_end, write_end = unread_pipe(leaving=100)
    full = bytes_in(read_end)
    words = ["extract", str(images), "--out", str(out), *WORDS, "--workers", "2"]
    with subprocess.Popen(
        [sys.executable, "-m", "vggfeat", *words], cwd=REPOSITORY, stderr=write_end,
        stdout=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        os.close(write_end)
        _wait_until_it_waits(process, read_end, full)
        _change(images)
        with open(read_end, "rb") as pipe:
            told = pipe.read()[full:].decode()
    assert process.returncode == 0, told
    with h5py.File(out) as file:
        found = dict(
            zip(file["images/path"][()].tolist(), file["images/error"][()].tolist(), strict=True)
        )
    assert {path: reason.decode()[:11] for path, reason in found.items()} == {
        b"cut.png": "truncated: ", b"dangling.png": "a symbolic ", b"emptied.png": "empty file",
        b"folder.png": "not a regul", b"gone.png": "no such fil", b"pipe.png": "not a regul",
        b"stays.png": "", b"gone-folder/x.png": "no such fil",
        b"file-for-folder/x.png": "no such fil",
    }  # fmt: skip
    assert re.match(GONE, found[b"gone.png"].decode())
    assert found[b"dangling.png"] == b"a symbolic link to 'nowhere.png', which does not exist"


def _wait_until_it_waits(process: subprocess.Popen[Any], pipe: int, full: int) -> None:
    while bytes_in(pipe) == full:
        assert process.poll() is None
        time.sleep(0.01)
    told = bytes_in(pipe) - full
    assert told < 100


def _change(images: Path) -> None:
    for name in ("gone.png", "folder.png", "pipe.png", "dangling.png"):
        (images / name).unlink()
    (images / "folder.png").mkdir()
    os.mkfifo(images / "pipe.png")
    (images / "dangling.png").symlink_to("nowhere.png")
    os.truncate(images / "emptied.png", 0)
    os.truncate(images / "cut.png", 500)
    for name in ("gone-folder", "file-for-folder"):
        shutil.rmtree(images / name)
    (images / "file-for-folder").touch()


FUZZER = REPOSITORY / "scripts" / "fuzz_decode.py"


def test_the_fuzzer_finds_nothing_at_first(tmp_path: Path) -> None:
    """Mutated images decode or fail in the one way they may."""
    ended = subprocess.run(
        [sys.executable, str(FUZZER), "--inputs", "1500", "--findings", str(tmp_path / "found")],
        cwd=REPOSITORY, capture_output=True, check=False, timeout=SECONDS, text=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout
    summary = re.search(r"(\d+) inputs, (\d+) decoded, (\d+) failed, 0 findings", ended.stdout)
    assert summary, ended.stdout
    inputs, decoded, failed = map(int, summary.groups())
    assert inputs == 1500 == decoded + failed
    assert decoded > 200
    assert failed > 200
    assert not (tmp_path / "found").exists()


DEFECTS = """
import os, signal, sys, time
sys.path.insert(0, sys.argv[1])
import fuzz_decode as fuzzer
make, sound, number = fuzzer.Fuzzer.trial, fuzzer.decode, 0
def trial(self, row):
    global number
    number = row
    return make(self, row)
def decode(*what):
    if number == 2: raise ZeroDivisionError("odd")
    if number == 4: return fuzzer.np.zeros((3, 3, 3), fuzzer.np.uint8)
    if number == 6: raise fuzzer.DecodeError("two" + chr(10) + "lines")
    if number == 8: os.kill(os.getpid(), signal.SIGKILL)
    if number == 10: time.sleep(100)
    if number == 12: bytearray(2**40)
    if number == 14: raise fuzzer.DecodeError("x" * 151)
    return sound(*what)
fuzzer.Fuzzer.trial, fuzzer.decode, fuzzer.SECONDS_AN_IMAGE = trial, decode, 0.5
sys.exit(fuzzer.main(["--inputs", "64", "--seed", "7", "--findings", sys.argv[2]]))
"""


def test_the_fuzzer_keeps_what_it_finds(tmp_path: Path) -> None:
    """Every kind of wrong outcome is counted, saved with its reason, and ends in status 1."""
    ended = subprocess.run(
        [sys.executable, "-c", DEFECTS, str(FUZZER.parent), str(tmp_path / "found")],
        cwd=REPOSITORY, capture_output=True, check=False, timeout=SECONDS, text=True,
    )  # fmt: skip
    assert ended.returncode == 1, ended.stderr
    assert " 7 findings" in ended.stdout
    found = {
        path.stem: path.read_text().splitlines()[0] for path in (tmp_path / "found").glob("*.txt")
    }
    assert found == {
        "seed7-2": "WRONG ZeroDivisionError: odd",
        "seed7-4": "WRONG uint8 (3, 3, 3)",
        "seed7-6": r"WRONG DecodeError('two\nlines')",
        "seed7-8": "its decoding process was killed by SIGKILL, 2 times",
        "seed7-10": "decoding took longer than 0.5 s (--decode-timeout)",
        "seed7-12": "WRONG MemoryError: ",
        "seed7-14": f"WRONG DecodeError('{'x' * 151}')",
    }
    assert {path.stem for path in (tmp_path / "found").glob("*.bin")} == set(found)
