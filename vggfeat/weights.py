"""Which weights: names, published files and digests, and the tensors a truncated network needs."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vggfeat.carried import last_layer
from vggfeat.digests import file_digest
from vggfeat.download import download
from vggfeat.errors import UsageError, WeightsError
from vggfeat.firstlayer import (
    ADAPTER,
    ADAPTER_BIAS,
    COLOURS,
    CONV1_1,
    CONV1_1_BIAS,
    RGB,
    check_channels,
    inflate,
)
from vggfeat.layers import GRID, Layer, layer_table
from vggfeat.machine import user_cache

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import torch

    from vggfeat.firstlayer import Entry

BASE_URL = "https://download.pytorch.org/models"
BASE_URL_VARIABLE = "VGGFEAT_WEIGHTS_URL"
"""Environment variable that names a mirror of `BASE_URL`."""

# torchvision's own files; the digits behind the dash begin the SHA-256.
_PUBLISHED: Mapping[tuple[str, str], str] = {
    ("imagenet", "vgg11"): "vgg11-8a719046.pth",
    ("imagenet", "vgg11_bn"): "vgg11_bn-6002323d.pth",
    ("imagenet", "vgg13"): "vgg13-19584684.pth",
    ("imagenet", "vgg13_bn"): "vgg13_bn-abd245e5.pth",
    ("imagenet", "vgg16"): "vgg16-397923af.pth",
    ("imagenet", "vgg16_bn"): "vgg16_bn-6c64b313.pth",
    ("imagenet", "vgg19"): "vgg19-dcbb9e9d.pth",
    ("imagenet", "vgg19_bn"): "vgg19_bn-c79401a0.pth",
    ("features", "vgg16"): "vgg16_features-amdegroot-88682ab5.pth",
}

_RANDOM = re.compile(r"random(?::(\d+))?")

log = logging.getLogger("vggfeat")


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights that are at hand.

    Attributes:
        name: `random:SEED`, or the file's name without its folder.
        sha256: digest of the file; for random weights of the recipe, which fixes them as well.
        path: the file, None for random weights.
        seed: of random weights.
        convolutions_only: the file's classifier holds no values.
    """

    name: str
    sha256: str
    path: str | None = None
    seed: int | None = None
    convolutions_only: bool = False

    @property
    def warning(self) -> str | None:
        """What a user of features made with these must know."""
        if self.seed is None:
            return None
        return f"RANDOM WEIGHTS (seed {self.seed}): these features carry no learnt meaning"


def weights_folder() -> str:
    """Return where torch keeps downloaded models: `$TORCH_HOME/hub/checkpoints`, as torch.hub does.

    Raises:
        UsageError: `TORCH_HOME` begins with a `~` that stands for nobody's home, or it is not set
            and there is no user cache.
    """
    named = os.environ.get("TORCH_HOME", "")
    home = os.path.expanduser(named) if named else os.path.join(user_cache(), "torch")
    if home.startswith("~"):
        raise UsageError(f"TORCH_HOME is {named!r}, and that home is not known; set a whole path")
    return os.path.join(home, "hub", "checkpoints")


def published_file(name: str, model: str) -> str | None:
    """File name of torchvision's weights `imagenet` or `features`; None if there are none."""
    return _PUBLISHED.get((name, model))


def weights_name(name: str, model: str) -> str:
    """What `find_weights` will call these weights, without looking for them."""
    match = _RANDOM.fullmatch(name)
    if match:
        return f"random:{int(match.group(1) or 0)}"
    return published_file(name, model) or os.path.basename(name)


def find_weights(name: str, model: str) -> Weights:
    """The weights that `name` stands for, downloaded if need be.

    Args:
        name: `imagenet`, `features`, `random[:SEED]`, or a `.pth`, `.pt` or `.safetensors` file.
        model: the VGG variant they are for.

    Raises:
        UsageError: `name` is none of these.
        WeightsError: there is no such file, or it can be neither found nor fetched.
    """
    match = _RANDOM.fullmatch(name)
    if match:
        return _random_weights(int(match.group(1) or 0), model)
    file = published_file(name, model)
    if file is not None:
        return _published_weights(name, file)
    if not name.endswith((".pth", ".pt", ".safetensors")):
        raise UsageError(
            f"weights {name!r} are not known; expected imagenet, features (vgg16 only), "
            "random[:SEED], or a .pth or .safetensors file"
        )
    if not os.path.isfile(name):
        raise WeightsError(f"weights file {name!r} is not there")
    return Weights(os.path.basename(name), file_digest(name), path=name)


