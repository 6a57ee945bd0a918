"""Shards on a real Ray cluster of this machine, whose workers are killed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pytest
import stores
from command_line import vggfeat as run_vggfeat
from command_line import write_images

import vggfeat
from vggfeat.errors import DeviceError, UsageError
from vggfeat.extraction.ray_cluster import Node, RayCluster, Slots, plan_slots

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest.importorskip("ray")

IMAGES = 96
WORDS = [
    "--model", "vgg11", "--layers", "conv4_1", "--size", "64", "--weights", "random:0",
    "--device", "cpu", "--workers", "0", "--precision", "float32", "--batch-size", "4",
    "--checkpoint-seconds", "0",
]  # fmt: skip
PATIENT = {  # Ray's own limits are those of a machine with nothing else to do
    "RAY_NUM_REDIS_GET_RETRIES": "300",
    "RAY_gcs_server_request_timeout_seconds": "300",
    "RAY_gcs_rpc_server_connect_timeout_s": "300",
    "RAY_worker_register_timeout_seconds": "300",
    "RAY_agent_register_timeout_ms": "300000",
    "RAY_health_check_failure_threshold": "100",
}
JOINING = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64, "OMP_NUM_THREADS": "1", **PATIENT}
_WITHIN_SECONDS = 900  # where nothing is wrong a tenth of it; a busy machine is slow


@dataclass(frozen=True)
class Place:
    """A folder with images and a cache of them by one process, and a cluster of two CPUs."""

    folder: Path
    address: str
    head: int = 0  # process of the cluster's head

    def words(self, out: str, *more: str) -> list[str]:
        engine = ["--engine", "ray", "--address", self.address, "--actors", "2", "--shards", "4"]
        return ["extract", "images", *WORDS, *engine, "--out", out, *more]

    def begin(self, out: str, *more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "vggfeat", *self.words(out, *more)],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, **JOINING},
        )


def start_head(port: int) -> subprocess.Popen[bytes]:
    """Start the head of a cluster; on a busy machine it may end, as Ray waits 30 seconds for it."""
    command = ["ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2"]
    return subprocess.Popen(
        [sys.executable, "-m", *command, f"--port={port}", "--include-dashboard=false"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, **JOINING, "RAY_USAGE_STATS_ENABLED": "0"},
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("ray")
    write_images(folder / "images", IMAGES - 1)
    (folder / "images" / "broken.jpg").write_bytes(b"<html>not found</html>")
    done = run_vggfeat("extract", "images", *WORDS, "--out", "one.h5", cwd=folder)
    assert done.returncode == 0, done.stderr
    port = stores.free_port()
    head = start_head(port)
    until = time.monotonic() + _WITHIN_SECONDS
    status = [sys.executable, "-m", "ray.scripts.scripts", "status", f"--address=127.0.0.1:{port}"]
    while subprocess.run(
        status, capture_output=True, check=False, env={**os.environ, **JOINING}
    ).returncode:
        assert time.monotonic() < until
        if head.poll() is not None:  # a node has 30 seconds to come up
            head = start_head(port)
    yield Place(folder, f"127.0.0.1:{port}", head.pid)
    head.terminate()
    try:
        head.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()


def holder(shard: Path) -> int | None:
    """The worker of Ray's that holds a shard."""
    with contextlib.suppress(OSError):
        held = re.match(r"pid (\d+) on", Path(f"{shard}.lock").read_text())
        if held is not None and b"do_jobs" in Path(f"/proc/{held[1]}/cmdline").read_bytes():
            return int(held[1])
    return None


def ancestors(pid: int) -> Iterator[int]:
    """The parent of a process, its parent and so on."""
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        yield pid


