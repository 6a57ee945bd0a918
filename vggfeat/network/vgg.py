"""The network: a VGG truncated after the deepest requested layer, tapped at each requested one."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 the name the whole field knows it by

from vggfeat.core.vgg_layers import ADAPTER, COLOURS, GRID, VGG, Layer, layer_table
from vggfeat.network.batch_norm import fold_norms
from vggfeat.network.pooling import reduce_map

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from vggfeat.core.layer_spec import LayerSpec
    from vggfeat.core.preprocessing import Preprocess
    from vggfeat.network.fused_epilogue import Epilogue


# Neither memory nor random initialisation: weights are assigned later. Passed to each module, since
# `with torch.device("meta")` does nothing where modes of torch are switched off.
_EMPTY: Mapping[str, Any] = {"device": "meta"}


_WHITE: Mapping[torch.dtype, int] = {torch.uint8: 255, torch.uint16: 65535}
"""Pixel value that is scaled to 1."""


class Normaliser:
    """Subtract the mean from pixels and divide by the standard deviation, on the images' device."""

    def __init__(self, preprocess: Preprocess, device: torch.device) -> None:
        self._mean, self._std = (
            torch.tensor(values, device=device).view(1, -1, 1, 1)
            for values in (preprocess.mean, preprocess.std)
        )
        # Tensors, since CUDA multiplies by the reciprocal of a number: other bits than a CPU's.
        self._white = {
            dtype: torch.tensor(white, dtype=torch.float32, device=device)
            for dtype, white in _WHITE.items()
        }

    def __call__(self, images: Tensor) -> Tensor:
        """Return the network's input, (N, C, H, W) in channels-last memory.

        Images, (N, C, H, W), are uint8 or uint16; floating point is normalised already.
        """
        white = self._white.get(images.dtype)
        if white is not None:
            # Divided, not multiplied by 1/255: so does torchvision, and the bits are the same.
            images = images.float().div_(white).sub_(self._mean).div_(self._std)
        if images.is_cuda:  # on a CPU floats of one channel keep the order, and so their bits
            return channels_last(images)
        return images.contiguous(memory_format=torch.channels_last)


def channels_last(images: Tensor) -> Tensor:
    """Return (N, C, H, W) in channels-last memory.

    With one channel both orders are the same memory; strides say which is meant. Without that the
    first convolution would give a channels-first map, which the second one would have to copy.
    """
    images = images.contiguous(memory_format=torch.channels_last)
    count, channels, height, width = images.shape
    if channels > 1:
        return images
    return images.as_strided((count, 1, height, width), (height * width, 1, width, 1))


@dataclass(frozen=True, slots=True)
class _Step:
    """A layer on the way through the network.

    Attributes:
        layer: that is computed.
        last: the layer itself, or the pool behind it that is computed in the same kernel.
        before: specs of `layer` taken before its ReLU.
        after: specs of `last` taken from its output.
        checked: in float16 the output is checked for overflow.
        fused: what follows the convolution is one kernel.
    """

    layer: Layer
    last: Layer
    before: tuple[LayerSpec, ...]
    after: tuple[LayerSpec, ...]
    checked: bool
    fused: bool