def _random_weights(seed: int, model: str) -> Weights:
    recipe = f"vggfeat random weights 1: {model} {seed}"
    return Weights(f"random:{seed}", hashlib.sha256(recipe.encode()).hexdigest(), seed=seed)


def _published_weights(name: str, file: str) -> Weights:
    path = os.path.join(weights_folder(), file)
    prefix = file.rpartition("-")[2].removesuffix(".pth")
    digest = None if os.path.isfile(path) else _fetch_published(file, path, prefix)
    if digest is None:
        digest = file_digest(path)
        if not digest.startswith(prefix):
            raise WeightsError(
                f"weights file {path} has SHA-256 {digest[:8]}…, expected {prefix}…; it is "
                "damaged: delete it and run again"
            )
    return Weights(file, digest, path=path, convolutions_only=name == "features")


def _fetch_published(file: str, path: str, prefix: str) -> str | None:
    url = f"{(os.environ.get(BASE_URL_VARIABLE) or BASE_URL).rstrip('/')}/{file}"
    try:
        return download(url, path, prefix)
    except WeightsError as error:
        raise WeightsError(
            f"weights {file} are not at {path} and could not be had: {error}. Put the file there, "
            f"name a mirror in {BASE_URL_VARIABLE}, or use --weights FILE, "
            "or --weights random:0 to try things out"
        ) from error


