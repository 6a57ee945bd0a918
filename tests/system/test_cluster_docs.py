"""The examples of docs/CLUSTER.md, run as far as one machine can."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import stores
from command_line import vggfeat as run_vggfeat
from command_line import write_images
from places import DOCS

import vggfeat
from vggfeat.cache.shard_manifest import read_manifest

PAGE = (DOCS / "CLUSTER.md").read_text()
SMALL = (
    "--model vgg11 --size 32 --weights random:0 --device cpu --workers 0 --precision float32 "
    "--batch-size 4"
)
LAYERS = "--layers conv5_3,fc7"
IMAGES = 30


def example(language: str, word: str) -> str:
    """The block of the page that holds a word, on small images of a small network."""
    blocks = re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)
    (block,) = [block for block in blocks if word in block]
    assert LAYERS in block
    return str(block.replace(LAYERS, f"--layers conv2_1 {SMALL}"))


def shell(text: str, folder: Path, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """A shell with the text, in which `vggfeat` is this one, wherever a whole path has it."""
    plain = text.replace("/opt/vggfeat/bin/", "").replace("/srv/shared", str(folder))
    tools = {"PATH": f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.Popen(
        ["bash", "-c", plain],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **tools, **(env or {})},
    )


def assert_ends(process: subprocess.Popen[str], status: int = 0) -> str:
    output, notices = process.communicate(timeout=300)
    assert process.returncode == status, (output, notices)
    return output


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images, and one cache of them by one process to compare with."""
    place = tmp_path_factory.mktemp("cluster")
    write_images(place / "images", IMAGES)
    words = ["--layers", "conv2_1", *SMALL.split(), "--out", "one.h5"]
    done = run_vggfeat("extract", "images", *words, cwd=place)
    assert done.returncode == 0, done.stderr
    return place


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A folder with the same, and `vggfeat` as a command."""
    for name in ("images", "one.h5"):
        (tmp_path / name).symlink_to(made / name)
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "vggfeat"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m vggfeat "$@"\n')
    command.chmod(0o755)
    return tmp_path


def assert_equals_one_file(folder: Path) -> None:
    one, sharded = vggfeat.open(folder / "one.h5"), vggfeat.open(folder / "feats")
    assert sharded.done.all()
    assert [bytes(path) for path in sharded.paths] == [bytes(path) for path in one.paths]
    assert np.asarray(sharded["conv2_1"]).tobytes() == np.asarray(one["conv2_1"]).tobytes()


def test_the_tasks_of_a_slurm_array_make_one_cache(folder: Path) -> None:
    """The script, run once for each task of its array, leaves the cache of one run."""
    script = example("bash", "#SBATCH")
    first, last = map(int, re.findall(r"--array=(\d+)-(\d+)", script)[0])
    for task in range(first, last + 1):
        env = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": str(last - first + 1)}
        assert_ends(shell(script, folder, env))
    assert len(read_manifest(str(folder / "feats")).shards) == last - first + 1
    assert_equals_one_file(folder)


STAND_IN = """#!/bin/sh
echo $$ > {folder}/asked
trap 'exit {status}' TERM
touch {folder}/started
while [ ! -e {folder}/over ]; do sleep 0.05; done
exit {status}
"""


@pytest.mark.parametrize(
    ("told", "status", "queued"), [(True, 143, True), (True, 0, False), (False, 4, False)]
)
def test_a_task_that_slurm_tells_of_its_end(
    tmp_path: Path, *, told: bool, status: int, queued: bool
) -> None:
    """The script hands the notice on, waits for the run, and queues again a task with rows left."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "vggfeat").write_text(STAND_IN.format(folder=tmp_path, status=status))
    (bin_folder / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/queued\n')
    for tool in bin_folder.iterdir():
        tool.chmod(0o755)
    script = example("bash", "#SBATCH")
    assert re.search(r"^#SBATCH --signal=B:TERM@\d+$", script, flags=re.MULTILINE)
    task = {"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_JOB_ID": "4711"}
    with shell(script, tmp_path, task) as process:
        until = time.monotonic() + 300
        while not (tmp_path / "started").exists():
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
        if told:
            process.send_signal(signal.SIGTERM)
        else:
            (tmp_path / "over").touch()
        assert_ends(process, status)
    assert (tmp_path / "queued").exists() == queued
    if queued:
        assert (tmp_path / "queued").read_text() == "requeue 4711\n"


def test_cron_on_three_machines_at_once_makes_one_cache(folder: Path) -> None:
    """The crontab's line, at work three times at once, leaves the cache of one run, and exit 0."""
    line = example("crontab", "--shards 16").split("*", 4)[-1].strip()
    machines = [shell(line, folder) for _ in range(3)]
    for machine in machines:
        assert_ends(machine)
    assert len(read_manifest(str(folder / "feats")).shards) == 16
    assert_equals_one_file(folder)


def test_a_ray_cluster_of_the_machine_makes_one_cache(folder: Path) -> None:
    """The command for Ray, on a cluster of its own, leaves the cache of one run."""
    pytest.importorskip("ray")
    (command,) = [line for line in example("bash", "ray start").splitlines() if "extract" in line]
    own = command.replace("--address HEAD:6379", "--actors 2").replace("--shards 64", "--shards 4")
    assert "2 Ray actors" in assert_ends(shell(own, folder))
    assert_equals_one_file(folder)


def test_images_and_cache_in_an_object_store(folder: Path) -> None:
    """The commands for a bucket, images and cache both there, show the cache they made."""
    block = example("bash", "AWS_ENDPOINT_URL").replace("--workers 16", "--workers 2")
    with stores.serving() as port:
        store = stores.client(port)
        store.create_bucket(Bucket="bucket")
        stores.upload(store, folder / "images", "bucket", "images")
        env = {**stores.environment(port), "XDG_CACHE_HOME": str(folder / "cache")}
        block = re.sub("https://objects[^ ]*", env["AWS_ENDPOINT_URL"], block)
        output = assert_ends(shell(f"set -e\n{block}", folder, env))
    assert f"s3://bucket/feats.h5: {IMAGES} images, {IMAGES} done" in output
    (work,) = (folder / "cache" / "vggfeat" / "scratch").rglob("feats.h5")
    one, there = vggfeat.open(folder / "one.h5"), vggfeat.open(work)
    assert there["conv2_1"].tobytes() == one["conv2_1"].tobytes()
