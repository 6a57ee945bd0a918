"""Weight files that others overwrite, replace or cut short while a real process works with them."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, cast

import h5py
import numpy as np
import pytest
import safetensors.torch
import torch
from command_line import assert_one_line, vggfeat
from PIL import Image
from torchvision.models.vgg import cfgs, make_layers

from vggfeat.core.vgg_layers import layer_table
from vggfeat.errors import WeightsError
from vggfeat.network.weights import Weights, find_weights, load_tensors
from vggfeat.storage.checked_file import PIECE_BYTES, CheckedFile, FileChangedError, digest_file
from vggfeat.storage.digests import file_digests

KINDS = ("w.safetensors", "w.pth", "legacy.pth")
IMAGES = 240
RUN = (
    "--model", "vgg11", "--layers", "conv2_1", "--device", "cpu", "--precision", "float32",
    "--dtype", "float32", "--size", "48", "--batch-size", "2", "--workers", "0",
    "--checkpoint-seconds", "0",
)  # fmt: skip
WAIT = 300  # seconds, for machines with other things to do


def write_weights(path: Path, seed: int) -> None:
    """The first layers of a VGG11, several pieces long, in the format that the name says."""
    torch.manual_seed(seed)
    network = make_layers(cfgs["A"])[:12]
    state = {f"features.{name}": value for name, value in network.state_dict().items()}
    for name, value in state.items():
        if name.endswith("bias"):
            state[name] = value + torch.randn(value.shape)
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization="legacy" not in path.name)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("overwritten")
    for name in KINDS:
        write_weights(folder / name, 0)
        write_weights(folder / f"other-{name}", 1)
        assert (folder / name).stat().st_size > 1.2 * PIECE_BYTES
    (folder / "images").mkdir()
    noise = np.random.default_rng(0)
    for number in range(IMAGES):
        pixels = noise.integers(0, 256, (48, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number:03}.png")
    return folder


def overwrite(path: Path, other: Path) -> None:
    """As `cp` does: the same file, cut to nothing and written anew."""
    with path.open("wb") as target, other.open("rb") as source:
        shutil.copyfileobj(source, target)


@pytest.fixture
def weights(place: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copy(place / request.param, tmp_path / request.param))


each_kind = pytest.mark.parametrize("weights", KINDS, indirect=True)


def rows_of(path: Path) -> tuple[np.ndarray, np.ndarray, str]:
    with h5py.File(path) as file:
        values, states = file["features/conv2_1"][:], file["images/state"][:]
        return values, states, file.attrs["weights_sha256"].decode()


def done_rows(path: Path) -> int:
    if not path.exists():
        return 0
    with h5py.File(path, locking=False) as file:
        return int((file["images/state"][:] == 1).sum())


@each_kind
@pytest.mark.parametrize("manner", ["overwritten", "cut short"])
def test_a_run_computes_with_what_it_loaded(
    place: Path, weights: Path, tmp_path: Path, manner: str
) -> None:
    """What happens to the file after the first rows changes none of the others, and no SIGBUS."""
    words = ["extract", str(place / "images"), "--weights", str(weights), *RUN, "--out"]
    digest = file_digests(str(weights)).sha256
    done = vggfeat(*words, "whole.h5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = subprocess.Popen(
        [sys.executable, "-m", "vggfeat", *words, "met.h5"],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    met = tmp_path / "met.h5"
    end = time.monotonic() + WAIT
    while done_rows(met) == 0 and run.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.001)
    run.send_signal(signal.SIGSTOP)
    before = done_rows(met)
    if manner == "overwritten":
        overwrite(weights, place / f"other-{weights.name}")
    else:
        os.truncate(weights, 100)
    run.send_signal(signal.SIGCONT)
    assert run.wait(WAIT) == 0
    assert 0 < before < IMAGES  # or nothing was tested
    expected, found = rows_of(tmp_path / "whole.h5"), rows_of(met)
    assert found[1].tolist() == [1] * IMAGES
    assert np.array_equal(found[0], expected[0])
    assert found[2] == expected[2] == digest


# Loads in two steps, and waits for a line in between.
CHILD = """
import sys
from vggfeat.errors import VggfeatError
from vggfeat.core.vgg_layers import layer_table
from vggfeat.network.weights import find_weights, load_tensors
found = find_weights(sys.argv[1], "vgg11")
print(found.sha256, flush=True)
input()
try:
    tensors = load_tensors(found, "vgg11", layer_table("vgg11")[:8])