def parameter_shapes(
    layers: Iterable[Layer], classes: int, channels: int = COLOURS
) -> dict[str, tuple[int, ...]]:
    """Names, as torchvision has them, and shapes of all that `layers` need from a weight file.

    Args:
        layers: of a variant.
        classes: outputs of fc8.
        channels: inputs of conv1_1.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in layers:
        name = f"{layer.container}.{layer.index}"
        if layer.kind == "conv":
            inputs = channels if layer.name == "conv1_1" else layer.in_channels
            shapes[f"{name}.weight"] = (layer.channels, inputs, 3, 3)
            shapes[f"{name}.bias"] = (layer.channels,)
        elif layer.kind == "fc":
            out = classes if layer.name == "fc8" else layer.channels
            shapes[f"{name}.weight"] = (out, layer.in_channels)
            shapes[f"{name}.bias"] = (out,)
        if layer.norm_index is not None:
            for part in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"{layer.container}.{layer.norm_index}.{part}"] = (layer.channels,)
    return shapes


def load_tensors(
    weights: Weights, model: str, layers: tuple[Layer, ...], entry: Entry = RGB
) -> dict[str, torch.Tensor]:
    """Float32 tensors of `layers` by torchvision's names; those of a float32 file are its map.

    Where the file has an adapter, it comes with `adapter.weight` and `adapter.bias`.

    Args:
        weights: which.
        model: VGG variant.
        layers: from the first to the deepest wanted.
        entry: channels of the images, to which the first convolution is made to fit.

    Raises:
        WeightsError: tensors are missing or of another shape, all are named; or the network in the
            file takes images of other channels.
    """
    if weights.path is None:
        tensors = _random_tensors(weights.seed or 0, layers)
    else:
        tensors = _tensors_of_file(weights, weights.path, model, layers, entry)
    return _with_first_layer(tensors, layers, entry)


def _with_first_layer(
    tensors: dict[str, torch.Tensor], layers: tuple[Layer, ...], entry: Entry
) -> dict[str, torch.Tensor]:
    """The tensors with a first convolution for the channels asked for, if they come without."""
    if CONV1_1 not in tensors or ADAPTER in tensors:
        return tensors
    if entry.first_layer == "kaiming":
        fresh = _random_tensors(0, layers[:1], entry.channels)
        return {**tensors, CONV1_1: fresh[CONV1_1], CONV1_1_BIAS: fresh[CONV1_1_BIAS]}
    return {**tensors, CONV1_1: inflate(tensors[CONV1_1], entry.channels)}


def _tensors_of_file(
    weights: Weights, path: str, model: str, layers: tuple[Layer, ...], entry: Entry
) -> dict[str, torch.Tensor]:
    if weights.convolutions_only and any(layer.container == "classifier" for layer in layers):
        raise WeightsError(
            f"weights {weights.name} hold convolutions only, and {layers[-1].name} lies behind "
            "them; ask for conv or pool layers, or use --weights imagenet"
        )
    from vggfeat.checkpoints import read_checkpoint

    found = read_checkpoint(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    classes = shapes.get("classifier.6.weight", (0,))[0]
    first = shapes.get(CONV1_1, ())
    wanted = parameter_shapes(layers, classes, first[1] if len(first) > 1 else COLOURS)
    _check_end(weights.name, path, layers)
    _check_fit(weights, model, wanted, shapes)
    if layers[0].name != "conv1_1":
        return {name: found[name].float() for name in wanted}
    check_channels(weights.name, shapes, entry)
    adapter = [name for name in (ADAPTER, ADAPTER_BIAS) if name in found]
    return {name: found[name].float() for name in (*wanted, *adapter)}


def _check_end(name: str, path: str, layers: tuple[Layer, ...]) -> None:
    """Refuses layers behind the one that a file ends with on purpose."""
    names = [layer.name for layer in layers]
    end = last_layer(path)
    if end in names[:-1]:
        raise WeightsError(
            f"weights {name} end with {end}, on which they were adapted, and {names[-1]} lies "
            "behind it; ask for layers up to there, or adapt with a deeper --layer"
        )


def _check_fit(
    weights: Weights,
    model: str,
    wanted: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
) -> None:
    missing = [name for name in wanted if name not in found]
    if missing:
        raise WeightsError(
            f"weights {weights.name} do not fit {model}: {len(missing)} of {len(wanted)} tensors "
            f"are missing, {', '.join(missing[:4])}{' …' * (len(missing) > 4)}"  # noqa: PLR2004 4
            f"; found {len(found)} tensors{_guess_variant(found, model)}"
        )
    unlike = [
        f"{name} expected {list(shape)}, found {list(found[name])}"
        for name, shape in wanted.items()
        if found[name] != shape
    ]
    if unlike:
        hint = ""
        if any(line.startswith("classifier.0.") for line in unlike):
            hint = f"; fc6 takes a {GRID} x {GRID} x 512 map"
        raise WeightsError(
            f"weights {weights.name} do not fit {model}: {'; '.join(unlike)}{hint}"
            f"{_guess_variant(found, model)}"
        )


def _guess_variant(found: Mapping[str, tuple[int, ...]], asked: str) -> str:
    """The variant other than `asked` whose convolutions the file has, as a hint."""
    model = variant_of(found)
    return f"; the file looks like {model}: try --model {model}" if model not in ("", asked) else ""


def variant_of(found: Mapping[str, tuple[int, ...]]) -> str:
    """The variant whose convolutions are exactly those of a file, by names and shapes; or ''.

    The first may take any number of channels.
    """
    from vggfeat.layers import VARIANTS

    have = {
        name: shape
        for name, shape in found.items()
        if name.startswith("features.") and "num_batches" not in name
    }
    channels = have.get(CONV1_1, (0, COLOURS))[1:2] or (COLOURS,)
    for model in VARIANTS:
        convolutions = [layer for layer in layer_table(model) if layer.kind == "conv"]
        if parameter_shapes(convolutions, 0, channels[0]) == have:
            return model
    return ""


def _random_tensors(
    seed: int, layers: tuple[Layer, ...], channels: int = COLOURS
) -> dict[str, torch.Tensor]:
    """He-initialised, as torchvision's VGG: He et al., "Delving Deep into Rectifiers", ICCV 2015.

    Each tensor has a stream of its own, so that a truncated network equals the whole one.
    """
    import torch

    from vggfeat.layers import CLASSES

    tensors = {}
    for name, shape in parameter_shapes(layers, CLASSES, channels).items():
        values = torch.zeros(shape)
        if len(shape) > 1:
            stream = hashlib.sha256(f"{seed}/{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(stream[:7], "little"))
            fan_out = shape[0] * math.prod(shape[2:])
            deviation = math.sqrt(2 / fan_out) if name.startswith("features") else 0.01
            values.normal_(0, deviation, generator=generator)
        elif name.endswith("running_var") or _is_batch_norm_weight(name, layers):
            values.fill_(1)
        tensors[name] = values
    return tensors


def _is_batch_norm_weight(name: str, layers: tuple[Layer, ...]) -> bool:
    return name in {f"{layer.container}.{layer.norm_index}.weight" for layer in layers}