def board_of(place: Place) -> int:
    """The process that deals out the shards of the only run on the cluster."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            board = (process / "cmdline").read_bytes().startswith(b"ray::Board")
            if board and place.head in ancestors(int(process.name)):
                return int(process.name)
    raise AssertionError("no board")


def shard_under_way(
    run: subprocess.Popen[str], folder: Path, besides: Path | None = None
) -> tuple[Path, int]:
    """A shard of which some rows are done and some are not, and the process that holds it."""
    until = time.monotonic() + _WITHIN_SECONDS
    while time.monotonic() < until:
        assert run.poll() is None, run.communicate()
        for shard in sorted({*folder.glob("shard-*.h5")} - {besides}):
            with contextlib.suppress(OSError, KeyError), h5py.File(shard) as file:
                states = set(file["images/state"][:].tolist())
                if states >= {0, 1} and (pid := holder(shard)) is not None:
                    return shard, pid
        time.sleep(0.01)
    raise AssertionError("no shard came under way")


def assert_equals_one_file(place: Place, out: str) -> None:
    """All rows are those of the one-process run, byte for byte."""
    one, sharded = vggfeat.open(place.folder / "one.h5"), vggfeat.open(place.folder / out)
    assert [bytes(path) for path in sharded.paths] == [bytes(path) for path in one.paths]
    assert np.array_equal(sharded.state, one.state)
    assert np.array_equal(sharded.checksums, one.checksums)
    features = np.asarray(sharded["conv4_1"])[sharded.done]
    assert features.tobytes() == np.asarray(one["conv4_1"])[one.done].tobytes()


def test_a_killed_worker_costs_nothing(place: Place) -> None:
    """Of two workers one is killed by SIGKILL in the middle: the rows are those of one process."""
    run = place.begin("killed")
    shard, pid = shard_under_way(run, place.folder / "killed")
    os.kill(pid, signal.SIGKILL)
    output, notices = run.communicate(timeout=_WITHIN_SECONDS)
    assert run.returncode == 0, notices
    assert f"{IMAGES} images, {IMAGES - 1} done, 1 failed" in output
    assert "2 Ray actors, cpu" in output
    assert_equals_one_file(place, "killed")
    assert not Path(f"{shard}.lock").exists()


NODES = """
import os, sys
from ray.cluster_utils import Cluster

cluster = Cluster(True, head_node_args={"num_cpus": 0, "include_dashboard": False})
nodes = [cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)]
print(cluster.address, flush=True)
for line in sys.stdin:  # "-" kills a node, "+" adds one
    if line == "-\\n":
        cluster.remove_node(nodes.pop(0), allow_graceful=False)
    else:
        cluster.add_node(num_cpus=1)
    print("done", flush=True)