except VggfeatError as error:
    print(error)
    sys.exit(error.exit_code)
import hashlib
maps = open("/proc/self/maps").read()
print("mapped" if sys.argv[1] in maps else "own", flush=True)
input()
values = b"".join(one.numpy().tobytes() for one in tensors.values())
print(hashlib.sha256(values).hexdigest())
"""


def start(weights: Path) -> tuple[subprocess.Popen[str], IO[str], IO[str]]:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(weights)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return child, cast("IO[str]", child.stdin), cast("IO[str]", child.stdout)


@each_kind
@pytest.mark.parametrize("manner", ["overwritten", "cut short", "replaced"])
def test_between_its_digest_and_its_values(place: Path, weights: Path, manner: str) -> None:
    """A file that changes between the two is refused with exit 3: the digest would be another's."""
    child, _, stdout = start(weights)
    digest = stdout.readline().strip()
    assert digest == digest_file(str(weights)).sha256
    other = place / f"other-{weights.name}"
    if manner == "overwritten":
        overwrite(weights, other)
    elif manner == "replaced":
        shutil.copy(other, weights.with_suffix(".new"))
        weights.with_suffix(".new").replace(weights)
    else:
        os.truncate(weights, PIECE_BYTES + 5)
    said = child.communicate("\n", timeout=WAIT)[0]
    assert child.returncode == 3
    assert "changed while they were read" in said
    assert said.count("\n") == 1
    assert digest[:8] in said or "it was cut short" in said


@each_kind
def test_nothing_loaded_lies_in_the_file(place: Path, weights: Path) -> None:
    """After loading the file is mapped nowhere, and overwriting it changes no value."""
    child, stdin, stdout = start(weights)
    stdout.readline()
    stdin.write("\n")
    stdin.flush()
    assert stdout.readline() == "own\n"
    expected = load_tensors(find_weights(str(weights), "vgg11"), "vgg11", layer_table("vgg11")[:8])
    overwrite(weights, place / f"other-{weights.name}")
    said = child.communicate("\n", timeout=WAIT)[0]
    values = b"".join(one.numpy().tobytes() for one in expected.values())
    assert said.strip() == hashlib.sha256(values).hexdigest()


@each_kind
def test_bytes_that_change_without_a_trace(place: Path, weights: Path) -> None:
    """What a remembered digest cannot see, the values' own digests do; the next run is right."""
    found = find_weights(str(weights), "vgg11")
    overwrite(weights, place / f"other-{weights.name}")
    digest = digest_file(str(weights)).sha256
    stale = found.digest
    assert stale is not None
    # A clock too coarse to tell: the memory holds the old digest with the new file's times.
    _remember_as_of_now(weights, found)
    wrong = find_weights(str(weights), "vgg11")
    assert wrong.sha256 == found.sha256 != digest
    with pytest.raises(WeightsError, match="changed while they were read"):
        load_tensors(wrong, "vgg11", layer_table("vgg11")[:8])
    right = find_weights(str(weights), "vgg11")
    assert right.sha256 == digest
    load_tensors(right, "vgg11", layer_table("vgg11")[:8])


def _remember_as_of_now(path: Path, found: Weights) -> None:
    from vggfeat.storage import digests

    assert found.digest is not None
    stamp = digests._stamp(str(path))
    entry = {"stamp": stamp, "crc32": list(found.digest.pieces), "sha256": found.sha256}
    digests._remember(digests._digest_memory(), os.path.realpath(path), entry)


