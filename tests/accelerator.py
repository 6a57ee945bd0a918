"""The device that `tests/gpu` runs on, and small networks and images to put on it.

`tests/gpu` needs a CUDA device. VGGFEAT_TEST_DEVICE names another one, as `scripts/test.sh` does
with `cpu`: then whatever a CPU can show is shown there, on less, so that no line of a test is tried
for the first time on a GPU.

Only torch, NumPy, h5py, Pillow and pytest are imported here and in `tests/gpu`; a machine with a
GPU may have no more.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from vggfeat.core.records import DecodedBatch, Failure
from vggfeat.core.settings import Settings
from vggfeat.core.vgg_layers import layer_table
from vggfeat.network.extractor import TensorExtractor
from vggfeat.network.fused_epilogue import WORTHWHILE
from vggfeat.network.vgg import needed_layers
from vggfeat.network.weights import find_weights, load_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    Tensors = dict[str, Tensor]

NAMED = os.environ.get("VGGFEAT_TEST_DEVICE", "")
DEVICE = NAMED or "cuda:0"
ON_CUDA = DEVICE.startswith("cuda")

SIDE = 64 if ON_CUDA else 32
MAPS = "conv1_1,conv2_1:max,conv2_1:std,conv2_1.pre:map,conv3_1:gem,conv3_2:rmac"
MAPS += ",pool3:spp,pool3:flatten"
MAPS += ",conv4_2.pre:map,conv5_2:max" if ON_CUDA else ""  # half precision takes a CPU long
EVERYTHING = MAPS + (",fc6.pre,fc7,prob" if ON_CUDA else "")  # and drawing fc6, and hashing it
PRECISIONS = ("float16", "bfloat16", "float32") if ON_CUDA else ("float16", "float32")


def missing() -> str:
    """Why tests cannot run on the device; nothing if they can."""
    if ON_CUDA and not torch.cuda.is_available():
        return "no CUDA device here, or `pytest tests/gpu` was not asked for alone"
    return ""


def settings(layers: str, **more: Any) -> Settings:
    """Settings of a small network on the device."""
    given = {"model": "vgg11", "weights": "random:0", "size": SIDE, "precision": "float32",
             "device": DEVICE, "dtype": "float32", **more}  # fmt: skip
    return Settings(layers=layers, **given)


def extractor(layers: str, **more: Any) -> TensorExtractor:
    """An extractor on the device."""
    return TensorExtractor(settings(layers, **more))


def as_in_a_long_run(one: TensorExtractor) -> TensorExtractor:
    """The extractor with what pays for many images: on CUDA the fused kernel."""
    one.expect(WORTHWHILE)
    network: Any = one._network
    if ON_CUDA and one.precision in ("float16", "bfloat16"):
        assert network.epilogue is not None, "the kernel is not used; a line of the log says why"
    return one


def tensors_of(model: str, layer: str) -> Tensors:
    """Random weights up to a layer, by torchvision's names."""
    layers = needed_layers(Settings(layers=layer, model=model).specs, model)
    return load_tensors(find_weights("random:0", model), model, layers)


def loud_tensors(layer: str = "conv5_2") -> Tensors:
    """Weights of VGG11 with which `noise` overflows in float16 at conv2_1, and `faint` does not."""
    tensors = tensors_of("vgg11", layer)
    scaled = {"conv1_1": 400.0, "conv2_1": 400.0, "conv3_1": 1 / 400, "conv3_2": 1 / 400}
    for one in layer_table("vgg11"):
        name = f"{one.container}.{one.index}.weight"
        if one.name in scaled and name in tensors:
            tensors[name] *= scaled[one.name]
    return tensors


def noise(count: int, side: int = SIDE, seed: int = 0) -> NDArray[np.uint8]:
    """Images (count, side, side, 3) of all values."""
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)


def faint(count: int, side: int = SIDE, seed: int = 0) -> NDArray[np.uint8]:
    """Images (count, side, side, 3) whose pixels are nearly the mean of ImageNet's."""
    return np.array([122, 114, 102], np.uint8) + noise(count, side, seed) % 4


def decoded(images: NDArray[Any], slots: Sequence[int] | None = None) -> DecodedBatch:
    """Images (N, H, W, C) as a loader hands them over; the row of slot k is 100 + k."""
    lying = torch.from_numpy(images.copy())
    taken = np.array(range(len(images)) if slots is None else slots, dtype=np.int64)
    digests = np.zeros((len(taken), 32), np.uint8)
    pixels = lying.pin_memory() if ON_CUDA else lying
    return DecodedBatch(pixels, taken + 100, taken, digests, (Failure(7, "no image"),), 0.0)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    assert found.shape == expected.shape
    difference = (found.double().cpu() - expected.double().cpu()).abs().max()
    return float(difference / expected.abs().max())


def write_pictures(folder: Path, pictures: Sequence[NDArray[np.uint8]]) -> Path:
    """Write images as PNG files, named by their numbers."""
    folder.mkdir()
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{number:04}.png")
    return folder


def poison(mebibytes: int) -> None:
    """Leave NaN in memory that allocators give out next."""
    words = 1 << 18
    sizes = [words * 2**step for step in range(max(1, mebibytes).bit_length())]
    blocks = [torch.full((size,), float("nan"), device=DEVICE) for size in sizes]
    if ON_CUDA:
        blocks += [torch.full((size,), float("nan")).pin_memory() for size in sizes[:4]]
        torch.cuda.synchronize()
    del blocks


@contextlib.contextmanager
def attribute(place: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute for the block."""
    before = getattr(place, name)
    setattr(place, name, value)
    try:
        yield
    finally:
        setattr(place, name, before)
