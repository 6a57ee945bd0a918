"""Times `vggfeat extract` against what people write themselves, each as a process of its own.

extract.py IMAGES [--rounds 3] [--layers conv5_3,fc7] [--peers plain_loop,good_script] [--limit N]
    [--precision float32]

All get the same images, the same random weights and the same layers. The precision is that of the
CPU, for us and the good script; the plain loop knows float32 alone. On CUDA all use their own. No
time is printed unless the features of all agree.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import torch
from check import lowest_cosine
from common import list_images

import vggfeat
from vggfeat.core.vgg_layers import CLASSES, COLOURS, layer_table, parameter_shapes
from vggfeat.network.vgg import needed_layers
from vggfeat.network.weights import find_weights, load_tensors

if TYPE_CHECKING:
    from numpy.typing import NDArray

HERE = Path(__file__).parent
OURS = "vggfeat"
LEAST_COSINE = 0.9999


@dataclass(frozen=True, slots=True)
class Job:
    """What every contestant is given, and where their outputs go."""

    images: str
    layers: str
    weights: str
    precision: str
    folder: str

    def out(self, name: str) -> str:
        """The file a contestant writes."""
        return os.path.join(self.folder, f"{name}.h5")

    def command(self, name: str) -> list[str]:
        """The command line of a contestant."""
        given = ["--layers", self.layers, "--weights", self.weights]
        if name == "good_script":
            given += ["--precision", self.precision]
        if name != OURS:
            return [sys.executable, str(HERE / f"{name}.py"), self.images, self.out(name), *given]
        # The peers know no EXIF orientation, so ours leaves it alone as well.
        given += ["--out", self.out(name), "--fresh", "--json", "--exif", "ignore"]
        if not torch.cuda.is_available():
            given += ["--device", "cpu", "--precision", self.precision]
        return [sys.executable, "-m", "vggfeat", "extract", self.images, *given]


@dataclass(frozen=True, slots=True)
class Result:
    """One run: images a second in the loop and over the whole process, seconds a stage if known."""

    steady: float
    whole: float
    stages: dict[str, float]


def main() -> None:
    """Runs all rounds, checks after the first, prints the tables."""
    given = read_arguments()
    names = [OURS, *given.peers.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        images = first_images(given.images, given.limit, folder) if given.limit else given.images
        count = warm_up(images)
        job = Job(
            images, given.layers, write_weights(folder, given.layers), given.precision, folder
        )
        rounds = [run_round(job, names, 0, count)]
        wrong = disagreements(job, names[1:])
        if wrong:
            sys.exit("no times, for the features differ:\n" + "\n".join(wrong))
        rounds += [run_round(job, names, index, count) for index in range(1, given.rounds)]
    print(f"precision {given.precision} where there is no CUDA")
    print_tables(names, rounds, count)


def read_arguments() -> argparse.Namespace:
    """Images, rounds, layers, peers, limit; 0 is no limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", default="conv5_3,fc7")
    parser.add_argument("--peers", default="plain_loop,good_script")
    parser.add_argument("--limit", type=int, default=0)
    parser.add_argument("--precision", default="float32")
    return parser.parse_args()


def first_images(source: str, limit: int, folder: str) -> str:
    """A folder of links to the first `limit` images of another."""
    images = os.path.join(folder, "images")
    os.makedirs(images)
    for index, name in enumerate(list_images(source)[:limit]):
        path = os.path.realpath(os.path.join(source, name))
        os.symlink(path, os.path.join(images, f"{index:07d}{os.path.splitext(name)[1]}"))
    return images


def warm_up(images: str) -> int:
    """Reads every image once, so that nobody pays for the disk; returns how many there are."""
    names = list_images(images)
    for name in names:
        Path(images, name).read_bytes()
    return len(names)


def write_weights(folder: str, layers: str) -> str:
    """A whole VGG19 as torchvision's file has it: random weights up to the deepest of the layers.

    What lies behind it is zeros that take no space.
    """
    path = os.path.join(folder, "vgg19-random.pth")
    table = layer_table("vgg19")
    used = needed_layers(vggfeat.Settings(layers=layers).specs, "vgg19")
    shapes = parameter_shapes(table, CLASSES, COLOURS)
    tensors = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
    tensors |= load_tensors(find_weights("random:0", "vgg19"), "vgg19", used)
    torch.save(tensors, path)
    return path


