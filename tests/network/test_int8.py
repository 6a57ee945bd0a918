"""8-bit integers: the arithmetic is what it says, and the features mean what they did."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
import torch
from command_line import assert_one_line, vggfeat, write_images
from killing import contents
from PIL import Image
from torch.nn import functional
from torchvision.models import get_model
from torchvision.models.feature_extraction import create_feature_extractor

import vggfeat as library
from vggfeat import Extractor
from vggfeat.core.settings import Settings
from vggfeat.core.vgg_layers import layer_table
from vggfeat.errors import CacheMismatchError, DeviceError, UsageError
from vggfeat.extraction.calibration import CALIBRATION_SAMPLE
from vggfeat.network.calibration import calibrate
from vggfeat.network.device import choose_precision, cpu_has_vnni

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

needs_vnni = pytest.mark.skipif(not cpu_has_vnni(), reason="this CPU has no VNNI")
WORDS = [
    "--layers", "conv1_1:max,conv2_1", "--model", "vgg11", "--weights", "random:0", "--size", "32",
    "--precision", "int8", "--device", "cpu", "--workers", "0", "--batch-size", "4",
]  # fmt: skip


def settings(layers: str, model: str = "vgg11", **more: Any) -> Settings:
    chosen = {
        "weights": "random:0",
        "precision": "int8",
        "device": "cpu",
        "dtype": "float32",
        "size": 64,
    }
    return Settings(layers=layers, model=model, **{**chosen, **more})


def pixels(count: int, side: int = 64, seed: int = 0) -> Tensor:
    """Smooth images, uint8 (N, 3, side, side)."""
    noise = torch.Generator().manual_seed(seed)
    rough = torch.randint(0, 256, (count, 3, 8, 8), generator=noise, dtype=torch.uint8)
    return functional.interpolate(rough.float(), side, mode="bilinear").to(torch.uint8)


def features(layers: str, images: Tensor, model: str = "vgg11", **more: Any) -> dict[str, Tensor]:
    asked = settings(layers, model, **more)
    return Extractor(asked, activations=calibrate(asked, images))(images)


def weights_of(model: str) -> dict[str, Tensor]:
    exact = Extractor(settings("fc8", model, precision="float32"))
    return dict(exact._network.state_dict())


def test_calibration_finds_the_largest_values() -> None:
    """The activations are the maxima of torchvision's own network over all images and places."""
    images = pixels(19)
    asked = settings("pool5", weights="random:0")
    network = get_model("vgg11", weights=None).eval()
    state = dict(Extractor(settings("pool5", precision="float32"))._network.state_dict())
    network.load_state_dict(state, strict=False)
    mean, std = colours(asked)
    nodes = {x.node(): x.name for x in layer_table("vgg11") if x.kind == "conv"}
    with torch.inference_mode():
        maps = create_feature_extractor(network, nodes)(((images / 255 - mean) / std).float())
    found = calibrate(asked, images)
    assert list(found) == list(maps)
    for name, values in maps.items():
        assert found[name] == pytest.approx(float(values.max()), rel=1e-5)


def colours(asked: Settings) -> tuple[Tensor, Tensor]:
    """Mean and deviation, float64 (1, 3, 1, 1) each."""
    preprocess = asked.preprocess()
    mean, std = (torch.tensor(part).double() for part in (preprocess.mean, preprocess.std))
    return mean.view(1, 3, 1, 1), std.view(1, 3, 1, 1)


def as_the_papers_say(
    x: Tensor, scale: float, weight: Tensor, bias: Tensor, padding: int
) -> Tensor:
    """A convolution of whole numbers, then scales and bias: float64 (N, o, H, W)."""
    step = weight.abs().amax((1, 2, 3), keepdim=True) / 127
    sums = functional.conv2d(x, (weight / step).round(), padding=padding)
    return sums * (scale * step.view(1, -1, 1, 1)) + bias.view(1, -1, 1, 1)


@needs_vnni
def test_the_arithmetic_is_that_of_the_papers() -> None:
    """Each map is what integers, scales and rounding come to in float64, to one step in few."""
    images = pixels(3)
    asked = settings("conv1_1:map,conv2_1:map,conv3_1:map,pool2:map,conv3_1.pre:map")
    largest = calibrate(asked, images)
    found = {
        spec: values.double()
        for spec, values in Extractor(asked, activations=largest)(images).items()
    }
    state = {name: values.double() for name, values in weights_of("vgg11").items()}
    mean, std = colours(asked)
    inside = functional.pad(torch.ones_like(images), (1, 1, 1, 1)) == 1
    x = torch.where(inside, functional.pad(images.double(), (1, 1, 1, 1)), (mean * 255).round())
    weight, bias = state["features.0.weight"], state["features.0.bias"]
    bias = bias - (weight * (mean / std)).sum((1, 2, 3))
    values = as_the_papers_say(x, 1.0, weight / (std * 255), bias, 0)
    for name, index in (("conv1_1", 3), ("conv2_1", 6), ("conv3_1", 0)):
        scale = largest[name] / 255
        steps = found[f"{name}:map"] / scale
        off = (steps - (values.relu() / scale).round().clamp(0, 255)).abs()
        assert float(off.max()) <= 1 + 1e-3
        assert float((off > 0.5).double().mean()) < 0.001
        x = functional.max_pool2d(steps.round(), 2)
        if name == "conv2_1":
            torch.testing.assert_close(found["pool2:map"], x * scale, rtol=1e-5, atol=0)
        if name == "conv3_1":
            # A weight in the middle of two steps may go either way in float32.
            close = 1e-3 * float(values.abs().max())
            torch.testing.assert_close(found["conv3_1.pre:map"], values, rtol=0, atol=close)
        else:
            weight, bias = state[f"features.{index}.weight"], state[f"features.{index}.bias"]
            values = as_the_papers_say(x, scale, weight, bias, 1)


