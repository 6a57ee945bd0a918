"""The network on the device: its values, its flags, its memory format, and that nothing waits."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from accelerator import (
    DEVICE,
    EVERYTHING,
    MAPS,
    ON_CUDA,
    PRECISIONS,
    SIDE,
    as_in_a_long_run,
    attribute,
    decoded,
    extractor,
    faint,
    noise,
    relative_error,
    settings,
    tensors_of,
    write_pictures,
)
from torch.utils._python_dispatch import TorchDispatchMode

import vggfeat
from vggfeat.core.quantization import Scales
from vggfeat.core.vgg_layers import layer_table
from vggfeat.network.device import choose_precision
from vggfeat.network.extractor import TensorExtractor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from torch import Tensor

    Tensors = dict[str, Tensor]

NEARLY = 1e-4
"""How near float32 on a device is to a CPU's: rounding, and not TF32, whose error is 1e-3."""

MODEL = "vgg19" if ON_CUDA else "vgg11"
DEEPEST = "conv5_2" if ON_CUDA else "pool3"
OVERFLOWING = ["conv1_1", "conv2_1", "conv3_1", "conv3_2"]
if ON_CUDA:
    OVERFLOWING += ["conv4_1", "conv4_2", "conv5_1", "conv5_2", "fc6", "fc7"]  # fc8 is the last


def images_of(count: int, side: int = SIDE, seed: int = 0) -> Tensor:
    return torch.from_numpy(noise(count, side, seed)).permute(0, 3, 1, 2)


def on_cpu(layers: str, **more: Any) -> TensorExtractor:
    return TensorExtractor(settings(layers, **{**more, "device": "cpu"}))


@pytest.fixture(scope="module")
def exact() -> Tensors:
    return on_cpu(EVERYTHING, model=MODEL)(images_of(4))


def test_float32_equals_the_cpu(exact: Tensors) -> None:
    """Float32 on the device is float32 and not TF32."""
    found = extractor(EVERYTHING, model=MODEL)(images_of(4))
    errors = {spec: relative_error(found[spec], values) for spec, values in exact.items()}
    assert {spec: error for spec, error in errors.items() if not error <= NEARLY} == {}


@pytest.mark.parametrize("precision", ["auto", *PRECISIONS[:-1]])
def test_half_precision_keeps_the_direction(precision: str, exact: Tensors) -> None:
    """The default precision keeps cosine 0.9999 to float32 on the CPU, bfloat16 0.999."""
    network = extractor(EVERYTHING, model=MODEL, precision=precision)
    found = network(images_of(4))
    if precision == "auto":
        assert network.precision == choose_precision("auto", torch.device(DEVICE))
        assert network.precision == "float16" or not ON_CUDA
    assert network.redone == 0
    for spec, values in exact.items():
        cosine = torch.cosine_similarity(found[spec].cpu().flatten(1), values.flatten(1))
        assert float(cosine.min()) >= (0.999 if network.precision == "bfloat16" else 0.9999), spec


@pytest.mark.parametrize("layer", OVERFLOWING)
def test_overflow_in_any_layer_is_computed_again(layer: str) -> None:
    """What leaves float16 in one layer and comes back in the next has the bits of float32."""
    table = [one for one in layer_table("vgg11") if one.kind in ("conv", "fc")]
    at = [one.name for one in table].index(layer)
    deepest = "fc8" if layer in ("fc6", "fc7") else DEEPEST
    state = tensors_of("vgg11", deepest)
    for one, factor in ((table[at], 2e5), (table[at + 1], 1 / 2e5)):
        name = f"{one.container}.{one.index}.weight"
        if name in state:  # the last one's values stay large
            state[name] *= factor
    half = extractor(deepest, weights=state, precision="float16")
    found = half.launch(decoded(noise(3))).collect().features[deepest]
    assert half.redone == 1
    expected = extractor(deepest, weights=state)(images_of(3))[deepest]
    np.testing.assert_array_equal(found, expected.cpu().numpy())


def test_overflow_before_a_relu_is_computed_again() -> None:
    """Values below float16 in front of a ReLU are seen, though it makes zeros of them."""
    state = tensors_of("vgg11", "conv1_1")
    state["features.0.bias"].fill_(-70_000)
    half = extractor("conv1_1.pre", weights=state, precision="float16")
    exact = extractor("conv1_1.pre", weights=state)
    images = images_of(2)
    assert torch.equal(half(images)["conv1_1.pre"], exact(images)["conv1_1.pre"])
    assert half.redone == 1


