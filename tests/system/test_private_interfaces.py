"""Names that other libraries keep to themselves are missing: one warning, and the rest works."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from pathlib import Path

CHILD = """
import logging, types
logging.basicConfig(format="%(message)s")
import h5py, numpy as np, PIL, torch, vggfeat
from vggfeat.core.settings import Settings
from vggfeat.network import device
from vggfeat.images import pillow_state
settings = Settings(model="vgg11", weights="random:0", layers="conv1_1", device="cpu", size=32,
                    workers=0, precision="float32")

def rows(out):
    vggfeat.extract("images", out, settings)
    with h5py.File(out) as file:
        return file["images/state"][()].tolist(), file["features/conv1_1"][()]

state, before = rows("before.h5")
assert state == [1], state
for cached in (pillow_state.own_plugins, pillow_state._own_registrations):
    cached.cache_clear()
del PIL._plugins
for name in ("_get_cudnn_allow_tf32", "_len_torch_dispatch_stack", "DisableTorchFunction"):
    delattr(torch._C, name)
state, after = rows("after.h5")
assert state == [1] and np.array_equal(before, after)

device.cpu_has_vnni = lambda: True  # whatever this machine is
torch.ops.onednn = types.SimpleNamespace(qconv2d_pointwise=None)
try:
    device.choose_precision("int8", torch.device("cpu"))
except vggfeat.errors.DeviceError as error:
    print(error)
"""


def test_private_names_that_are_gone(tmp_path: Path) -> None:
    """Features stay the same without them, each is warned of once, and int8 says that it cannot."""
    (tmp_path / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "images" / "0.png")
    done = subprocess.run(
        [sys.executable, "-c", CHILD], cwd=tmp_path, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for name in ("_get_cudnn_allow_tf32", "_len_torch_dispatch_stack", "DisableTorchFunction"):
        assert done.stderr.count(f"has no {name}:") == 1, done.stderr
    assert "has no convolution for it" in done.stdout
