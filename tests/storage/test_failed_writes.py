"""Writes that really fail: by a library that refuses one of them, by file size limits, full disks.

No output may be called done of which a byte is missing, and nothing may be left of it.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pytest
from command_line import SMALL, vggfeat, write_images
from places import TESTS
from small_disks import mounted

from vggfeat.cache.format import Provenance
from vggfeat.cache.identity import Identity
from vggfeat.cache.layout import lay_out
from vggfeat.core.preprocessing import Preprocess
from vggfeat.transforms.model_file import Fitted, save_fitted

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SOURCE = TESTS / "failing_writes.c"

PYTHON = (sys.executable, "-B")
"""Without bytecode: cut short by the limit of file sizes, it would spoil later imports."""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The library that refuses a write."""
    library = tmp_path_factory.mktemp("shim") / "failing_writes.so"
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    words = [compiler, "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run(words, check=True)
    return str(library)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished cache of thirty images, of two layers."""
    folder = tmp_path_factory.mktemp("failed")
    write_images(folder / "images", 30)
    done = vggfeat("extract", "images", *SMALL, "--out", "feats.h5", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def model() -> Fitted:
    noise = np.random.default_rng(0)
    arrays = {f"array{at}": noise.normal(size=(40, 50)) for at in range(4)}
    return Fitted("reduce", {"asked": {"dim": 50}}, arrays)


SAVE = """
import os, sys
sys.path[:0] = {path!r}
from storage.test_failed_writes import model
from vggfeat.errors import SpaceError
from vggfeat.transforms.model_file import save_fitted
try:
    save_fitted("m.h5", model())
except SpaceError as error:
    sys.stderr.write(str(error))
    os._exit(6)
os._exit(0)  # no module is tidied up, so nothing that HDF5 still holds is written
"""


def save(folder: Path, env: dict[str, str], limit: int | None = None) -> tuple[int, str]:
    """Saves a model in a process; returns its exit code and message."""
    code = SAVE.format(path=[str(SOURCE.parent)])
    done = subprocess.run(
        [*PYTHON, "-c", code], cwd=folder, env={**os.environ, **env}, check=False,
        capture_output=True, text=True, preexec_fn=limited(limit) if limit is not None else None,
    )  # fmt: skip
    return done.returncode, done.stderr


def limited(size: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


LIMITED = """
import json, os, resource, signal
import torch  # imports dill where it is installed, which looks for a folder it can write to
from vggfeat import Settings, extract
from vggfeat.errors import SpaceError
settings = Settings(layers='conv1_1:map', model='vgg11', weights='random:0', size=32, device='cpu',
                    workers=0)
said = []
for size in (0, 1000, 4096, 5000, 20000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, -1))
    for out in ('o.h5', 'shards/'):
        try:
            extract('images', out, settings)
        except SpaceError as error:
            said.append((error.exit_code, str(error), os.listdir()))
resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
print(json.dumps(said))
"""


def test_a_cache_larger_than_files_may_be(tmp_path: Path) -> None:
    """One line in the system's words, exit 6, and neither a file nor a new folder is left."""
    write_images(tmp_path / "images", 3)
    done = subprocess.run(
        [*PYTHON, "-c", LIMITED], cwd=tmp_path, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert len(said) == 10
    for code, text, left in said:
        assert code == 6
        assert left == ["images"]
        assert "\n" not in text
        assert "errno" not in text
        assert "File too large" in text or "a file may not be so large here" in text


def test_any_failed_write_of_a_model(shim: str, tmp_path: Path) -> None:
    """Whichever write fails, saving says so and leaves nothing; the last of all leaves it whole."""
    save_fitted(str(tmp_path / "right.h5"), model())
    for at in range(1, 200):
        env = {"LD_PRELOAD": shim, "FAIL_SUFFIX": "m.h5.vggfeat.tmp", "FAIL_AT": str(at)}
        code, said = save(tmp_path, env)
        if code == 0:
            break
        assert code == 6, said
        assert "model 'm.h5' cannot be written: Input/output error" in said
        assert os.listdir(tmp_path) == ["right.h5"]
    assert at > 3, "no write was refused"
    with h5py.File(tmp_path / "m.h5") as found, h5py.File(tmp_path / "right.h5") as right:
        assert set(found) == set(right)
        assert all((found[name][()] == right[name][()]).all() for name in right)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 0.99])
def test_a_model_larger_than_files_may_be(share: float, tmp_path: Path) -> None:
    """With a limit on the size of files the old model stays, byte for byte."""
    save_fitted(str(tmp_path / "m.h5"), Fitted("reduce", {"asked": {}}, {"x": np.arange(3)}))
    old = (tmp_path / "m.h5").read_bytes()
    save_fitted(str(tmp_path / "right.h5"), model())
    size = (tmp_path / "right.h5").stat().st_size
    code, said = save(tmp_path, {}, int(size * share))
    assert (code, said) == (6, "model 'm.h5' cannot be written: File too large")
    assert (tmp_path / "m.h5").read_bytes() == old
    assert sorted(os.listdir(tmp_path)) == ["m.h5", "right.h5"]


REDUCE = ["reduce", "feats.h5", "--dims", "3", "--layers", "conv1_1"]