@pytest.mark.parametrize("precision", PRECISIONS)
def test_batch_norm_keeps_its_statistics(precision: str) -> None:
    """Variances of 1e5 and 1e-6, which float16 does not have, give the features of float32."""
    state = tensors_of("vgg11_bn", DEEPEST)
    for one in layer_table("vgg11_bn"):
        variance = f"{one.container}.{one.norm_index}.running_var"
        if variance not in state:
            continue
        values = torch.full_like(state[variance], 1e5)
        values[::2] = 1e-6
        state[variance] = values
        state[f"{one.container}.{one.index}.weight"] *= values.sqrt().view(-1, 1, 1, 1)
    images = images_of(3)
    given = {"model": "vgg11_bn", "weights": state}
    expected = on_cpu(f"conv1_1,{DEEPEST}", **given)(images)
    network = extractor(f"conv1_1,{DEEPEST}", precision=precision, **given)
    found = network(images)
    assert network.redone == 0
    for spec, values in expected.items():
        cosine = torch.cosine_similarity(found[spec].cpu().flatten(1), values.flatten(1))
        assert float(cosine.min()) >= (0.999 if precision == "bfloat16" else 0.9999), spec
        assert relative_error(found[spec], values) <= (NEARLY if precision == "float32" else 0.1)


@contextlib.contextmanager
def waiting_is_an_error() -> Iterator[None]:
    """On CUDA, raise where anything waits for the device; a CPU is never waited for."""
    if not ON_CUDA:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
@pytest.mark.parametrize(
    ("norm", "fuse"), [("none", None), ("l2", None), ("ssr", None), ("l2", "concat"), ("l2", "sum")]
)
def test_a_launch_does_not_wait(dtype: str, norm: str, fuse: str | None) -> None:
    """Whatever the pool, the norm, the fusion and the stored type: no value is read back."""
    layers = MAPS if fuse is None else "conv3_1,conv3_2:max"
    more = {"norm": norm, "dtype": dtype} | ({"fuse": fuse} if fuse else {})
    network = as_in_a_long_run(extractor(layers, precision="float16", **more))
    network.scale_to(
        {
            spec: Scales.over(np.full(shape[:1], -1.0), np.full(shape[:1], 2.0))
            for spec, shape in network.output_shapes(SIDE, SIDE).items()
        }
    )
    batch = decoded(faint(4), [0, 2, 3])
    expected = network.launch(batch).collect()  # cuDNN and what is uploaded once
    with waiting_is_an_error():
        pending = [network.launch(batch) for _ in range(2)]
    for one in pending:
        for spec, rows in one.collect().features.items():
            assert rows.tobytes() == expected.features[spec].tobytes()


