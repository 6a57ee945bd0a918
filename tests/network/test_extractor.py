"""The network against torchvision's own models, and what must not change a feature."""

from __future__ import annotations

import dataclasses
import logging
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torchvision
from torch.nn import functional
from torchvision.models.feature_extraction import create_feature_extractor
from weight_files import read_checkpoint

from vggfeat import Extractor
from vggfeat.config import make_settings
from vggfeat.core.records import DecodedBatch, Failure
from vggfeat.core.settings import Settings
from vggfeat.core.vgg_layers import VARIANTS, layer_table
from vggfeat.errors import DeviceError
from vggfeat.network.device import choose_batch_size, choose_device, choose_precision
from vggfeat.network.pass_size import PassLimit
from vggfeat.network.vgg import finite_rows
from vggfeat.storage.digests import file_digests

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor

    Tensors = dict[str, Tensor]

FLOAT16_MAX = 65504.0


def random_tensor(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Weights as torchvision initialises them, something other than 0 and 1 for all the rest."""
    if name.endswith("num_batches_tracked"):
        return torch.tensor(7)
    if len(shape) > 1:
        deviation = math.sqrt(2 / (9 * shape[0])) if len(shape) == 4 else 0.01
        return torch.empty(shape).normal_(0, deviation, generator=generator)
    if name.endswith(("running_var", "weight")):
        return torch.empty(shape).uniform_(0.5, 1.5, generator=generator)
    return torch.empty(shape).normal_(0, 0.1, generator=generator)


def empty_model(model: str) -> Any:
    with torch.device("meta"):
        return torchvision.models.get_model(model, weights=None, init_weights=False)


def random_state(model: str, part: str, seed: int = 0) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: random_tensor(name, tensor.shape, generator)
        for name, tensor in empty_model(model).state_dict().items()
        if name.startswith(part)
    }


@pytest.fixture(scope="module")
def classifier() -> Tensors:
    return random_state("vgg11", "classifier")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("weights")
    yield folder
    for path in folder.iterdir():  # pytest would keep half a gigabyte each of three runs
        path.unlink()


@pytest.fixture(scope="module")
def vgg19_file(folder: Path, classifier: Tensors) -> str:
    path = folder / "vgg19.pth"
    torch.save({**random_state("vgg19", "features"), **classifier}, path)
    return str(path)


@pytest.fixture(scope="module")
def vgg11_state() -> Tensors:
    return random_state("vgg11", "features")


@pytest.fixture(scope="module")
def vgg11_file(folder: Path, vgg11_state: Tensors) -> str:
    path = folder / "vgg11_features.pth"
    torch.save(vgg11_state, path)
    return str(path)


def louder(state: Tensors) -> Tensors:
    return {name: 5 * tensor if tensor.dim() > 1 else tensor for name, tensor in state.items()}


@pytest.fixture(scope="module")
def loud_file(folder: Path, vgg11_state: Tensors) -> str:
    """Weights of VGG11 whose activations leave float16 behind the fourth pooling."""
    path = folder / "vgg11_loud.pth"
    loud = louder(vgg11_state)
    torch.save(loud, path)
    return str(path)


def every_spec(model: str) -> list[str]:
    specs = []
    for layer in layer_table(model):
        pool = ":map" if layer.is_map else ""
        specs.append(layer.name + pool)
        if layer.relu_index is not None:
            specs.append(f"{layer.name}.pre{pool}")
    return specs


def torchvision_features(model: str, state: Mapping[str, Tensor], images: Tensor) -> Tensors:
    """Every layer by our name, by torchvision's own model and feature extraction."""
    network = empty_model(model)
    parts = {name.partition(".")[0] for name in state}
    if "classifier" not in parts:
        network.classifier = network.avgpool = torch.nn.Identity()
    network.load_state_dict(dict(state), assign=True)
    network.eval()
    layers = [x for x in layer_table(model) if x.kind != "prob" and x.container in parts]
    with torch.inference_mode():
        after = {layer.node(): layer.name for layer in layers}
        found: Tensors = create_feature_extractor(network, after)(images)
        for module in network.modules():
            if isinstance(module, torch.nn.ReLU):
                module.inplace = False  # what lies in front of a ReLU would come back behind it
        before = {x.node(pre=True): f"{x.name}.pre" for x in layers if x.relu_index is not None}
        found.update(create_feature_extractor(network, before)(images))
    if "fc8" in found:
        found["prob"] = found["fc8"].softmax(1)
    return found


def normalised(count: int, side: int, seed: int = 1) -> Tensor:
    return torch.randn((count, 3, side, side), generator=torch.Generator().manual_seed(seed))


def pixels(count: int, side: int, seed: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


def relative_error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    difference = (found.double().cpu() - expected.double().cpu()).abs().max()
    return float(difference / expected.abs().max())


def decoded(images: Tensor, slots: list[int] | None = None) -> DecodedBatch:
    """(N, 3, H, W) uint8 as the workers hand it over; row of slot k is 100 + k."""
    taken = np.array(range(len(images)) if slots is None else slots, dtype=np.int64)
    lying = images.permute(0, 2, 3, 1).contiguous()
    return DecodedBatch(
        lying,
        taken + 100,
        taken,
        np.zeros((len(taken), 32), np.uint8),
        (Failure(7, "no image"),),
        0.0,
    )


def extractor(layers: str, weights: str, model: str = "vgg11", **more: Any) -> Extractor:
    settings = {"precision": "float32", "device": "cpu", "size": 64, **more}
    return Extractor(Settings(layers=layers, model=model, weights=weights, **settings))


@pytest.mark.parametrize(("model", "side"), [*((name, 64) for name in VARIANTS), ("vgg11", 224)])
def test_every_layer_equals_torchvision(
    model: str,
    side: int,
    classifier: Tensors,
    folder: Path,
    record_testsuite_property: Callable[[str, object], None],
) -> None:
    """Every layer of every variant, before and behind its ReLU, is torchvision's own to 1e-5."""
    state = {**random_state(model, "features"), **classifier}
    path = folder / f"{model}-{side}.pth"
    torch.save(state, path)
    images = normalised(2, side)
    specs = every_spec(model)
    found = extractor(",".join(specs), str(path), model)(images)
    path.unlink()
    expected = torchvision_features(model, state, images)
    errors = {s: relative_error(found[s], expected[s.removesuffix(":map")]) for s in specs}
    record_testsuite_property(f"worst relative error {model} {side}", max(errors.values()))
    assert list(found) == specs
    assert set(expected) == {spec.removesuffix(":map") for spec in specs}
    assert {spec: error for spec, error in errors.items() if not error <= 1e-5} == {}


@pytest.mark.parametrize(
    ("transform", "weights"),
    [
        ("imagenet", torchvision.models.VGG16_Weights.IMAGENET1K_V1),
        ("features", torchvision.models.VGG16_Weights.IMAGENET1K_FEATURES),
    ],
)
def test_pixels_are_normalised_as_by_torchvision(transform: str, weights: Any) -> None:
    """Pixels give the same bits as floats that torchvision's own transform has made of them."""
    images = pixels(3, 64)
    transformed = weights.transforms(crop_size=64, resize_size=64)(images)
    network = extractor("conv1_1.pre:map", "random:0", transform=transform)
    assert len(np.unique(images.numpy())) == 256
    assert torch.equal(network(images)["conv1_1.pre:map"], network(transformed)["conv1_1.pre:map"])


def test_the_pyramid_feeds_the_classifier_what_it_was_trained_on(
    vgg19_file: str, classifier: Tensors
) -> None:
    """`--config pyramid`: fc7 is torchvision's, of 25,088 values; 512 do not fit."""
    settings = make_settings("pyramid", {"weights": vgg19_file, "precision": "float32"})
    images = normalised(2, 224)
    found = Extractor(settings)(images)
    state = {**random_state("vgg19", "features"), **classifier}
    right = torchvision_features("vgg19", state, images)
    assert list(found) == ["conv1_2", "conv4_4", "conv5_4", "fc7"]
    for layer, rows in found.items():
        whole = right[layer]
        expected = whole.mean((2, 3)) if whole.dim() == 4 else whole
        assert relative_error(rows, expected) < 1e-5, layer
    assert classifier["classifier.0.weight"].shape == (4096, 512 * 7 * 7)
    pooled = functional.adaptive_avg_pool2d(right["conv5_4"], 1).flatten(1)  # (2, 512)
    with pytest.raises(RuntimeError, match=r"2x512 and 25088x4096"):
        functional.linear(pooled, classifier["classifier.0.weight"])


@pytest.mark.parametrize(
    "others",
    [
        "conv5_4:map",
        "fc7",
        "conv5_4:max,pool5,fc8,prob",
        "conv1_1.pre,conv5_3.pre:map,fc6.pre",
    ],
)
def test_other_layers_change_nothing(others: str, vgg19_file: str) -> None:
    """A layer's bits are the same whichever other layers are asked for."""
    images = normalised(2, 64)
    alone = extractor("conv5_4.pre:map,conv3_1", vgg19_file, "vgg19")(images)
    among = extractor(f"{others},conv5_4.pre:map,conv3_1", vgg19_file, "vgg19")(images)
    assert bool((alone["conv5_4.pre:map"] < 0).any())
    assert torch.equal(among["conv5_4.pre:map"], alone["conv5_4.pre:map"])
    assert torch.equal(among["conv3_1"], alone["conv3_1"])


def test_vectors_are_the_same_alone_and_in_company(vgg19_file: str) -> None:
    """The bits of fc7, fc6 and its input stay the same when everything else is asked for too."""
    images = normalised(2, 64)
    among = extractor(",".join(every_spec("vgg19")), vgg19_file, "vgg19")(images)
    for spec in ("fc6.pre", "fc7", "pool4:map"):
        assert torch.equal(extractor(spec, vgg19_file, "vgg19")(images)[spec], among[spec])


def bytes_read() -> int:
    """Bytes that this process has asked the system for, whether a disk had to be read or not."""
    fields = dict(
        line.split(": ") for line in Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    )
    return int(fields["rchar"])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="no /proc/self/io here")
def test_nothing_behind_the_deepest_layer_is_touched(vgg19_file: str) -> None:
    """conv3_4 alone loads the eight convolutions up to it and reads nothing of the classifier."""
    file_digests(vgg19_file)  # once for all runs
    before = bytes_read()
    network = extractor("conv3_4", vgg19_file, "vgg19")
    assert bytes_read() - before < 60_000_000  # in pieces of 4 MiB, of which headers need some
    names = {name for name, _ in network._network.named_parameters()}
    indices = (0, 2, 5, 7, 10, 12, 14, 16)
    assert names == {f"features.{i}.{part}" for i in indices for part in ("weight", "bias")}
    assert Path(vgg19_file).stat().st_size > 500_000_000


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc/self/maps here")
def test_a_checkpoint_is_read_and_not_mapped(vgg19_file: str) -> None:
    """Nothing that was read lies in a map of the file, which somebody may overwrite."""
    tensors = read_checkpoint(vgg19_file)
    assert bool(torch.isfinite(tensors["classifier.6.weight"]).all())
    maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    assert not [line for line in maps if line.endswith(str(Path(vgg19_file).resolve()))]


@pytest.fixture(scope="module")
def wide(vgg19_file: str) -> Extractor:
    return extractor("conv1_1,conv3_2:gem,conv5_4.pre:map,pool5:spp,fc6,prob", vgg19_file, "vgg19")


def test_a_row_hardly_depends_on_its_slot(wide: Extractor) -> None:
    """At a fixed batch shape maps have the same bits in every slot, and vectors agree to 1e-5.

    A matrix product rounds its last rows otherwise, which is why plans keep a row in its slot.
    """
    images = pixels(6, 64)
    order = torch.tensor([3, 5, 0, 4, 1, 2])
    plain, moved = wide(images), wide(images[order])
    for spec in ("conv1_1", "conv3_2:gem", "conv5_4.pre:map", "pool5:spp"):
        assert torch.equal(moved[spec], plain[spec][order]), spec
    for spec in ("fc6", "prob"):
        assert relative_error(moved[spec], plain[spec][order]) <= 1e-5, spec


def test_a_row_does_not_depend_on_its_neighbours(wide: Extractor) -> None:
    """An image has the same bits beside others and beside empty slots."""
    images = pixels(6, 64)
    lonely = torch.zeros_like(images)
    lonely[4] = images[4]
    plain, alone = wide(images), wide(lonely)
    for spec in plain:
        assert torch.equal(alone[spec][4], plain[spec][4]), spec


@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_batch_size_changes_nothing_to_speak_of(wide: Extractor, size: int) -> None:
    """Features agree to 1e-5 whatever number of images a pass has."""
    images = pixels(6, 64)
    plain = wide(images)
    parts = [wide(part) for part in torch.split(images, size)]
    for spec, expected in plain.items():
        assert relative_error(torch.cat([part[spec] for part in parts]), expected) <= 1e-5, spec


def test_images_of_another_size_and_shape(wide: Extractor, vgg11_file: str) -> None:
    """Rows have the shapes foretold, for images that are not square too."""
    shapes = {name: tuple(x.shape[1:]) for name, x in wide(pixels(1, 64)).items()}
    assert shapes == wide.output_shapes(64, 64)
    assert wide.classes == 1000
    network = extractor("conv2_1:map,pool5:flatten", vgg11_file)
    found = network(normalised(2, 96)[:, :, :64])
    assert {name: tuple(x.shape) for name, x in found.items()} == {
        "conv2_1:map": (2, 128, 32, 48),
        "pool5:flatten": (2, 512 * 2 * 3),
    }
    assert network.classes == 0


@pytest.mark.parametrize("shape", [(64, 64), (1, 64, 64), (2, 64, 64, 3), (2, 1, 64, 64)])
def test_images_of_no_use_are_refused(vgg11_file: str, shape: tuple[int, ...]) -> None:
    """Anything but (N, 3, H, W) and (3, H, W) is refused with the shape found."""
    with pytest.raises(ValueError, match=rf"{re.escape(str(list(shape)))}; expected \(N, 3"):
        extractor("conv1_1", vgg11_file)(torch.zeros(shape))


def test_launched_batches_equal_called_ones(vgg11_file: str) -> None:
    """Collected rows are those of the slots that hold images, and earlier failures go along."""
    network = extractor("conv5_2,pool3:flatten", vgg11_file, dtype="float32")
    images = pixels(5, 64)
    plain = network(images)
    done = network.launch(decoded(images, [0, 3, 4])).collect()
    assert done.rows.tolist() == [100, 103, 104]
    assert done.failures == (Failure(7, "no image"),)
    assert done.clamped == 0
    for spec, expected in plain.items():
        assert np.array_equal(done.features[spec], expected[[0, 3, 4]].numpy())


def test_a_batch_without_images_gives_no_rows(vgg11_file: str) -> None:
    """A batch all of whose images failed has no rows and keeps the failures."""
    done = extractor("conv5_2", vgg11_file).launch(decoded(pixels(2, 64), [])).collect()
    assert done.rows.tolist() == []
    assert done.features["conv5_2"].shape == (0, 512)
    assert done.failures == (Failure(7, "no image"),)


LOUD_LAYERS = "conv1_1,conv3_2.pre:map,conv5_2"


def test_overflow_in_float16_is_done_again_in_float32(loud_file: str) -> None:
    """A batch that leaves float16 comes back with the bits of float32, called or launched."""
    exact = extractor(LOUD_LAYERS, loud_file, dtype="float32")
    half = extractor(LOUD_LAYERS, loud_file, dtype="float32", precision="float16")
    images = pixels(3, 64)
    expected = exact(images)
    assert FLOAT16_MAX < float(expected["conv5_2"].max()) < math.inf
    found = half(images)
    assert half.redone == 1
    done = half.launch(decoded(images)).collect()
    assert half.redone == 2
    for spec, values in expected.items():
        assert torch.equal(found[spec], values), spec
        assert np.array_equal(done.features[spec], values.numpy()), spec
    assert done.failures == (Failure(7, "no image"),)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_an_overflow_changes_no_other_row(loud_file: str, dtype: str) -> None:
    """One image that leaves float16 is redone alone: its neighbours keep their bits of float16."""
    half = extractor(LOUD_LAYERS, loud_file, dtype=dtype, precision="float16")
    images = pixels(4, 64)
    images[1:] = 121 + images[1:] % 4  # nearly grey, so that nothing of them is large
    quiet = images.clone()
    quiet[0] = 124
    alone, together = half(quiet), half(images)
    launched = half.launch(decoded(images)).collect().features
    assert half.redone == 2
    exact = extractor(LOUD_LAYERS, loud_file, dtype=dtype)(images)
    for spec, values in together.items():
        assert torch.equal(values[1:], alone[spec][1:]), spec
        assert torch.equal(values[:1], exact[spec][:1]), spec
        stored = half.stored(spec, values)[0].numpy()
        assert np.array_equal(launched[spec], stored), spec
    assert any(not torch.equal(together[spec][1:], exact[spec][1:]) for spec in exact)


def test_batches_within_float16_are_done_once(loud_file: str) -> None:
    """The same network leaves alone what does not overflow."""
    half = extractor("conv1_1,conv5_2", loud_file, precision="float16")
    found = half(normalised(2, 64) * 1e-4)
    assert half.redone == 0
    assert all(bool(torch.isfinite(values).all()) for values in found.values())
    half(normalised(2, 64))
    assert half.redone == 1


def test_overflow_that_the_relu_hides_is_seen(folder: Path, vgg11_state: Tensors) -> None:
    """Values below -65504 in front of a ReLU are done again too, though it makes zeros of them."""
    path = folder / "low.pth"
    low = {**vgg11_state, "features.0.bias": torch.full((64,), -70_000.0)}
    torch.save(low, path)
    images = pixels(2, 64)
    expected = extractor("conv1_1.pre", str(path))(images)["conv1_1.pre"]
    half = extractor("conv1_1.pre", str(path), precision="float16", dtype="float32")
    assert bool((expected < -FLOAT16_MAX).all())
    assert torch.equal(half(images)["conv1_1.pre"], expected)
    done = half.launch(decoded(images)).collect()
    assert np.array_equal(done.features["conv1_1.pre"], expected.numpy())


def test_overflow_in_a_column_that_pooling_drops_is_seen(
    folder: Path, vgg11_state: Tensors
) -> None:
    """Of a map of odd width the pool leaves out the last column; a map taken whole is checked."""
    path = folder / "odd.pth"
    weight = torch.zeros((64, 3, 3, 3))
    weight[:, :, 1, 1] = 1.0  # each output is the sum of its pixel's channels
    torch.save({**vgg11_state, "features.0.weight": weight}, path)
    images = torch.ones((2, 3, 33, 33))
    images[:, :, 0, 0] = -1.0
    images[1, :, :, 32] = 30_000.0
    half = extractor("conv1_1:map,pool1:map", str(path), precision="float16", size=33)
    found = half(images)
    assert half.redone == 1
    exact = extractor("conv1_1:map,pool1:map", str(path), size=33)(images)
    assert float(exact["conv1_1:map"].max()) > FLOAT16_MAX
    assert float(exact["pool1:map"].max()) < 10
    assert all(torch.equal(found[spec][1], exact[spec][1]) for spec in exact)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, FLOAT16_MAX])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_one_value_that_is_not_finite_is_seen_wherever_it_is(
    value: float, dtype: torch.dtype
) -> None:
    """Behind a ReLU the largest value of a row is NaN, infinite or finite as the row is."""
    x = torch.randn((3, 64, 5, 7), generator=torch.Generator().manual_seed(5)).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    x[1, 63, 4, 6] = value
    rows = x.flatten(1)
    assert torch.equal(finite_rows(x), torch.isfinite(rows).all(1))
    behind = torch.isfinite(torch.relu(rows)).all(1)
    assert torch.equal(finite_rows(torch.relu(x), rectified=True), behind)