def test_the_time_of_change_counts(place: Path, tmp_path: Path) -> None:
    """Bytes changed in place under the old time of modification, as rsync does, are seen."""
    path = tmp_path / "w.safetensors"
    shutil.copy(place / "w.safetensors", path)
    before, status = file_digests(str(path)).sha256, path.stat()
    while path.stat().st_ctime_ns == status.st_ctime_ns:
        overwrite(path, place / "other-w.safetensors")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    assert file_digests(str(path)).sha256 == digest_file(str(path)).sha256 != before


def test_weights_of_another_digest_are_refused(place: Path) -> None:
    """Whoever says which digest the file has is held to it."""
    path = str(place / "w.safetensors")
    with pytest.raises(WeightsError, match=r"changed: their SHA-256 is [0-9a-f]{8}…, expected 0"):
        load_tensors(Weights("w", "0" * 64, path=path), "vgg11", layer_table("vgg11")[:1])


def test_the_command_says_it_in_one_line(weights_cut: Path, place: Path) -> None:
    """A file cut short is exit 3 and one line."""
    done = vggfeat("extract", place / "images", "--weights", weights_cut, *RUN, "--out", "f.h5",
                   cwd=weights_cut.parent)  # fmt: skip
    assert_one_line(done, 3, "cut short")
    assert not (weights_cut.parent / "f.h5").exists()


@pytest.fixture(params=KINDS)
def weights_cut(place: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    path = tmp_path / str(request.param)
    path.write_bytes((place / request.param).read_bytes()[: PIECE_BYTES + 1000])
    return path


# --- the file that is checked


@pytest.fixture(scope="module")
def noise_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checked") / "noise"
    path.write_bytes(np.random.default_rng(0).bytes(2 * PIECE_BYTES + 12_345))
    return path


def test_any_part_is_what_the_file_has(noise_file: Path) -> None:
    """Reads of any place and length, and many at once that overlap, give the file's bytes."""
    data, digest = noise_file.read_bytes(), file_digests(str(noise_file))
    random = np.random.default_rng(1)
    with CheckedFile(str(noise_file), digest) as file:
        assert file.read() == data
        spans = []
        for _ in range(60):
            begin, end = sorted(random.integers(0, len(data) + 1, 2).tolist())
            end = min(end, begin + int(random.choice([3, 70_000, 10**9])))
            file.seek(begin)
            assert file.read(end - begin) == data[begin:end]
            spans.append((begin, end))
        buffers = [bytearray(end - begin) for begin, end in spans]
        file.copy_into(
            (begin, memoryview(buffer)) for (begin, _), buffer in zip(spans, buffers, strict=True)
        )
        for (begin, end), buffer in zip(spans, buffers, strict=True):
            assert buffer == data[begin:end]
        with pytest.raises(ValueError, match="bytes"):
            file.copy_into([(len(data) - 2, memoryview(bytearray(3)))])


@pytest.mark.parametrize("at", [0, PIECE_BYTES - 1, PIECE_BYTES, 2 * PIECE_BYTES + 12_344])
def test_one_other_byte_is_refused(noise_file: Path, tmp_path: Path, at: int) -> None:
    """A piece with one other byte is refused; the others can be read."""
    data = bytearray(noise_file.read_bytes())
    digest = digest_file(str(noise_file))
    data[at] ^= 1
    (tmp_path / "changed").write_bytes(data)
    with CheckedFile(str(tmp_path / "changed"), digest) as file:
        for number in range(3):
            begin = number * PIECE_BYTES
            target = memoryview(bytearray(min(PIECE_BYTES, len(data) - begin)))
            if number == at // PIECE_BYTES:
                with pytest.raises(FileChangedError, match="differ from those"):
                    file.copy_into([(begin, target)])
            else:
                file.copy_into([(begin, target)])
                assert target == data[begin : begin + len(target)]