class TappedVgg(nn.Module):
    """Consecutive layers of a VGG variant, under torchvision's names.

    Args:
        layers: to compute.
        specs: features to take from them.
        classes: outputs of fc8.
        in_channels: of the images.
        adapter: a 1 x 1 convolution first reduces them to three.
        norms: it has the variant's batch normalisation; else the convolutions do its work.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        specs: Sequence[LayerSpec],
        classes: int,
        in_channels: int = COLOURS,
        *,
        adapter: bool = False,
        norms: bool = True,
    ) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.specs = tuple(spec for spec in specs if spec.layer in self.layers)
        self.adapter = nn.Conv2d(in_channels, COLOURS, 1, **_EMPTY) if adapter else None
        first = COLOURS if adapter else in_channels
        self.norms = norms
        self.epilogue: Epilogue | None = None
        """With it, bias, ReLU and pooling behind a convolution are one kernel."""
        self.on_layer: Callable[[float], None] | None = None
        """Called after each layer with the share of the layers that are computed."""
        self.features = nn.Sequential(
            _modules_of(self.layers, "features", classes, first, norms=norms)
        )
        self.classifier = nn.Sequential(_modules_of(self.layers, "classifier", classes))

    def forward(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return the features of normalised images.

        Args:
            x: (N, in_channels, H, W), the network's dtype.

        Returns:
            canonical spec → float32 (N, …), and bool (N,): in float16, for which images every map
            taken and every map at the end of a block was finite, and so everything computed before.
        """
        taken: dict[str, Tensor] = {}
        finite = torch.ones(len(x), dtype=torch.bool, device=x.device)
        if self.adapter is not None:
            x = self.adapter(x)  # (N, 3, H, W)
        for step in self._steps(fuse=self.epilogue is not None):
            x = self._fused(step, x, finite) if step.fused else self._eager(step, x, taken, finite)
            taken.update({str(spec): reduce_map(x, spec) for spec in step.after})
            if self.on_layer is not None:
                self.on_layer((self.layers.index(step.last) + 1) / len(self.layers))
        return {str(spec): taken[str(spec)] for spec in self.specs}, finite

    def _steps(self, *, fuse: bool) -> Iterator[_Step]:
        """Yield the layers in their order, and with `fuse` a pool with its convolution as one."""
        remaining = deque(self.layers)
        while remaining:
            layer = last = remaining.popleft()
            before, after = self._taken_at(layer, pre=True), self._taken_at(layer, pre=False)
            normed = self.norms and layer.norm_index is not None
            fused = fuse and layer.kind == "conv" and not before and not normed
            if fused and not after and remaining and remaining[0].kind == "pool":
                last = remaining.popleft()
                after = self._taken_at(last, pre=False)
            ends_block = last.kind in ("pool", "fc") or last is self.layers[-1]
            # A map taken too: the pool behind it drops the last row and column of an odd size.
            yield _Step(layer, last, before, after, bool(after) or ends_block, fused)

    def _taken_at(self, layer: Layer, *, pre: bool) -> tuple[LayerSpec, ...]:
        return tuple(spec for spec in self.specs if spec.layer is layer and spec.pre == pre)

    def _fused(self, step: _Step, x: Tensor, finite: Tensor) -> Tensor:
        """Compute a convolution by cuDNN, and in one kernel what follows it."""
        convolution = cast("nn.Conv2d", getattr(self.features, str(step.layer.index)))
        epilogue = cast("Epilogue", self.epilogue)
        x = F.conv2d(x, convolution.weight, padding=1)  # (N, C, H, W)
        check = finite if step.checked and x.dtype == torch.float16 else None
        bias = cast("Tensor", convolution.bias)
        return epilogue(x, bias, check, pool=step.last is not step.layer)

    def _eager(self, step: _Step, x: Tensor, taken: dict[str, Tensor], finite: Tensor) -> Tensor:
        layer = step.layer
        x = self._linear_part(layer, x)
        taken.update({str(spec): reduce_map(x, spec) for spec in step.before})
        if step.before and x.dtype == torch.float16:
            finite &= finite_rows(x)  # the ReLU turns -inf into 0
        if layer.relu_index is not None:
            # In place unless a feature was taken from x; both give the same bits.
            x = torch.relu(x) if step.before else torch.relu_(x)
        if step.checked and x.dtype == torch.float16:
            finite &= finite_rows(x, rectified=layer.name != "fc8")
        return x

    def _linear_part(self, layer: Layer, x: Tensor) -> Tensor:
        if layer.kind == "prob":
            return torch.softmax(x.float(), dim=1)
        if layer.kind == "fc" and x.dim() > 2:  # noqa: PLR2004 a map, not yet a vector
            x = F.adaptive_avg_pool2d(x, GRID) if x.shape[-2:] != (GRID, GRID) else x
            x = torch.flatten(x, 1)  # (N, 25088), channel by channel as the classifier was trained
        container = cast("nn.Sequential", getattr(self, layer.container))
        x = cast("Tensor", getattr(container, str(layer.index))(x))
        if self.norms and layer.norm_index is not None:
            x = cast("Tensor", getattr(container, str(layer.norm_index))(x))
        return x


def finite_rows(x: Tensor, *, rectified: bool = False) -> Tensor:
    """Return for each row of (N, …) whether all its values are finite, bool (N,).

    By the largest and the least, which are NaN where any value is: reductions that write nothing,
    where `isfinite` writes a map of its own and reads it again. What is `rectified`, behind a ReLU,
    has no value below 0, so the largest says it all.
    """
    dimensions = tuple(range(1, x.dim()))
    finite = torch.isfinite(x.amax(dimensions))
    return finite if rectified else finite & torch.isfinite(x.amin(dimensions))


def needed_layers(specs: Sequence[LayerSpec], model: str) -> tuple[Layer, ...]:
    """Return the layers of `model` up to and including the deepest one of `specs`."""
    table = layer_table(model)
    return table[: 1 + max(table.index(spec.layer) for spec in specs)]


def network_of(
    tensors: Mapping[str, Tensor],
    layers: Sequence[Layer],
    specs: Sequence[LayerSpec],
    *,
    fold: bool = False,
) -> TappedVgg:
    """Return a network in evaluation mode whose parameters are these tensors, without copying.

    The tensors are float32 by torchvision's names, with or without `adapter.*`, as `load_tensors`
    returns them. With `fold`, convolutions do the work of their batch normalisation: other bits.
    """
    if fold:
        tensors = fold_norms(layers, tensors)
    first = tensors.get(ADAPTER, tensors.get(VGG.first_weight))
    network = TappedVgg(
        layers,
        specs,
        VGG.classes(tensors),
        COLOURS if first is None else first.shape[1],
        adapter=ADAPTER in tensors,
        norms=not fold,
    )
    network.load_state_dict(dict(tensors), strict=False, assign=True)
    network.requires_grad_(requires_grad=False).eval()
    for name, buffer in network.named_buffers():
        if buffer.is_meta:  # num_batches_tracked, which inference never reads
            network.get_submodule(name.rpartition(".")[0]).register_buffer(
                name.rpartition(".")[2], None
            )
    return network


def _modules_of(
    layers: Sequence[Layer],
    container: str,
    classes: int,
    in_channels: int = COLOURS,
    *,
    norms: bool = True,
) -> OrderedDict[str, nn.Module]:
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for layer in layers:
        if layer.container != container:
            continue
        if layer.kind == "conv":
            inputs = in_channels if layer.name == "conv1_1" else layer.in_channels
            modules[str(layer.index)] = nn.Conv2d(inputs, layer.channels, 3, padding=1, **_EMPTY)
        elif layer.kind == "pool":
            modules[str(layer.index)] = nn.MaxPool2d(2)
        elif layer.kind == "fc":
            out = classes if layer.name == "fc8" else layer.channels
            modules[str(layer.index)] = nn.Linear(layer.in_channels, out, **_EMPTY)
        if norms and layer.norm_index is not None:
            modules[str(layer.norm_index)] = nn.BatchNorm2d(
                layer.channels, track_running_stats=True, **_EMPTY
            )
    return modules