@pytest.mark.parametrize(("precision", "least"), [("bfloat16", 0.999), ("float16", 0.99999)])
def test_half_precisions_keep_the_direction(
    vgg11_file: str,
    precision: str,
    least: float,
    record_testsuite_property: Callable[[str, object], None],
) -> None:
    """Pooled features of half precision keep their cosine to those of float32."""
    layers = "conv1_1,conv2_1:max,conv3_2,conv4_2:gem,conv5_2,pool5:flatten"
    images = pixels(3, 64)
    exact = extractor(layers, vgg11_file)(images)
    half = extractor(layers, vgg11_file, precision=precision)
    found = half(images)
    worst = min(float(torch.cosine_similarity(found[spec], exact[spec]).min()) for spec in exact)
    record_testsuite_property(f"worst cosine {precision}", worst)
    assert half.redone == 0
    assert all(values.dtype == torch.float32 for values in found.values())
    assert worst >= least


def test_values_beyond_float16_are_clamped_and_counted(
    loud_file: str, vgg11_state: Tensors
) -> None:
    """Stored as float16, what is beyond its range becomes its largest value and is counted."""
    network = extractor("conv5_2.pre:map", loud_file, dtype="float16")
    images = pixels(2, 64)
    transform = torchvision.models.VGG11_Weights.IMAGENET1K_V1.transforms
    floats = transform(crop_size=64, resize_size=64)(images)
    loud = louder(vgg11_state)
    expected = torchvision_features("vgg11", loud, floats)["conv5_2.pre"].numpy()
    beyond = np.abs(expected) > FLOAT16_MAX
    done = network.launch(decoded(images)).collect()
    found = done.features["conv5_2.pre:map"]
    assert 0 < beyond.sum() < beyond.size
    assert done.clamped == beyond.sum()
    assert found.dtype == np.float16
    assert np.array_equal(found[beyond], np.sign(expected[beyond]) * FLOAT16_MAX)
    largest = np.abs(expected[~beyond]).max()
    np.testing.assert_allclose(found[~beyond], expected[~beyond], rtol=1e-3, atol=1e-5 * largest)
    assert done.failures == (Failure(7, "no image"),)


