"""Find weights by name, file or download, and load the tensors of a truncated network."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vggfeat.core import activity
from vggfeat.core.held_weights import HeldWeights, names_held_weights
from vggfeat.core.resources import user_cache
from vggfeat.core.text import agree, counted, first_few
from vggfeat.core.vgg_layers import (
    ADAPTER,
    ADAPTER_BIAS,
    CLASSES,
    COLOURS,
    GRID,
    RGB_ENTRY,
    VGG,
    Layer,
    parameter_shapes,
    variant_of,
)
from vggfeat.errors import UsageError, WeightsError
from vggfeat.network.caffe import FEATURES_ORDER, caffe_order
from vggfeat.network.checkpoint_reader import open_checkpoint
from vggfeat.network.dialects.johnson import JOHNSON
from vggfeat.network.download import download_weights
from vggfeat.network.first_layer import check_channels, inflate
from vggfeat.network.weight_check import Checkpoint, remedy_for
from vggfeat.network.weight_metadata import LAYER
from vggfeat.network.weights_in_memory import open_state
from vggfeat.storage.checked_file import FileChangedError
from vggfeat.storage.digests import file_digests, forget_digest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

    from vggfeat.core.vgg_layers import Entry
    from vggfeat.network.checkpoint_reader import WeightFile
    from vggfeat.network.weights_in_memory import StateDict
    from vggfeat.storage.checked_file import FileDigest

BASE_URL = "https://download.pytorch.org/models"
BASE_URL_VARIABLE = "VGGFEAT_WEIGHTS_URL"
"""Environment variable that names a mirror of `BASE_URL`."""

_SUFFIXES = (
    ".pth", ".pt", ".safetensors", ".bin", ".ckpt", ".tar", ".h5", ".hdf5", ".keras",
)  # fmt: skip
_RANDOM = re.compile(r"random(?::(\d+))?")

log = logging.getLogger("vggfeat")


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights that exist, ready to load.

    Attributes:
        name: `random:SEED`, or the file's name without its folder.
        sha256: digest of the file; of random weights, of the recipe that determines them.
        path: the file, None for random weights.
        seed: of random weights.
        convolutions_only: the file's classifier holds no values.
        caution: a warning about a file that looks like Caffe's; else empty.
        digest: that the file must have when it is read; None computes it then.
    """

    name: str
    sha256: str
    path: str | None = None
    seed: int | None = None
    convolutions_only: bool = False
    caution: str = ""
    digest: FileDigest | None = field(default=None, compare=False, repr=False)
    held: HeldWeights | None = field(default=None, compare=False, repr=False)

    @property
    def warning(self) -> str | None:
        """A warning to users of features made with these weights."""
        if self.seed is None:
            return self.caution or None
        return f"RANDOM WEIGHTS (seed {self.seed}): these features carry no learnt meaning"


def weights_folder() -> str:
    """Return torch.hub's folder of downloaded models, `$TORCH_HOME/hub/checkpoints`."""
    named = os.environ.get("TORCH_HOME", "")
    home = os.path.expanduser(named) if named else os.path.join(user_cache(), "torch")
    if home.startswith("~"):
        raise UsageError(f"TORCH_HOME is {named!r}, an unknown home; set an absolute path")
    return os.path.join(home, "hub", "checkpoints")


def published_file(name: str, model: str) -> str | None:
    """Return torchvision's file name of weights `imagenet` or `features`, or None."""
    return VGG.published.get((name, model))


def weights_name(name: str, model: str) -> str:
    """Return the name that `find_weights` gives these weights, which need not exist."""
    match = _RANDOM.fullmatch(name)
    if match:
        return f"random:{int(match.group(1) or 0)}"
    return published_file(name, model) or os.path.basename(name)


def find_weights(name: str, model: str) -> Weights:
    """Find the weights that `name` stands for; download them if necessary.

    Args:
        name: `imagenet`, `features`, `random[:SEED]`, or a file of any format that
            `checkpoint_reader` reads.
        model: the VGG variant they are for.
    """
    match = _RANDOM.fullmatch(name)
    if match:
        seed = int(match.group(1) or 0)
        recipe = f"vggfeat random weights 1: {model} {seed}"
        return Weights(f"random:{seed}", hashlib.sha256(recipe.encode()).hexdigest(), seed=seed)
    if isinstance(name, HeldWeights):
        return Weights(str(name), name.sha256, held=name)
    if names_held_weights(name):
        raise WeightsError(
            f"weights {name} were in the memory of another program; give their state dict, "
            "Settings(weights=model.state_dict())"
        )
    file = published_file(name, model)
    if file is not None:
        return _published_weights(name, file)
    if os.path.isdir(name):
        raise WeightsError(
            f"weights {name!r} are a folder; name a file in it, such as .pth or .safetensors"
        )
    if not os.path.isfile(name):
        if name.endswith(_SUFFIXES) or os.sep in name:
            found = "is no regular file" if os.path.exists(name) else "not found"
            raise WeightsError(f"weights file {name!r} {found}")
        raise UsageError(
            f"unknown weights {name!r}; expected imagenet, features (vgg16 only), "
            "random[:SEED], or a file such as .pth, .safetensors or .h5"
        )
    digest = file_digests(name)
    return Weights(
        os.path.basename(name),
        digest.sha256,
        path=name,
        convolutions_only=digest.sha256.startswith(FEATURES_ORDER),
        caution=_caution(name, digest),
        digest=digest,
    )