EXPORT = ["export", "feats.h5", "--out", "o", "--to"]
MADE = {
    "model": ([*REDUCE, "--out", "r.h5"], "r.model.h5"),
    "cache": ([*REDUCE, "--out", "r.h5"], "r.h5"),
    "hdf5": ([*EXPORT, "hdf5"], ".o"),
    "hdf5 gzip": ([*EXPORT, "hdf5", "--compress", "gzip"], ".o"),
    "hloc": ([*EXPORT, "hloc"], ".o"),
    "npz": ([*EXPORT, "npz"], ".o"),
    "parquet": ([*EXPORT, "parquet"], ".o"),
    "csv": ([*EXPORT, "csv"], ".o"),
    "safetensors": ([*EXPORT, "safetensors"], ".o"),
}


@pytest.mark.parametrize(
    ("made", "at"),
    [
        *((made, "first") for made in ("cache", "hdf5", "npz", "parquet", "csv", "safetensors")),
        *((made, "last") for made in ("model", "cache", "hdf5", "hdf5 gzip", "hloc")),
    ],
)
def test_a_failed_write_of_a_command(
    shim: str, workplace: Path, tmp_path: Path, made: str, at: str
) -> None:
    """Exit 6, one line, no output, no temporary; the same command again makes it."""
    words, file = MADE[made]
    os.symlink(workplace / "feats.h5", tmp_path / "feats.h5")
    number = writes_to(file, words, tmp_path, shim) if at == "last" else 1
    env = {"LD_PRELOAD": shim, "FAIL_SUFFIX": f"/{file}.vggfeat.tmp", "FAIL_AT": str(number)}
    done = vggfeat(*words, cwd=tmp_path, env=env)
    assert done.returncode == 6, (done.stdout, done.stderr)
    assert "Input/output error" in done.stderr
    said = [one for one in done.stderr.splitlines() if "RANDOM WEIGHTS" not in one]
    assert len(said) == 1, done.stderr
    assert not (tmp_path / file.removeprefix(".")).exists()
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]
    assert vggfeat(*words, cwd=tmp_path).returncode == 0


def writes_to(file: str, words: list[str], folder: Path, shim: str) -> int:
    """How many writes the command makes to its temporary."""
    log = folder / "log"
    env = {
        "LD_PRELOAD": shim,
        "FAIL_SUFFIX": f"/{file}.vggfeat.tmp",
        "FAIL_LOG": str(log),
        "FAIL_AT": "0",
    }
    done = vggfeat(*words, cwd=folder, env=env)
    assert done.returncode == 0, done.stderr
    count = log.stat().st_size
    for path in folder.iterdir():
        if path.name != "feats.h5":
            path.unlink()
    return count


@pytest.mark.parametrize("kilobytes", [4, 64, 300, 600])
@pytest.mark.parametrize("words", [["hdf5"], ["hdf5", "--compress", "gzip"], ["hloc"], ["npz"]])
def test_exports_to_a_disk_nearly_full(tmp_path: Path, kilobytes: int, words: list[str]) -> None:
    """A disk without room for the export ends it with exit 6, and nothing is left."""
    big = tmp_path / "big.h5"
    make_cache(big, 600)
    with mounted(tmp_path / "d", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs") as disk:
        done = vggfeat("export", big, "--to", *words, "--out", disk / "o", cwd=tmp_path)
        assert done.returncode == 6, (done.returncode, done.stderr)
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert "No space left on device" in done.stderr
        assert not [name for name in os.listdir(disk) if not name.endswith(".lock")]


MANY_SIZES = """
import os, resource, sys
import vggfeat
from vggfeat.errors import SpaceError
for words in ({"to": "hdf5"}, {"to": "hdf5", "compress": "gzip"}, {"to": "hloc"}, {"to": "parquet"},
              {"to": "safetensors"}, {"to": "npz"}, {"to": "csv"}):
    whole = vggfeat.export("c.h5", "whole", **words).bytes
    os.unlink("whole")
    for part in range(24):
        resource.setrlimit(resource.RLIMIT_FSIZE, (whole * part // 24, -1))
        try:
            vggfeat.export("c.h5", "o", **words)
        except SpaceError as error:
            assert "File too large" in str(error) and len(str(error).splitlines()) == 1, str(error)
        else:
            sys.exit(f"{words}: {part} of 24 was enough")
        resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
        assert os.listdir() == ["c.h5"], (words, part, os.listdir())
"""


def test_exports_that_end_at_any_size(tmp_path: Path) -> None:
    """Wherever in its file an export finds no more room, it is one line, and nothing is left."""
    make_cache(tmp_path / "c.h5", 20)
    done = subprocess.run(
        [*PYTHON, "-c", MANY_SIZES], cwd=tmp_path, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, (done.returncode, done.stderr)


def make_cache(path: Path, rows: int) -> None:
    """A finished cache of noise, 2 kB a row, which compression does not make much smaller."""
    identity = Identity("vgg16", "w", "00" * 32, "float32", "float32", Preprocess(), ("fc7",))
    provenance = Provenance(b"/", {"batch_size": 1}, "2026-01-02T03:04:05+00:00", "1", {})
    lay_out(str(path), rows, 9, shapes={"fc7": (512,)}, identity=identity, provenance=provenance)
    with h5py.File(path, "r+") as file:
        file["images/path"][:] = [f"{row:05}.png".encode() for row in range(rows)]
        file["images/state"][:] = 1
        file["features/fc7"][:] = np.random.default_rng(0).normal(size=(rows, 512))