def test_a_network_that_gives_nan_fails_its_rows(folder: Path, vgg11_state: Tensors) -> None:
    """Rows that a NaN in the weights reaches fail, each with the layers in which it shows."""
    path = folder / "nan.pth"
    state = {name: tensor.clone() for name, tensor in vgg11_state.items()}
    state["features.3.weight"][5, 0, 1, 1] = math.nan
    torch.save(state, path)
    done = extractor("conv1_1,conv2_1,pool2", str(path)).launch(decoded(pixels(2, 64))).collect()
    reason = "the network gave values that are not finite in conv2_1, pool2"
    assert done.failures == (Failure(7, "no image"), Failure(100, reason), Failure(101, reason))
    assert done.rows.tolist() == []
    assert all(len(values) == 0 for values in done.features.values())


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_rows_that_are_finite_outlive_one_that_is_not(
    folder: Path, vgg11_state: Tensors, precision: str
) -> None:
    """One image beyond float32 fails alone; the others keep values and rows."""
    path = folder / "huge.pth"
    state = {name: tensor.clone() for name, tensor in vgg11_state.items()}
    state["features.0.weight"][9, 0] = 3e38  # times what is left of red, 0.0007 for pixels of 123
    torch.save(state, path)
    images = pixels(4, 64)
    images[:, 0] = 123
    images[2, 0, 30:40] = 255
    network = extractor(
        "conv1_1:max", str(path), dtype="float32", transform="features", precision=precision
    )
    done = network.launch(decoded(images)).collect()
    assert done.rows.tolist() == [100, 101, 103]
    assert [failure.row for failure in done.failures] == [7, 102]
    assert "not finite in conv1_1:max" in done.failures[1].reason
    weights = torchvision.models.VGG16_Weights.IMAGENET1K_FEATURES
    floats = weights.transforms(crop_size=64, resize_size=64)(images)
    expected = torchvision_features("vgg11", state, floats)["conv1_1"].amax((2, 3)).double()
    kept = expected[[0, 1, 3]]
    found = torch.from_numpy(done.features["conv1_1:max"]).double()
    assert bool(kept[:, 9].gt(1e34).all())
    usual = [channel for channel in range(64) if channel != 9]
    torch.testing.assert_close(found[:, 9], kept[:, 9], rtol=1e-5, atol=0)
    assert relative_error(found[:, usual], kept[:, usual]) <= 1e-5