def _caution(path: str, digest: FileDigest) -> str:
    """Return a warning about a file with the names, not the values, of Caffe's weights."""
    try:
        with open_checkpoint(path, digest) as file:
            if file.reading.dialect != JOHNSON.name or caffe_order(file, digest.sha256):
                return ""
    except WeightsError:
        return ""  # loading them gives the reason
    return (
        f"weights {os.path.basename(path)} have the names of weights converted from Caffe, and "
        "their scale is not known: if they take BGR of 0 to 255, these features are wrong; turn "
        "conv1_1 to RGB and give --transform caffe"
    )


def _published_weights(name: str, file: str) -> Weights:
    path = os.path.join(weights_folder(), file)
    prefix = file.rpartition("-")[2].removesuffix(".pth")
    if not os.path.isfile(path):
        _fetch_published(file, path, prefix)
    digest = file_digests(path)
    if not digest.sha256.startswith(prefix):
        raise WeightsError(
            f"weights file {path} has SHA-256 {digest.sha256[:8]}…, expected {prefix}…; it is "
            "damaged: delete it and run again"
        )
    only = name == "features"
    return Weights(file, digest.sha256, path=path, convolutions_only=only, digest=digest)


def _fetch_published(file: str, path: str, prefix: str) -> None:
    url = f"{(os.environ.get(BASE_URL_VARIABLE) or BASE_URL).rstrip('/')}/{file}"
    try:
        download_weights(url, path, prefix)
    except WeightsError as error:
        raise WeightsError(
            f"weights {file} not found at {path} and could not be downloaded: {error}. Put it "
            f"there, name a mirror in {BASE_URL_VARIABLE}, or use --weights FILE, or "
            "--weights random:0 to try things out"
        ) from error


def load_tensors(
    weights: Weights, model: str, layers: tuple[Layer, ...], entry: Entry = RGB_ENTRY
) -> dict[str, torch.Tensor]:
    """Load the float32 tensors of `layers` by torchvision's names; they own their memory.

    The file's bytes are checked against the digest of `weights`. The first convolution is adapted
    to the channels of `entry`, unless the file has an adapter: then `adapter.weight` and
    `adapter.bias` are added.
    """
    activity.begins("loading weights")
    if weights.held is not None:
        tensors = _fitting_tensors(weights, open_state(weights.held), model, layers, entry)
    elif weights.path is None:
        tensors = _random_tensors(weights.seed or 0, layers)
    else:
        tensors = _tensors_of_file(weights, weights.path, model, layers, entry)
    return _with_first_layer(tensors, layers, entry)


def _with_first_layer(
    tensors: dict[str, torch.Tensor], layers: tuple[Layer, ...], entry: Entry
) -> dict[str, torch.Tensor]:
    """Return the tensors with a first convolution for the channels of `entry`."""
    if VGG.first_weight not in tensors or ADAPTER in tensors:
        return tensors
    if entry.first_layer == "kaiming":
        fresh = _random_tensors(0, layers[:1], entry.channels)
        return {**tensors, **{name: fresh[name] for name in (VGG.first_weight, VGG.first_bias)}}
    return {**tensors, VGG.first_weight: inflate(tensors[VGG.first_weight], entry.channels)}


def _tensors_of_file(
    weights: Weights, path: str, model: str, layers: tuple[Layer, ...], entry: Entry
) -> dict[str, torch.Tensor]:
    if weights.convolutions_only and any(layer.container == "classifier" for layer in layers):
        raise WeightsError(
            f"weights {weights.name} hold convolutions only, and {layers[-1].name} lies behind "
            "them; request conv or pool layers, or use --weights imagenet"
        )
    with _same_file(path), open_checkpoint(path, _digest(weights, path)) as file:
        return _fitting_tensors(weights, file, model, layers, entry)


