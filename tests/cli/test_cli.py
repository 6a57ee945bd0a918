"""The command line as a user runs it: real processes, exit codes, output, files left behind."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pytest
from command_line import SMALL, assert_one_line, cpu_seconds, vggfeat, write_images

from vggfeat.cli.layers import layers
from vggfeat.config import PRESETS
from vggfeat.core.layer_spec import NORMS, POOLS
from vggfeat.storage.locks import hold

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, one of them broken, and a finished cache of them."""
    folder = tmp_path_factory.mktemp("cli")
    write_images(folder / "images", 6)
    (folder / "images" / "sub").mkdir()
    (folder / "images" / "sub" / "broken.jpg").write_bytes(b"<html>not found</html>")
    (folder / "images" / "notes.txt").write_text("no image")
    done = vggfeat("extract", "images", *SMALL, "--out", "feats.h5", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "first-output").write_text(done.stdout)
    (folder / "first-notices").write_text(done.stderr)
    return folder


def test_extract_says_what_it_did(workplace: Path) -> None:
    """The summary names counts, layers with shapes, weights and every failed image."""
    text = (workplace / "first-output").read_text()
    assert "feats.h5: 7 images, 6 done, 1 failed" in text
    assert "conv1_1 (64), conv2_1:max (128), float16" in text
    assert "sub/broken.jpg: not an image" in text
    assert "WARNING  RANDOM WEIGHTS (seed 0)" in text
    notices = (workplace / "first-notices").read_text()
    assert "RANDOM WEIGHTS (seed 0)" in notices
    assert "skipped 1 file that is not an image: txt 1" in notices


def test_the_file_says_that_weights_are_random(workplace: Path) -> None:
    """Random weights are marked in the file itself."""
    with h5py.File(workplace / "feats.h5") as file:
        assert file.attrs["weights"] == b"random:0"
        assert b"RANDOM WEIGHTS" in file.attrs["warning"]


def test_the_same_command_again_has_nothing_to_do_and_needs_no_torch(workplace: Path) -> None:
    """Running a finished extraction again changes nothing and does not import torch."""
    before = (workplace / "feats.h5").read_bytes()
    done = vggfeat("extract", "images", *SMALL, "--out", "feats.h5", cwd=workplace,
                   env={"PYTHONPROFILEIMPORTTIME": "1"})  # fmt: skip
    assert done.returncode == 0
    assert "nothing left to do" in done.stdout
    assert "vggfeat.extraction.pipeline" in done.stderr
    assert "| torch" not in done.stderr
    assert (workplace / "feats.h5").read_bytes() == before


@pytest.mark.parametrize(
    "same", [["--layers", "conv1_1"], ["--layers", "relu2_1:max,relu1_1:avg:none,conv1_1"],
             ["--batch-size", "auto"], ["--precision", "float32"]],
)  # fmt: skip
def test_the_same_in_other_words_is_no_difference(workplace: Path, same: list[str]) -> None:
    """Fewer layers, aliases and spelled-out defaults go on with the cache."""
    done = vggfeat("extract", "images", *SMALL, *same, "--out", "feats.h5", cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert "nothing left to do" in done.stdout


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (["--layers", "conv1_1,conv1_1:max"], ["layers: file", "requested also conv1_1:max"]),
        (["--weights", "random:1"], ["weights: file random:0", "requested random:1"]),
        (["--crop", "squash"], ["preprocess.crop: file center, requested squash"]),
        (["--precision", "bfloat16"], ["precision: file float32, requested bfloat16"]),
        (["--dtype", "float32", "--exif", "ignore"], ["dtype: file float16", "preprocess.exif"]),
        (["--model", "vgg13"], ["model: file vgg11, requested vgg13"]),
    ],
)
def test_other_settings_are_refused(workplace: Path, other: list[str], words: list[str]) -> None:
    """A cache made with other settings is left alone: exit 5 and the list of what differs."""
    before = (workplace / "feats.h5").read_bytes()
    done = vggfeat("extract", "images", *SMALL, *other, "--out", "feats.h5", cwd=workplace)
    assert_one_line(done, 5, "made with other settings", "--fresh", *words)
    assert (workplace / "feats.h5").read_bytes() == before