def with_norms_of_its_own(folder: Path) -> str:
    """A file of VGG11 whose batch normalisations do more than nothing."""
    noise = torch.Generator().manual_seed(5)
    state = dict(get_model("vgg11_bn", weights=None).state_dict())
    for name, value in state.items():
        if value.dim() == 1 and f"{name.rpartition('.')[0]}.running_var" in state:
            drawn = torch.rand(value.shape, generator=noise)
            state[name] = drawn + 0.1 if name.endswith(("weight", "running_var")) else drawn - 0.5
    torch.save(state, folder / "vgg11_bn.pth")
    return str(folder / "vgg11_bn.pth")


@needs_vnni
@pytest.mark.parametrize("model", ["vgg11", "vgg11_bn"])
def test_features_keep_their_direction(model: str, tmp_path: Path) -> None:
    """Pooled maps and fully connected layers stay within cosine 0.995 of float32."""
    layers = "conv1_1,conv3_2.pre,conv5_2,pool5:flatten,fc7,fc8"
    weights = with_norms_of_its_own(tmp_path) if model == "vgg11_bn" else "random:0"
    images = pixels(6, side=96)
    exact = Extractor(settings(layers, model, precision="float32", weights=weights))(images)
    for spec, values in features(layers, images, model, weights=weights).items():
        cosine = torch.cosine_similarity(values.flatten(1), exact[spec].flatten(1))
        assert float(cosine.min()) > 0.995, spec


@needs_vnni
def test_neither_other_layers_nor_company_change_a_value() -> None:
    """A layer's bits are the same alone or among others, in any batch and any place of it."""
    images = pixels(5)
    alone = settings("conv3_2,conv4_1.pre:map")
    among = settings("conv1_1:map,pool2,conv3_1.pre,conv3_2,conv4_1.pre:map,fc6")
    largest = calibrate(among, images)
    apart, together = (Extractor(asked, activations=largest) for asked in (alone, among))
    expected = together(images)
    for spec, values in apart(images).items():
        assert torch.equal(values, expected[spec]), spec
    one = together(images[3:4])
    for spec, values in expected.items():
        if not spec.startswith("fc"):
            assert torch.equal(values[3:4], one[spec]), spec


@needs_vnni
def test_odd_sizes_and_layers_of_zeros() -> None:
    """Rows and columns that pooling leaves over are left over, and nothing divides by zero."""
    images = torch.zeros((2, 3, 45, 67), dtype=torch.uint8)
    exact = Extractor(settings("pool1:map,pool3:map", precision="float32"))(images)
    found = features("pool1:map,pool3:map", images)
    assert {spec: v.shape for spec, v in found.items()} == {s: v.shape for s, v in exact.items()}
    nothing = dict.fromkeys(calibrate(settings("pool3:map"), images), 0.0)
    dark = Extractor(settings("pool3:map"), activations=nothing)(images)
    assert torch.isfinite(dark["pool3:map"]).all()