class Inputs(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch has no types here
    """Notes the strides of what convolutions get, whoever calls them and by what name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch has no types here
        self.found: list[tuple[str, bool]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "conv" in str(func) and isinstance(args[0], torch.Tensor) and args[0].dim() == 4:
            lying = all(x.is_contiguous(memory_format=torch.channels_last) for x in args[:2])
            self.found.append((str(func), lying))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_convolution_gets_channels_last(precision: str, *, long: bool) -> None:
    """No convolution has to turn its input or its weights round, which takes longer than itself."""
    network = extractor(MAPS, precision=precision)
    network = as_in_a_long_run(network) if long else network
    images = network._normalise(images_of(2).to(DEVICE))
    with torch.no_grad(), Inputs() as inputs:
        network._network(images.to(next(network._network.parameters()).dtype))
    deepest = max(spec.layer.index for spec in network.settings.specs)
    convolutions = [one for one in layer_table("vgg11") if one.kind == "conv"]
    assert len(inputs.found) == sum(one.index <= deepest for one in convolutions)
    assert {name for name, lying in inputs.found if not lying} == set()


CONVOLUTIONS = [layer.name for layer in layer_table(MODEL) if layer.kind == "conv"]
MAPS_TAKEN = {
    "ReLUs": [f"{name}:map" for name in CONVOLUTIONS],
    "pools": [f"pool{block}:map" for block in range(1, 6)],
    "both": ["pool2", "pool5:max", *(f"{name}.pre:map" for name in CONVOLUTIONS[::3])],
}


@pytest.mark.parametrize("taken", MAPS_TAKEN if ON_CUDA else ["both"])
@pytest.mark.parametrize("precision", PRECISIONS[:-1])
@pytest.mark.parametrize("side", [64, 100] if ON_CUDA else [32])
def test_the_fused_kernel_changes_no_bit(taken: str, precision: str, side: int) -> None:
    """Behind every layer, as a map or pooled, and of odd sizes, long and short runs are equal."""
    layers = ",".join(MAPS_TAKEN[taken])
    images = torch.from_numpy(np.concatenate([noise(2, side), faint(1, side)])).permute(0, 3, 1, 2)
    short, long = (extractor(layers, precision=precision, model=MODEL, size=side) for _ in range(2))
    expected, found = short(images), as_in_a_long_run(long)(images)
    for spec, values in expected.items():
        assert torch.equal(found[spec], values), spec


def old_tf32() -> Any:
    stack = contextlib.ExitStack()
    stack.enter_context(attribute(torch.backends.cuda.matmul, "allow_tf32", value=True))
    stack.enter_context(attribute(torch.backends.cudnn, "allow_tf32", value=True))
    return stack


def precisions() -> tuple[Any, ...]:
    """Places of the new settings, where this torch has them."""
    cudnn: Any = torch.backends.cudnn
    return torch.backends.cuda.matmul, cudnn.conv


def new_tf32() -> Any:
    stack = contextlib.ExitStack()
    for place in precisions():
        stack.enter_context(attribute(place, "fp32_precision", value="tf32"))
    return stack


def benchmark() -> Any:
    return attribute(torch.backends.cudnn, "benchmark", value=True)


def half_sums() -> Any:
    name = "allow_fp16_reduced_precision_reduction"
    return attribute(torch.backends.cuda.matmul, name, value=True)


def flags(*, new: bool) -> list[Any]:
    """What a caller has set; the old settings cannot be read where the new ones contradict them."""
    if new:
        return [place.fp32_precision for place in precisions()]
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    return [matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark,
            matmul.allow_fp16_reduced_precision_reduction]  # fmt: skip


@pytest.fixture(scope="module")
def networks() -> list[TensorExtractor]:
    return [extractor(EVERYTHING, precision=precision) for precision in PRECISIONS]


@pytest.mark.parametrize("host", [old_tf32, new_tf32, benchmark, half_sums])
def test_what_the_caller_has_set_changes_no_bit(
    host: Callable[[], Any], networks: list[TensorExtractor]
) -> None:
    """TF32 by the old and by the new settings, and others, are put aside and given back."""
    new = host is new_tf32
    if new and not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("this torch knows no fp32_precision")
    images = images_of(3)
    expected = [network(images) for network in networks]
    before = flags(new=new)
    with host():
        inside = flags(new=new)
        found = [network(images) for network in networks]
        again = extractor(EVERYTHING, precision=PRECISIONS[-1])(images)
        assert flags(new=new) == inside
    assert flags(new=new) == before
    for one, other in zip([*expected, expected[-1]], [*found, again], strict=True):
        for spec, rows in one.items():
            assert torch.equal(other[spec], rows), spec


@pytest.mark.parametrize(
    ("channels", "depth"), [(1, 8), (5, 8), (1, 16), (3, 16), (5, 16)], ids=str
)
def test_channels_and_depths_equal_the_cpu(channels: int, depth: int) -> None:
    """Images of one and five channels, of 8 and 16 bits, have the CPU's features."""
    kind = np.uint8 if depth == 8 else np.uint16
    pixels = np.random.default_rng(channels).integers(0, 2**depth, (3, SIDE, SIDE, channels), kind)
    given = {"channels": channels, "depth": depth}
    layers = "conv1_1,conv2_1:max"
    expected = on_cpu(layers, **given)(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    found = extractor(layers, **given).launch(decoded(pixels)).collect()
    for spec, values in expected.items():
        assert relative_error(torch.from_numpy(found.features[spec]), values) <= NEARLY, spec


def test_fifty_shapes(tmp_path: Path) -> None:
    """Images of fifty shapes that are not cropped have the CPU's features, each in its slot."""
    shapes = [(32, 33 + number) if number % 2 else (33 + number, 32) for number in range(50)]
    pictures = [noise(1, 96, row)[0, :height, :width] for row, (height, width) in enumerate(shapes)]
    images = write_pictures(tmp_path / "images", pictures)
    given: dict[str, Any] = {"crop": "none", "size": 32, "batch_size": 4, "workers": 0}
    layers = "conv1_1:rmac,conv2_1"
    done = vggfeat.extract(images, tmp_path / "f.h5", settings(layers, **given))
    assert (done.done, done.failed) == (50, 0)
    cache = vggfeat.open(tmp_path / "f.h5")
    alone = on_cpu(layers, crop="none", size=32)
    for row in range(0, 50, 1 if ON_CUDA else 7):
        pixels = torch.from_numpy(pictures[row].copy()).permute(2, 0, 1)[None]
        for spec, values in alone(pixels).items():
            stored = torch.tensor(cache[spec][row])[None]
            assert relative_error(stored, values) <= NEARLY, (row, spec)