def test_other_images_are_refused_and_fewer_are_not(workplace: Path, tmp_path: Path) -> None:
    """New images are exit 5 naming the first; a part of the images is no difference."""
    more = tmp_path / "images"
    shutil.copytree(workplace / "images", more)
    shutil.copy(workplace / "feats.h5", tmp_path)
    (more / "03.png").unlink()
    done = vggfeat("extract", "images", *SMALL, "--out", "feats.h5", cwd=tmp_path)
    assert done.returncode == 0
    assert "1 image of the cache was not requested; kept" in done.stderr
    shutil.copy(more / "01.png", more / "new.png")
    done = vggfeat("extract", "images", *SMALL, "--out", "feats.h5", cwd=tmp_path)
    assert_one_line(done, 5, "other images", "'new.png'")


def test_changed_images_are_told(workplace: Path, tmp_path: Path) -> None:
    """An image that changed after its features were taken is a warning, not silence."""
    shutil.copytree(workplace / "images", tmp_path / "images")
    shutil.copy(workplace / "feats.h5", tmp_path)
    os.utime(tmp_path / "images" / "02.png", (1, 1))
    done = vggfeat("extract", "images", *SMALL, "--out", "feats.h5", cwd=tmp_path)
    assert done.returncode == 0
    assert "1 image has changed" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["extract", "images", "--out", "x.h5"], 2, "no layers requested"),
        (["extract", "images", "--layers", "conv9_9,fc7", "--out", "x.h5"], 2, "'conv9_9'"),
        (["extract", "images", *SMALL, "--batch-size", "many", "--out", "x.h5"], 2, "'many'"),
        (["extract", "images", *SMALL, "--out", "no/x.h5"], 2, "create it first"),
        (
            ["extract", "images", "--config", "nope", "--out", "x.h5"],
            2,
            "or the path of a .toml file",
        ),
        (["extract", "nowhere", *SMALL, "--out", "x.h5"], 3, "'nowhere'"),
        (["extract", "images", *SMALL, "--weights", "w.pth", "--out", "x.h5"], 3, "'w.pth'"),
        (["extract", "images", *SMALL, "--device", "cuda:99", "--out", "x.h5"], 6, "cuda:99"),
        (["extract", "images", *SMALL, "--out", "text.h5"], 5, "not an HDF5 file"),
        (["extract", "images", *SMALL, "--fresh", "--out", "text.h5"], 5, "caches of ours only"),
        (["inspect", "text.h5"], 5, "not an HDF5 file"),
        (["inspect", "nowhere.h5"], 3, "does not exist"),
        (["layers", "--model", "vgg20"], 2, "vgg20"),
        (["layers", "--size", "8"], 2, "size is 8"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(
    workplace: Path, words: list[str], code: int, expected: str
) -> None:
    """Each mistake ends in one clear line and its exit code, and no output file."""
    (workplace / "text.h5").write_text("plain text")
    done = vggfeat(*words, cwd=workplace)
    assert_one_line(done, code, expected)
    assert not (workplace / "x.h5").exists()
    assert (workplace / "text.h5").read_text() == "plain text"
    assert not list(workplace.glob("*.tmp"))


def test_a_traceback_only_on_demand(workplace: Path) -> None:
    """--debug shows where an error came from."""
    done = vggfeat("--debug", "inspect", "nowhere.h5", cwd=workplace)
    assert "Traceback" in done.stderr
    assert "MissingFileError" in done.stderr


def test_offline_without_weights_says_where_to_put_them(workplace: Path, tmp_path: Path) -> None:
    """Weights that cannot be fetched are exit 3 with the file, its place, and the remedy."""
    done = vggfeat(
        "extract", "images", "--layers", "conv1_1", "--quiet", "--out", "x.h5", cwd=workplace,
        env={"VGGFEAT_WEIGHTS_URL": "http://127.0.0.1:9", "TORCH_HOME": str(tmp_path)},
    )  # fmt: skip
    assert_one_line(done, 3, "vgg19-dcbb9e9d.pth", str(tmp_path / "hub" / "checkpoints"),
                    "VGGFEAT_WEIGHTS_URL", "random:0")  # fmt: skip


def test_a_held_output_is_exit_75(workplace: Path) -> None:
    """A second run on the same output leaves at once and names the holder."""
    with hold(str(workplace / "feats.h5")):
        done = vggfeat("extract", "images", *SMALL, "--out", "feats.h5", cwd=workplace)
    assert_one_line(done, 75, f"pid {os.getpid()}")


def test_too_many_failures_are_exit_4_and_the_rest_is_done(workplace: Path) -> None:
    """Beyond the allowance the run counts as failed, but every other image is done."""
    done = vggfeat("extract", "images", *SMALL, "--max-failures", "0", "--out", "strict.h5",
                   cwd=workplace)  # fmt: skip
    assert done.returncode == 4
    assert "1 of 7 images failed, and --max-failures allows 0; the other 6 are done" in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_run_and_it_goes_on(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """SIGTERM and SIGINT finish the batch, keep what is done, and the next run does the rest."""
    write_images(tmp_path / "images", 4)
    for copy in range(400):
        os.link(tmp_path / "images" / f"{copy % 4:02}.png", tmp_path / "images" / f"c{copy}.png")
    words = ["extract", "images", *SMALL, "--batch-size", "1", "--out", "feats.h5"]
    words[words.index("--size") + 1] = "224"
    process = subprocess.Popen(
        [sys.executable, "-m", "vggfeat", *words, "--checkpoint-seconds", "0"],
        cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    _wait_for_done_rows(tmp_path / "feats.h5")
    process.send_signal(number)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == code
    assert f"stopped by {number.name}" in errors
    with h5py.File(tmp_path / "feats.h5") as file:
        done = int((file["images/state"][()] == 1).sum())
    assert 0 < done < 404
    assert f"{done} of 404 images are done" in errors


def test_a_second_interrupt_stops_at_once(tmp_path: Path) -> None:
    """A second SIGINT does not wait for the batch; what was checkpointed stays, and it goes on."""
    write_images(tmp_path / "images", 48)
    words = [*SMALL[:3], "conv5_2", *SMALL[4:], "--size", "224", "--batch-size", "8"]
    command = ["extract", "images", *words, "--checkpoint-seconds", "0"]
    whole, out = tmp_path / "whole.h5", tmp_path / "feats.h5"
    assert vggfeat(*command, "--out", whole, cwd=tmp_path).returncode == 0
    said = "vggfeat: stopped at once; rows up to the last checkpoint are kept\n"
    for _ in range(5):  # where the machine is busy, the batch may end between the two signals
        out.unlink(missing_ok=True)
        errors = _interrupted_twice([*command, "--out", out], out)
        if errors.endswith(said):
            break
    assert errors.endswith(said)
    with h5py.File(out) as file, h5py.File(whole) as right:
        done = file["images/state"][()] == 1
        assert done.sum() in range(8, 48, 8)
        assert (file["features/conv5_2"][()][done] == right["features/conv5_2"][()][done]).all()
    assert vggfeat(*command, "--out", out, cwd=tmp_path).returncode == 0
    with h5py.File(out) as file, h5py.File(whole) as right:
        assert (file["features/conv5_2"][()] == right["features/conv5_2"][()]).all()


def _interrupted_twice(command: list[str | Path], out: Path) -> str:
    """What a run writes to stderr that gets two SIGINTs within a batch; its exit code is 130."""
    process = subprocess.Popen(
        [sys.executable, "-m", "vggfeat", *command],
        cwd=out.parent, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    _wait_for_done_rows(out)  # a later batch has begun, which takes seconds
    process.send_signal(signal.SIGINT)
    # Two signals that come while one operation of torch lasts are one. Its own time says how far
    # the process is, however busy the machine.
    until = cpu_seconds(process.pid) + 0.2
    while process.poll() is None and cpu_seconds(process.pid) < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    return errors


def _wait_for_done_rows(path: Path) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if path.exists():
            with h5py.File(path, "r", locking=False) as file:
                if (file["images/state"][()] == 1).any():
                    return
        time.sleep(0.02)
    raise AssertionError("no row was done within five minutes")


def test_lists_and_stdin(workplace: Path) -> None:
    """A list file and a list on standard input name the images."""
    (workplace / "list.txt").write_text("images/00.png\nimages/04.png\nimages/gone.png\n")
    done = vggfeat("extract", "@list.txt", *SMALL, "--json", "--out", "list.h5", cwd=workplace)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["done"], summary["failed"]) == (2, 1)
    assert summary["failures"][0]["path"] == "gone.png"
    done = vggfeat("extract", "-", *SMALL, "--out", "stdin.h5", cwd=workplace,
                   stdin=b"images/00.png\0images/04.png\0")  # fmt: skip
    assert done.returncode == 0, done.stderr
    with h5py.File(workplace / "list.h5") as one, h5py.File(workplace / "stdin.h5") as two:
        assert two["images/path"][()].tolist() == [b"00.png", b"04.png"]
        assert (one["features/conv1_1"][:2] == two["features/conv1_1"][()]).all()


def test_inspect_shows_everything(workplace: Path) -> None:
    """States, layers with shape and statistics, weights, preprocessing and failures are shown."""
    done = vggfeat("inspect", "feats.h5", cwd=workplace)
    assert done.returncode == 0, done.stderr
    for word in ("7 images: 6 done, 1 failed", "conv2_1:max", "float16", "random:0", "resize 37",
                 "sub/broken.jpg", "vgg11", "(values of 6 rows)"):  # fmt: skip
        assert word in done.stdout
    with h5py.File(workplace / "feats.h5") as file:
        values = file["features/conv1_1"][()][file["images/state"][()] == 1].astype(np.float64)
    shown = json.loads(vggfeat("inspect", "feats.h5", "--json", cwd=workplace).stdout)
    layer = next(layer for layer in shown["layers"] if layer["spec"] == "conv1_1")
    assert layer["mean"] == pytest.approx(values.mean(), rel=1e-6)
    assert layer["std"] == pytest.approx(values.std(), rel=1e-6)
    assert (layer["minimum"], layer["maximum"]) == (values.min(), values.max())
    assert shown["failures"][0]["path"] == "sub/broken.jpg"


def test_a_config_file_and_flags_over_it(workplace: Path) -> None:
    """Settings come from TOML; a flag wins over the file."""
    (workplace / "mine.toml").write_text(
        'layers = ["conv1_1:max"]\nmodel = "vgg13"\nweights = "random:3"\nsize = 32\nworkers = 0\n'
    )
    done = vggfeat("extract", "images", "--config", "mine.toml", "--model", "vgg11", "--json",
                   "--out", "config.h5", cwd=workplace)  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["model"] == "vgg11"
    assert summary["weights"] == "random:3"
    assert summary["layers"] == {"conv1_1:max": [64]}


def test_fresh_begins_again(workplace: Path) -> None:
    """--fresh replaces a cache of ours by one with the new settings."""
    shutil.copy(workplace / "feats.h5", workplace / "again.h5")
    done = vggfeat("extract", "images", *SMALL, "--layers", "conv1_1:max", "--fresh", "--out",
                   "again.h5", cwd=workplace)  # fmt: skip
    assert done.returncode == 0, done.stderr
    with h5py.File(workplace / "again.h5") as file:
        assert list(file["features"]) == ["conv1_1:max"]


@pytest.mark.parametrize(
    "words",
    [
        ["search", "--row", "00.png", "--layer", "conv1_1"],
        ["duplicates", "--layer", "conv1_1"],
        ["plot", "--out", "p.svg"],
        ["sheet", "--out", "s.png"],
        ["explore", "--out", "e.html"],
        ["fuse", "--out", "fused.h5"],
        ["reduce", "--layers", "conv1_1", "--dims", "2", "--out", "reduced.h5"],
        ["export", "--to", "npz", "--out", "n.npz"],
        ["merge", "--out", "m.h5"],
    ],
    ids=lambda words: words[0],
)
def test_random_weights_are_said_by_whatever_reads_a_cache(
    workplace: Path, tmp_path: Path, words: list[str]
) -> None:
    """The warning that the cache records is one line on stderr of each command, and no error."""
    done = vggfeat(words[0], workplace / "feats.h5", *words[1:], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if "RANDOM WEIGHTS (seed 0)" in line]
    assert len(said) == 1, done.stderr
    assert said[0].startswith("vggfeat: warning: cache ")


def test_presets_are_listed_for_a_variant(tmp_path: Path) -> None:
    """Each preset with its layers in that variant and its purpose, as text and as JSON."""
    done = vggfeat("presets", "--model", "vgg11_bn", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "\nsame-picture: conv3_2:ssr, conv4_2:ssr, conv5_2:ssr" in done.stdout
    done = vggfeat("presets", "--json", cwd=tmp_path)
    listed = json.loads(done.stdout)
    assert listed["model"] == "vgg19"
    assert [one["name"] for one in listed["presets"]] == list(PRESETS)
    assert all(len(one["purpose"]) > 40 for one in listed["presets"])
    assert_one_line(vggfeat("presets", "--model", "vgg12", cwd=tmp_path), 2, "vgg11")


def test_layers_and_doctor_and_version(workplace: Path) -> None:
    """The table of layers, the findings about the machine, and the version are shown."""
    table = vggfeat("layers", "--model", "vgg16", cwd=workplace)
    line = next(line for line in table.stdout.splitlines() if line.startswith("conv5_3"))
    assert line.split()[1:9] == ["features.28", "512", "x", "14", "x", "14", "512", "2,359,808"]
    rows = json.loads(vggfeat("layers", "--json", "--size", "448", cwd=workplace).stdout)
    assert rows["layers"][0]["shape"] == [64, 448, 448]
    doctor = vggfeat("doctor", cwd=workplace)
    assert doctor.returncode == 0, doctor.stdout
    assert "torchvision" in doctor.stdout
    assert vggfeat("--version", cwd=workplace).stdout.startswith("vggfeat 0.")


def test_help_of_layers_names_every_pool_and_norm() -> None:
    """Who looks up a layer is told what a spec can add to its name."""
    shown = layers.__doc__ or ""
    assert [word for word in (*POOLS, *NORMS) if word not in shown] == []


def test_doctor_recognises_a_torchvision_of_another_torch(workplace: Path, tmp_path: Path) -> None:
    """A pair that does not fit, as its import error shows, is a problem with the remedy."""
    package = tmp_path / "torchvision"
    package.mkdir()
    message = "operator torchvision::nms does not exist"
    (package / "__init__.py").write_text(f"raise RuntimeError({message!r})")
    done = vggfeat("doctor", cwd=workplace, env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 2
    assert message in done.stdout
    assert "pip install --upgrade --force-reinstall torch torchvision" in done.stdout


def test_a_bar_on_a_terminal(workplace: Path) -> None:
    """On a terminal a progress bar with images per second is drawn on stderr."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "vggfeat", "extract", "images", *SMALL, "--out", "bar.h5"],
        cwd=workplace, stderr=follower, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(follower)
    shown = b""
    try:
        while block := os.read(leader, 4096):
            shown += block
    except OSError:
        pass  # the other side is closed
    os.close(leader)
    assert process.wait() == 0
    assert b"7/7" in shown
    assert b"images/s" in shown


def test_rows_do_not_depend_on_workers_or_batch_size(workplace: Path) -> None:
    """The same rows come out of other numbers of workers and images a pass."""
    names = []
    for workers, batch in (("0", "7"), ("2", "3"), ("1", "1")):
        names.append(f"w{workers}b{batch}.h5")
        words = [*SMALL, "--workers", workers, "--batch-size", batch, "--dtype", "float32"]
        done = vggfeat("extract", "images", *words, "--out", names[-1], cwd=workplace)
        assert done.returncode == 0, done.stderr
    arrays = []
    for name in names:
        with h5py.File(workplace / name) as file:
            arrays.append(file["features/conv2_1:max"][()])
    assert np.isnan(arrays[0][6]).all()  # the broken image, and no neighbour's features
    scale = np.nanmax(np.abs(arrays[0]))
    for array in arrays[1:]:
        assert np.nanmax(np.abs(array - arrays[0])) <= 1e-5 * scale