def _fitting_tensors(
    weights: Weights,
    file: WeightFile | StateDict,
    model: str,
    layers: tuple[Layer, ...],
    entry: Entry,
) -> dict[str, torch.Tensor]:
    """Return the tensors of `layers`, float32; raise WeightsError if they do not fit."""
    shapes = file.shapes
    classes = shapes.get(VGG.fc8_weight, (0,))[0]
    first = shapes.get(VGG.first_weight, ())
    wanted = parameter_shapes(layers, classes, first[1] if len(first) > 1 else COLOURS)
    _check_end(weights.name, file.metadata.get(LAYER, ""), layers)
    _check_fit(weights, model, wanted, shapes, layers)
    names = list(wanted)
    if layers[0].name == "conv1_1":
        check_channels(weights.name, shapes, entry)
        names += [name for name in (ADAPTER, ADAPTER_BIAS) if name in shapes]
    bgr = caffe_order(file, weights.sha256) == "bgr"
    found = file.read(names)
    if bgr and VGG.first_weight in found:
        found[VGG.first_weight] = found[VGG.first_weight].flip(1)
    return {name: found.pop(name).float() for name in names}


def _digest(weights: Weights, path: str) -> FileDigest:
    """Return the digest for checking every read; refuse a file that has changed."""
    digest = weights.digest or file_digests(path)
    if digest.sha256 != weights.sha256:
        raise WeightsError(
            f"weights {path!r} changed: their SHA-256 is {digest.sha256[:8]}…, expected "
            f"{weights.sha256[:8]}…; run again"
        )
    return digest


@contextlib.contextmanager
def _same_file(path: str) -> Iterator[None]:
    """Forget the digest of a file that changed unnoticed, so that the next run computes it."""
    try:
        yield
    except WeightsError as error:
        if isinstance(error.__cause__, FileChangedError):
            forget_digest(path)
        raise


def _check_end(name: str, end: str, layers: tuple[Layer, ...]) -> None:
    """Refuse layers beyond the one that a file ends with on purpose."""
    names = [layer.name for layer in layers]
    if end in names[:-1]:
        raise WeightsError(
            f"weights {name} end with {end}, on which they were adapted, and {names[-1]} lies "
            f"behind it; request layers up to {end}, or adapt with a deeper one in --layers"
        )


def _check_fit(
    weights: Weights,
    model: str,
    wanted: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    layers: tuple[Layer, ...],
) -> None:
    likely = variant_of(found)
    hint = ""
    if likely not in ("", model):
        hint = f"; the file looks like {likely}: try --model {likely}"
    elif any(found.get(name) != shape for name, shape in wanted.items()):
        checkpoint = Checkpoint(weights.name, found, weights.convolutions_only)
        remedy = remedy_for(checkpoint, model, layers)
        hint = f"; {remedy}" if remedy else ""
    missing = [name for name in wanted if name not in found]
    if missing:
        raise WeightsError(
            f"weights {weights.name} do not fit {model}: {len(missing)} of "
            f"{counted(len(wanted), 'tensor')} {agree(len(missing), 'is')} missing, "
            f"{first_few(missing)}; found {counted(len(found), 'tensor')}{hint}"
        )
    unlike = [
        f"{name} expected {list(shape)}, found {list(found[name])}"
        for name, shape in wanted.items()
        if found[name] != shape
    ]
    if unlike:
        grid = ""
        if any(line.startswith(VGG.fc6_weight.removesuffix("weight")) for line in unlike):
            grid = f"; fc6 takes a {GRID} x {GRID} x 512 map"
        raise WeightsError(
            f"weights {weights.name} do not fit {model}: {'; '.join(unlike)}{grid}{hint}"
        )


def _random_tensors(
    seed: int, layers: tuple[Layer, ...], channels: int = COLOURS
) -> dict[str, torch.Tensor]:
    """Initialize as torchvision's VGG: He et al., "Delving Deep into Rectifiers", ICCV 2015.

    Each tensor has its own random stream, so that a truncated network equals the whole one.
    """
    import torch

    norms = {f"{layer.container}.{layer.norm_index}.weight" for layer in layers}
    tensors = {}
    for name, shape in parameter_shapes(layers, CLASSES, channels).items():
        values = torch.zeros(shape)
        if len(shape) > 1:
            stream = hashlib.sha256(f"{seed}/{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(stream[:7], "little"))
            fan_out = shape[0] * math.prod(shape[2:])
            deviation = math.sqrt(2 / fan_out) if name.startswith("features") else 0.01
            values.normal_(0, deviation, generator=generator)
        elif name.endswith("running_var") or name in norms:
            values.fill_(1)
        tensors[name] = values
    return tensors