def run_round(job: Job, names: list[str], index: int, count: int) -> dict[str, Result]:
    """Every contestant once, beginning with another one in each round."""
    turn = index % len(names)
    return {name: run(job, name, count) for name in names[turn:] + names[:turn]}


def run(job: Job, name: str, count: int) -> Result:
    """One contestant as a process of its own, over an output that is not there yet."""
    Path(job.out(name)).unlink(missing_ok=True)
    path = os.pathsep.join([str(HERE.parent.parent), os.environ.get("PYTHONPATH", "")])
    started = time.perf_counter()
    done = subprocess.run(
        job.command(name),
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path.rstrip(os.pathsep)},
    )
    seconds = time.perf_counter() - started
    told: dict[str, Any] = json.loads(done.stdout)
    return Result(told["images_per_second"], count / seconds, told.get("stages", {}))


def disagreements(job: Job, peers: list[str]) -> list[str]:
    """What differs between our cache and each peer's file, a line each; none if all is well."""
    cache = vggfeat.open(job.out(OURS))
    if not cache.done.all():
        return [f"{OURS}: {len(cache) - int(cache.done.sum())} of {len(cache)} images failed"]
    names = [cache.name(row) for row in range(len(cache))]
    lines = []
    for peer in peers:
        features = read_peer(job.out(peer), names, job.layers.split(","))
        if features is None:
            lines.append(f"{peer}: not the same images")
            continue
        for layer, theirs in features.items():
            cosine = lowest_cosine(cache[layer], theirs)
            if not cosine >= LEAST_COSINE:  # also where it is no number
                lines.append(f"{peer}: {layer}: lowest cosine of a row {cosine:.6f}")
    return lines


def read_peer(
    path: str, names: list[str], layers: list[str]
) -> dict[str, NDArray[np.generic]] | None:
    """Layer → (N, D) in the order of `names`; None if the file is not of these images."""
    with h5py.File(path) as file:
        if "names" in file:
            if sorted(file["names"].asstr()[:]) != sorted(names):
                return None
            rows = {name: row for row, name in enumerate(file["names"].asstr()[:])}
            order = [rows[name] for name in names]
            return {layer: file[layer][:][order] for layer in layers}
        found: list[str] = []
        file.visititems(lambda name, item: _note(found, name, item))
        if sorted(found) != sorted(f"{name}/{layer}" for name in names for layer in layers):
            return None
        return {layer: np.stack([file[f"{n}/{layer}"][:] for n in names]) for layer in layers}


def _note(found: list[str], name: str, item: Any) -> None:
    if isinstance(item, h5py.Dataset):
        found.append(name)


def print_tables(names: list[str], rounds: list[dict[str, Result]], count: int) -> None:
    """Speeds and ratios, then where our seconds went, then the machine."""
    print(f"{count} images, {len(rounds)} rounds, features agree to {LEAST_COSINE}\n")
    print("| contestant | images/s, steady | images/s, whole process "
          "| vggfeat's ratio, steady | vggfeat's ratio, whole |")  # fmt: skip
    print("|---|---|---|---|---|")
    for name in names:
        print(_row(name, rounds))
    print("\n| stage of vggfeat | seconds, median |\n|---|---|")
    for stage in rounds[0][OURS].stages:
        print(f"| {stage} | {statistics.median(r[OURS].stages[stage] for r in rounds):.2f} |")
    print(f"\n{machine()}")


def _row(name: str, rounds: list[dict[str, Result]]) -> str:
    steady = [results[name].steady for results in rounds]
    whole = statistics.median(results[name].whole for results in rounds)
    ratios = [
        statistics.median(results[OURS].steady / results[name].steady for results in rounds),
        statistics.median(results[OURS].whole / results[name].whole for results in rounds),
    ]
    shown = ["" if name == OURS else f"{ratio:.2f}" for ratio in ratios]
    spread = f"{statistics.median(steady):.2f} ({min(steady):.2f}–{max(steady):.2f})"  # noqa: RUF001 a range
    return f"| {name} | {spread} | {whole:.2f} | {shown[0]} | {shown[1]} |"


def machine() -> str:
    """Processor, cores this process may use, GPU, torch's version, date."""
    text = Path("/proc/cpuinfo").read_text(errors="replace")
    models = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    parts = [models[0] if models else "unknown CPU", f"{len(os.sched_getaffinity(0))} cores"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    today = dt.datetime.now(tz=dt.timezone.utc).date()
    return ", ".join([*parts, f"torch {torch.__version__}", str(today)])


if __name__ == "__main__":
    main()