cluster.shutdown()
"""


@pytest.mark.parametrize("changes", ["-", "-+"])
def test_a_node_that_dies_costs_nothing(place: Place, changes: str) -> None:
    """Its shard is dealt again, to the other node or to a new one; stdout is JSON alone."""
    out = f"nodes{len(changes)}"
    with subprocess.Popen(
        [sys.executable, "-c", NODES],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **JOINING, "RAY_USAGE_STATS_ENABLED": "0"},
    ) as cluster:
        assert cluster.stdin is not None
        assert cluster.stdout is not None
        run = Place(place.folder, cluster.stdout.readline().strip()).begin(out, "--json")
        first, _ = shard_under_way(run, place.folder / out)
        shard_under_way(run, place.folder / out, besides=first)  # one on each node
        for change in changes:
            print(change, file=cluster.stdin, flush=True)
            assert cluster.stdout.readline() == "done\n"
        output, notices = run.communicate(timeout=_WITHIN_SECONDS)
        cluster.stdin.close()
        assert run.returncode == 0, notices
    summary = json.loads(output)
    assert (summary["done"], summary["failed"]) == (IMAGES - 1, 1)
    assert "Is memory short" not in notices
    assert_equals_one_file(place, out)


def test_workers_that_end_at_once_are_counted(place: Place) -> None:
    """After four workers in a row that finish no batch of a shard the run ends, and says so."""
    run = place.begin("deaths", "--shards", "1")
    killed = set()
    while run.poll() is None:
        for shard in (place.folder / "deaths").glob("shard-*.h5"):
            if (pid := holder(shard)) is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                killed.add(pid)
        time.sleep(0.001)
    _, notices = run.communicate()
    assert run.returncode == 6, notices
    lines = notices.splitlines()
    assert lines[-1].startswith("vggfeat: 4 workers in a row ended without finishing a batch, of ")
    assert lines[-1].endswith("try fewer --actors, then run again to resume")
    assert "; dealt again" in notices
    assert len(killed) >= 4
    again = run_vggfeat(*place.words("deaths", "--shards", "1"), cwd=place.folder, env=JOINING)
    assert again.returncode == 0, again.stderr
    assert_equals_one_file(place, "deaths")


def test_the_end_of_the_board_ends_the_run(place: Place) -> None:
    """The run ends with one line that says so, and the same command resumes."""
    run = place.begin("boardless")
    shard_under_way(run, place.folder / "boardless")
    os.kill(board_of(place), signal.SIGKILL)
    _, notices = run.communicate(timeout=_WITHIN_SECONDS)
    assert run.returncode == 6, notices
    said = notices.splitlines()[-1]
    assert said.startswith("vggfeat: the process that deals out shards, beside this one, ended: ")
    assert said.endswith("; run again to resume")
    again = run_vggfeat(*place.words("boardless"), cwd=place.folder, env=JOINING)
    assert again.returncode == 0, again.stderr
    assert_equals_one_file(place, "boardless")


def test_a_signal_stops_all_and_the_same_command_goes_on(place: Place) -> None:
    """Ctrl-C in a terminal ends in 130, SIGTERM to the command in 143, and each time it goes on."""
    run = place.begin("stopped")
    shard_under_way(run, place.folder / "stopped")
    os.killpg(run.pid, signal.SIGINT)
    output, notices = run.communicate(timeout=_WITHIN_SECONDS)
    assert run.returncode == 130, notices
    assert "UNFINISHED (SIGINT)" in output
    assert "stopped by SIGINT" in notices
    run = place.begin("stopped")
    shard_under_way(run, place.folder / "stopped")
    run.terminate()
    run.communicate(timeout=_WITHIN_SECONDS)
    assert run.returncode == 143
    again = run_vggfeat(*place.words("stopped"), cwd=place.folder, env=JOINING)
    assert again.returncode == 0, again.stderr
    assert_equals_one_file(place, "stopped")


def test_a_cluster_of_its_own_is_quiet_and_judges_by_all_shards(place: Place) -> None:
    """Without an address one is made; stdout is the summary alone, exit 4 by all shards."""
    words = ["extract", "images", *WORDS, "--engine", "ray", "--actors", "2", "--shards", "3"]
    more = ["--out", "own", "--max-failures", "0", "--json", "--failures", "failed.csv"]
    done = run_vggfeat(*words, *more, cwd=place.folder)
    assert done.returncode == 4, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["done"], summary["failed"], summary["new_failed"]) == (IMAGES - 1, 1, 1)
    assert summary["failures"][0]["path"] == "broken.jpg"
    assert "broken.jpg,not an image" in (place.folder / "failed.csv").read_text()
    assert done.stderr.count("\n") == 1
    assert_equals_one_file(place, "own")


@pytest.mark.parametrize(
    ("nodes", "device", "actors", "expected"),
    [
        ([Node(8, 0)], "auto", None, Slots(1, 8, 0)),
        ([Node(8, 0)], "cpu", 3, Slots(3, 2, 0)),
        ([Node(8, 0), Node(4, 0)], "auto", None, Slots(2, 4, 0)),
        ([Node(8, 0), Node(4, 0)], "auto", 3, Slots(3, 4, 0)),
        ([Node(2, 0)], "cpu,cpu", 2, Slots(2, 1, 0)),
        ([Node(16, 4), Node(8, 0)], "auto", None, Slots(4, 4, 1)),
        ([Node(16, 4), Node(8, 0)], "cuda:1", 2, Slots(2, 4, 1)),
        ([Node(1, 2)], "all", None, Slots(2, 0.5, 1)),
        ([Node(16, 4)], "cpu", None, Slots(1, 16, 0)),
    ],
)
def test_a_cluster_is_dealt_out(
    nodes: list[Node], device: str, actors: int | None, expected: Slots
) -> None:
    """An actor a GPU, else one a node; more on demand, each with as many cores as there are."""
    assert plan_slots(nodes, device, actors) == expected


@pytest.mark.parametrize(
    ("nodes", "device", "actors", "kind", "words"),
    [
        (
            [Node(2, 0)],
            "cuda",
            None,
            DeviceError,
            "1 node of the cluster offers a GPU",
        ),
        ([Node(0, 0)], "cpu", None, DeviceError, "offers a CPU"),
        ([Node(2, 0)], "auto", 3, UsageError, "--actors is 3, the cluster offers 2 CPUs"),
        ([Node(8, 2)], "auto", 3, UsageError, "--actors is 3, the cluster offers 2 GPUs"),
    ],
)
def test_what_a_cluster_does_not_have_is_refused(
    nodes: list[Node], device: str, actors: int | None, kind: type[Exception], words: str
) -> None:
    """More actors than the cluster has room for, or a GPU it has not, are refused by number."""
    with pytest.raises(kind, match=words):
        plan_slots(nodes, device, actors)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--address", "127.0.0.1:9"], 6, "no Ray cluster at 127.0.0.1:9"),
        (["--shard", "0/2"], 2, "does all shards"),
        (["--actors", "0"], 2, "--actors is 0"),
    ],
)
def test_wrong_use_is_one_line(tmp_path: Path, words: list[str], code: int, said: str) -> None:
    """No cluster at an address, a share, no actors: one line and its exit code."""
    write_images(tmp_path / "images", 1)
    done = run_vggfeat(
        "extract", "images", *WORDS, "--engine", "ray", "--out", "x/", *words, cwd=tmp_path
    )
    assert done.returncode == code
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_lists_on_standard_input_are_for_one_process(tmp_path: Path) -> None:
    """A list on standard input, which no node has, is refused before a cluster is made."""
    settings = vggfeat.Settings(layers="conv1_1", model="vgg11", weights="random:0")
    with pytest.raises(UsageError, match="name an @LIST instead of -"):
        vggfeat.extract("-", f"{tmp_path}/x/", settings, cluster=RayCluster())