def test_a_device_out_of_memory_gets_fewer_images_a_pass(
    vgg11_file: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Out of memory halves the pass until it fits, and keeps to it; a stand-in plays the device."""
    network = extractor("conv5_2,pool2:map", vgg11_file)
    images = pixels(5, 64)
    plain = network(images)
    genuine, sizes = Extractor._pass, []

    def small(self: Extractor, net: Any, part: Tensor) -> Any:
        sizes.append(len(part))
        if len(part) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB.")
        return genuine(self, net, part)

    monkeypatch.setattr(Extractor, "_pass", small)
    with caplog.at_level(logging.WARNING, "vggfeat"):
        found = network(images)
    assert sizes == [5, 3, 2, 2, 1]
    assert "out of memory with 5 images a pass" in caplog.text
    sizes.clear()
    done = network.launch(decoded(images)).collect()
    assert sizes == [2, 2, 1]
    assert done.rows.tolist() == [100, 101, 102, 103, 104]
    for spec, expected in plain.items():
        assert relative_error(found[spec], expected) <= 1e-5


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 3.00 GiB."),
        (RuntimeError, "GET was unable to find an engine to execute this computation"),
        (RuntimeError, "cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        (
            RuntimeError,
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`",
        ),
    ],
)
@pytest.mark.parametrize("place", ["forward", "quantising", "redoing"])
def test_a_lack_of_memory_is_known_by_its_texts_and_wherever_it_is_met(
    loud_file: str,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[RuntimeError],
    text: str,
    place: str,
) -> None:
    """PyTorch 2.6 to 2.15 say it in four ways; each halves the pass. A stand-in is the device."""
    network = extractor("conv1_1,conv5_2", loud_file, precision="float16", dtype="float16")
    images = pixels(4, 64)
    expected = network.launch(decoded(images)).collect()
    assert network.redone == 1
    failing = {"forward": "_pass", "quantising": "stored", "redoing": "_pass"}[place]
    genuine, failed = getattr(Extractor, failing), []

    def small(self: Extractor, first: Any, rows: torch.Tensor) -> Any:
        exactly = place != "redoing" or first is self._exact
        if exactly and len(rows) > 2:
            failed.append(len(rows))
            raise kind(text)
        return genuine(self, first, rows)

    monkeypatch.setattr(Extractor, failing, small)
    found = network.launch(decoded(images)).collect()
    assert failed == [4]
    assert found.clamped == expected.clamped
    for spec, values in expected.features.items():
        assert relative_error(
            torch.from_numpy(found.features[spec]), torch.from_numpy(values)
        ) <= 1e-3, spec  # fmt: skip


def test_memory_for_not_even_one_image_is_an_error(
    vgg11_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where one image is too much the error names device and size; a stand-in plays the device."""

    def none(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB.\nmore")

    monkeypatch.setattr(Extractor, "_pass", none)
    message = r"cpu has no memory for one image of 64 x 96: CUDA out of memory\. .* 3\.00 GiB\.$"
    with pytest.raises(DeviceError, match=message):
        extractor("conv5_2", vgg11_file, crop="none")(pixels(3, 96)[:, :, :64])


def test_overflow_with_parts_is_seen_in_any_of_them(
    loud_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When memory splits a batch, the row that overflowed in one part is redone, and it alone."""
    half = extractor("conv5_2", loud_file, precision="float16")
    monkeypatch.setattr(half.passes, "limit", PassLimit(1))
    images = normalised(3, 64)
    images[1:] *= 1e-4
    found = half(images)["conv5_2"]
    assert half.redone == 1
    exact = extractor("conv5_2", loud_file)(images)["conv5_2"]
    assert relative_error(found[:1], exact[:1]) <= 1e-5
    assert torch.equal(found[1:], half(images[1:])["conv5_2"])
    assert half.redone == 1


def test_devices_that_are_not_there_are_errors() -> None:
    """A device asked for by name is that device or an error, never another one."""
    assert choose_device("cpu") == torch.device("cpu")
    missing = f"cuda:{torch.cuda.device_count() + 3}"
    with pytest.raises(DeviceError, match=rf"device {missing} does not exist: torch .* CUDA"):
        choose_device(missing)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_without_cuda_auto_is_another_device_and_cuda_an_error() -> None:
    """Without CUDA `cuda` is an error, while `auto` is the CPU."""
    with pytest.raises(DeviceError, match=r"device cuda does not exist: .* sees 0 CUDA devices"):
        choose_device("cuda")
    assert choose_device("auto") == torch.device("cpu")


def test_precision_is_as_asked_or_fits_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` is float16 on CUDA, bfloat16 where a CPU has it, else float32."""
    cpu, cuda = (torch.device(name) for name in ("cpu", "cuda"))
    assert [choose_precision(p, cpu) for p in ("float16", "float32")] == ["float16", "float32"]
    for has, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr("vggfeat.network.device.cpu_has_bfloat16", lambda has=has: has)
        assert choose_precision("auto", cpu) == expected
        assert choose_precision("auto", cuda) == "float16"


@pytest.mark.parametrize(
    ("images", "expected"), [(1, 1), (16, 16), (17, 9), (32, 16), (33, 11), (1000, 16)]
)
def test_batches_are_spread_evenly(images: int, expected: int) -> None:
    """At most 16 images a pass on a CPU, and no fewer in the last pass than need be."""
    assert choose_batch_size(Settings(layers="fc6", size=32, device="cpu"), images) == expected


@pytest.mark.parametrize(("images", "expected"), [(1, 1), (4, 4), (5, 3), (1000, 4)])
def test_convolutions_alone_take_smaller_batches(images: int, expected: int) -> None:
    """Without fully connected layers 4 images a pass are about as fast, in far less memory."""
    assert choose_batch_size(Settings(layers="pool5", size=32, device="cpu"), images) == expected


def test_the_batch_size_asked_for_is_taken() -> None:
    """A given batch size stands; without a crop it is one by default, as shapes may differ."""
    asked = Settings(layers="conv1_1", batch_size=7, device="cpu")
    assert choose_batch_size(asked, 3) == 7
    uncropped = Settings(layers="conv1_1", crop="none", device="cpu")
    assert choose_batch_size(uncropped, 100) == 1
    assert choose_batch_size(dataclasses.replace(uncropped, batch_size=7), 3) == 7
