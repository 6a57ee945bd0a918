"""Memory and cores within control groups, from trees of files as kernels and containers show."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING

import pytest

from vggfeat.core import resources
from vggfeat.core.cgroups import cores_allowed, memory_available, memory_left
from vggfeat.core.resources import usable_cores
from vggfeat.core.settings import Settings
from vggfeat.images.decoding import choose_workers
from vggfeat.network.device import choose_batch_size

if TYPE_CHECKING:
    from pathlib import Path

GIB, MIB = 1 << 30, 1 << 20
V1_UNLIMITED = "9223372036854771712"
MEMINFO = """\
MemTotal:       16384000 kB
MemFree:          300000 kB
MemAvailable:   12000000 kB
"""


def tree(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return str(root)


def test_free_memory_is_what_the_kernel_can_give(tmp_path: Path) -> None:
    """MemAvailable counts, which holds the page cache, and not MemFree."""
    assert memory_available(tree(tmp_path, {"proc/meminfo": MEMINFO})) == 12_000_000 * 1024


def test_no_files_no_limits(tmp_path: Path) -> None:
    """Where nothing can be read nothing is known."""
    root = str(tmp_path)
    assert (memory_available(root), memory_left(root), cores_allowed(root)) == (None, None, None)


@pytest.mark.parametrize("outer", ["job", "job/step"])
def test_v2_the_least_of_all_groups_around(outer: str, tmp_path: Path) -> None:
    """A limit of any group around the process binds it; inactive page cache is not taken."""
    root = tree(
        tmp_path,
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "0::/job/step/task",
            "sys/fs/cgroup/job/step/task/memory.max": "max",
            "sys/fs/cgroup/job/step/task/cpu.max": "max 100000",
            f"sys/fs/cgroup/{outer}/memory.max": str(2 * GIB),
            f"sys/fs/cgroup/{outer}/memory.current": str(GIB),
            f"sys/fs/cgroup/{outer}/memory.stat": f"anon 7\ninactive_file {256 * MIB}\nfile 9",
            f"sys/fs/cgroup/{outer}/cpu.max": "150000 100000",
        },
    )
    assert memory_left(root) == GIB + 256 * MIB
    assert memory_available(root) == GIB + 256 * MIB
    assert cores_allowed(root) == 1.5


def test_v2_within_a_container(tmp_path: Path) -> None:
    """A container that sees its group as the root finds the limits there."""
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/",
            "sys/fs/cgroup/memory.max": str(GIB),
            "sys/fs/cgroup/memory.current": str(2 * GIB),
            "sys/fs/cgroup/cpu.max": "50000 100000",
        },
    )
    assert memory_left(root) == 0
    assert cores_allowed(root) == 0.5


def test_v1_with_a_path_of_the_host(tmp_path: Path) -> None:
    """Of a path that is not in the container the root of the hierarchy is read."""
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n0::/",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": str(GIB),
            "sys/fs/cgroup/memory/memory.usage_in_bytes": str(512 * MIB),
            "sys/fs/cgroup/memory/memory.stat": f"inactive_file 1\ntotal_inactive_file {MIB}",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "300000",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
        },
    )
    assert memory_left(root) == 513 * MIB
    assert cores_allowed(root) == 3


def test_v1_nested_and_unlimited(tmp_path: Path) -> None:
    """Groups without a limit of their own count for nothing; those around them do."""
    memory, cpu = "sys/fs/cgroup/memory/slurm", "sys/fs/cgroup/cpu/slurm"
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "5:memory:/slurm/job\n4:cpu:/slurm/job",
            f"{memory}/job/memory.limit_in_bytes": V1_UNLIMITED,
            f"{memory}/memory.limit_in_bytes": str(4 * GIB),
            f"{memory}/memory.usage_in_bytes": str(GIB),
            f"{cpu}/job/cpu.cfs_quota_us": "-1",
            f"{cpu}/job/cpu.cfs_period_us": "100000",
            f"{cpu}/cpu.cfs_quota_us": "250000",
            f"{cpu}/cpu.cfs_period_us": "100000",
        },
    )
    assert memory_left(root) == 3 * GIB
    assert cores_allowed(root) == 2.5


QUOTA_V2 = {
    "proc/self/cgroup": "0::/job/step",
    "sys/fs/cgroup/job/cpu.max": "300000 100000",
    "sys/fs/cgroup/job/step/cpu.max": "800000 100000",
}
QUOTA_V1 = {
    "proc/self/cgroup": "4:cpu,cpuacct:/job/step",
    "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "250000",
    "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000",
    "sys/fs/cgroup/cpu,cpuacct/job/step/cpu.cfs_quota_us": "-1",
    "sys/fs/cgroup/cpu,cpuacct/job/step/cpu.cfs_period_us": "100000",
}


@pytest.mark.parametrize(
    ("files", "cores", "workers", "threads"),
    [
        (QUOTA_V2, 16, 3, "3"),
        (QUOTA_V1, 16, 3, "3"),
        (QUOTA_V2, 2, 2, None),  # fewer cores than the quota
        (QUOTA_V2, 4, 3, None),  # four may be two with two threads each
        ({}, 16, 16, None),
    ],
    ids=["v2", "v1", "few cores", "most of the cores", "no quota"],
)
def test_a_quota_reaches_workers_and_threads(
    files: dict[str, str],
    cores: int,
    workers: int,
    threads: str | None,
    *,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A quota of a group around the process's own limits workers and OpenMP's threads."""
    root = tree(tmp_path, files)
    monkeypatch.setattr(resources, "cores_allowed", partial(cores_allowed, root))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(cores)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert choose_workers(Settings(layers="fc7"), {"cuda"}) == workers
    resources.limit_threads()
    assert os.environ.pop("OMP_NUM_THREADS", None) == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    resources.limit_threads()
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_torch_has_no_more_threads_than_a_quota_leaves() -> None:
    """What is set before torch is loaded is what it then starts."""
    script = (
        "import os; from vggfeat.core import resources; from functools import partial;"
        "resources.cores_allowed = lambda: 0.5; resources._cores_at_hand = lambda: 64;"
        "resources.limit_threads(); import torch; print(torch.get_num_threads())"
    )
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, check=True)
    assert done.stdout == b"1\n"


@pytest.mark.parametrize(
    ("limit", "taken", "expected"),
    [(2 * GIB, GIB, 10), (2 * GIB, 2 * GIB - 60 * MIB, 1), (64 * GIB, GIB, 16)],
)
def test_memory_of_a_group_reaches_the_batch_size(
    limit: int, taken: int, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch takes half of what the group has left; of much memory the usual batch."""
    root = tree(
        tmp_path,
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "0::/job/step",
            "sys/fs/cgroup/job/memory.max": str(limit),
            "sys/fs/cgroup/job/memory.current": str(taken),
        },
    )
    monkeypatch.setattr(
        "vggfeat.network.batch_size.memory_available", partial(memory_available, root)
    )
    assert choose_batch_size(Settings(layers="fc7", device="cpu"), 1000) == expected


def test_here() -> None:
    """On this machine some memory is available, and no more cores than it has."""
    available = memory_available()
    assert available is None or available > 0
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
