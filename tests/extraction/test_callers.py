"""Programs that call `extract` from unusual places: threads, coroutines, workers, notebooks."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from command_line import write_images
from killing import contents

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = """
import asyncio, multiprocessing, sys, threading
import torch, vggfeat

multiprocessing.set_start_method("forkserver")  # as Python 3.14 has it by default
settings = vggfeat.Settings(
    layers="conv1_1", model="vgg11", weights="random:0", size=32, device="cpu", workers=2
)

def extract(name):
    vggfeat.extract("images", name + ".h5", settings)

class Extracting(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        extract("dataloader-worker")
        return index

async def coroutine():
    extract("coroutine")

def wait_for(runner):
    runner.start()
    runner.join()

assert not hasattr(sys.modules["__main__"], "__file__")  # as in a notebook
extract("plain")
wait_for(threading.Thread(target=extract, args=("thread",)))
done = threading.Event()
threading.Thread(target=lambda: [sum(range(999)) for _ in iter(done.is_set, True)]).start()
extract("beside-a-thread")
asyncio.run(coroutine())
list(torch.utils.data.DataLoader(Extracting(), num_workers=1, multiprocessing_context="fork"))
done.set()
arguments = ("images", "daemon.h5", settings)
wait_for(multiprocessing.Process(target=vggfeat.extract, args=arguments, daemon=True))
images = vggfeat.ImageDataset("images", settings)
for batch in torch.utils.data.DataLoader(images, batch_size=2, num_workers=1):
    print(*batch.row.tolist(), *batch.ok.tolist())
"""
PLACES = ("beside-a-thread", "coroutine", "daemon", "dataloader-worker", "thread")


def test_wherever_it_is_called(tmp_path: Path) -> None:
    """Threads, a coroutine, a DataLoader's worker and a daemon process store what a program does.

    The start method is that of Python 3.14, and the main module has no file, as in a notebook.
    """
    write_images(tmp_path / "images", 3)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=600,
    )
    assert done.stdout.splitlines() == ["0 1 True True", "2 True"]
    for place in PLACES:
        assert contents(tmp_path / f"{place}.h5") == contents(tmp_path / "plain.h5"), place