@needs_vnni
def test_a_run_is_calibrated_once(tmp_path: Path) -> None:
    """The file holds the activations; going on and updating take them from there, byte for byte."""
    images = write_images(tmp_path / "images", 12)
    (images / "03b.png").write_bytes(b"no image")
    command = ["extract", "images", *WORDS, "--out", "feats.h5"]
    done = vggfeat(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "calibrating 8-bit integers on 13 images" in done.stderr
    whole = contents(tmp_path / "feats.h5")
    with h5py.File(tmp_path / "feats.h5", "r+") as file:
        assert list(json.loads(file.attrs["activations"])) == ["conv1_1", "conv2_1"]
        assert file.attrs["precision"] == b"int8"
        file["images/state"][3:9] = 0
        file["features/conv2_1"][3:9] = 0
    done = vggfeat(*command, cwd=tmp_path)
    assert "calibrating" not in done.stderr
    assert contents(tmp_path / "feats.h5") == whole
    write_images(images / "more", 3)
    done = vggfeat(*command, "--update", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "calibrating" not in done.stderr
    cache = library.open(tmp_path / "feats.h5")
    assert len(cache) == 16
    assert cache["conv2_1"][:13].tobytes() == whole["features/conv2_1"]


@needs_vnni
def test_other_calibrations_do_not_mix(tmp_path: Path) -> None:
    """Caches calibrated on different images are not merged."""
    for name, count in (("a", 2), ("b", 5)):
        write_images(tmp_path / name, count)
        done = vggfeat("extract", name, *WORDS, "--out", f"{name}.h5", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    with pytest.raises(CacheMismatchError, match="activations: calibrated on other images"):
        library.merge([tmp_path / "a.h5", tmp_path / "b.h5"], tmp_path / "all.h5")


@needs_vnni
def test_images_of_many_shapes(tmp_path: Path) -> None:
    """Without a crop each image is calibrated and computed by itself."""
    write_images(tmp_path / "images", 3)
    words = [*WORDS[:-2], "--crop", "none", "--out", "feats.h5"]
    done = vggfeat("extract", "images", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@needs_vnni
def test_several_devices_give_the_same_file(tmp_path: Path) -> None:
    """Calibrated on one of the devices, all compute the rows that one would."""
    write_images(tmp_path / "images", 9)
    for name, device in (("one", "cpu"), ("two", "cpu,cpu")):
        words = [*WORDS, "--device", device, "--out", f"{name}.h5"]
        done = vggfeat("extract", "images", *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "two.h5") == contents(tmp_path / "one.h5")


@needs_vnni
def test_nothing_to_calibrate_on(tmp_path: Path) -> None:
    """Broken images alone are an error that says what they were wanted for."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"no image")
    done = vggfeat("extract", "images", *WORDS, "--out", "feats.h5", cwd=tmp_path)
    assert done.returncode == 3
    assert "none of 1 tried can be decoded" in done.stderr
    assert not (tmp_path / "feats.h5").exists()


def test_where_it_cannot_be_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A CPU without VNNI and other devices refuse; so do images that are no bytes."""
    monkeypatch.setattr("vggfeat.network.device._cpu_flags", lambda: {"avx2"})
    with pytest.raises(DeviceError, match=r"needs a CPU with VNNI .*: this CPU has none"):
        choose_precision("int8", torch.device("cpu"))
    monkeypatch.setattr("vggfeat.network.device._cpu_flags", lambda: {"avx_vnni"})
    with pytest.raises(DeviceError, match="cuda is no CPU"):
        choose_precision("int8", torch.device("cuda"))
    with pytest.raises(UsageError, match=r"needs activations: vggfeat\.calibrate"):
        Extractor(settings("conv1_1"))
    network = Extractor(settings("conv1_1"), activations={"conv1_1": 1.0})
    with pytest.raises(ValueError, match="takes uint8 alone"):
        network(torch.zeros((1, 3, 32, 32)))
    write_images(tmp_path / "images", 1)
    words = [*WORDS[:-6], "--precision", "int9", "--out", "f.h5"]
    assert_one_line(vggfeat("extract", "images", *words, cwd=tmp_path), 2, "int9")


@needs_vnni
@pytest.mark.slow
def test_real_weights_keep_their_meaning(test_data: Path) -> None:
    """On photographs they were not calibrated on, real weights keep cosine 0.997 and neighbours."""
    weights = str(test_data / "weights" / "vgg16_features.safetensors")
    common = {"weights": weights, "transform": "features"}
    asked = settings("conv3_3,conv5_3", "vgg16", **common)
    images = photographs(test_data / "photos")
    network = Extractor(asked, activations=calibrate(asked, images[:CALIBRATION_SAMPLE]))
    exact = Extractor(settings("conv3_3,conv5_3", "vgg16", precision="float32", **common))
    mine, right = ([one(part) for part in torch.split(images, 10)] for one in (network, exact))
    for spec in ("conv3_3", "conv5_3"):
        a, b = (torch.cat([part[spec] for part in parts]) for parts in (mine, right))
        assert float(torch.cosine_similarity(a, b)[CALIBRATION_SAMPLE:].min()) > 0.997, spec
        a, b = functional.normalize(a), functional.normalize(b)
        assert ((a @ b.T).argmax(1) == torch.arange(60)).all()
        self_apart = 2 * torch.eye(60)
        next_ones = [(side @ b.T - self_apart).argmax(1) for side in (a, b)]
        assert float((next_ones[0] == next_ones[1]).float().mean()) > 0.9, spec


def photographs(folder: Path) -> Tensor:
    """All of them squashed, uint8 (60, 3, 224, 224)."""
    squares = [
        Image.open(path).convert("RGB").resize((224, 224)) for path in sorted(folder.iterdir())
    ]
    return torch.from_numpy(np.stack([np.asarray(image) for image in squares])).permute(0, 3, 1, 2)
