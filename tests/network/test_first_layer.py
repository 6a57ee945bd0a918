"""Images of any number of channels: first layers rebuilt, drawn anew, or behind an adapter."""

from __future__ import annotations

import hashlib
import json
import logging
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torch.nn import functional

from vggfeat import Extractor
from vggfeat.config import make_settings
from vggfeat.core.layer_spec import parse_specs
from vggfeat.core.settings import Settings
from vggfeat.core.vgg_layers import Entry, parameter_shapes
from vggfeat.errors import CacheMismatchError, UsageError, WeightsError
from vggfeat.extraction.api import extract
from vggfeat.extraction.trace import trace
from vggfeat.network.device import cpu_has_vnni
from vggfeat.network.first_layer import inflate, start_adapter
from vggfeat.network.vgg import channels_last, needed_layers
from vggfeat.network.weights import find_weights, load_tensors

if TYPE_CHECKING:
    from pathlib import Path

FIRST = "features.0.weight"


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape) + shape[0]))


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    """torchvision's own VGG11 with some weights."""
    torch.manual_seed(3)
    network: torch.nn.Module = torchvision.models.vgg11(weights=None)
    return network.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model: torch.nn.Module) -> Path:
    """Files: `rgb` is the model; `five`, `grey` have other first layers; `adapted` an adapter."""
    folder = tmp_path_factory.mktemp("firstlayer")
    state = {
        name: tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if name.startswith("features.")
    }
    save = safetensors.torch.save_file
    save(state, folder / "rgb.safetensors")
    save({**state, FIRST: noise(64, 5, 3, 3)}, folder / "five.safetensors")
    save({**state, FIRST: noise(64, 1, 3, 3)}, folder / "grey.safetensors")
    torch.save({**state, FIRST: noise(64, 1, 3, 3)}, folder / "grey.pth")
    adapter = {"adapter.weight": noise(3, 2, 1, 1), "adapter.bias": noise(3)}
    save({**state, **adapter}, folder / "adapted.safetensors")
    return folder


def features(weights: Path | str, images: Tensor, **settings: Any) -> Tensor:
    """pool3 by us, float32 (N, 256), of normalised images."""
    asked = Settings(
        layers="pool3", model="vgg11", weights=str(weights), channels=images.shape[1],
        device="cpu", precision="float32", **settings,
    )  # fmt: skip
    return Extractor(asked)(images)["pool3"]


def expected(model: torch.nn.Module, images: Tensor, first: Tensor | None = None) -> Tensor:
    """pool3 by torchvision's modules, with another first weight if there is one."""
    layers = model.get_submodule("features")
    assert isinstance(layers, torch.nn.Sequential)
    with torch.no_grad():
        if first is None:
            x = layers[0](images)
        else:
            bias = layers[0].bias
            assert isinstance(bias, Tensor)
            x = functional.conv2d(images, first, bias, padding=1)
        return layers[1:11](x).mean((2, 3))  # type: ignore[no-any-return] # torch has no types here


def assert_close(found: Tensor, wanted: Tensor) -> None:
    scale = float(wanted.abs().max())
    assert scale > 0
    assert float((found - wanted).abs().max()) <= 1e-5 * scale


def test_grey_is_the_grey_image_copied_to_three_channels(
    folder: Path, model: torch.nn.Module
) -> None:
    """Filters summed over colour give torchvision's features of the image on all three channels."""
    grey = noise(2, 1, 48, 40)
    assert_close(
        features(folder / "rgb.safetensors", grey), expected(model, grey.repeat(1, 3, 1, 1))
    )


def test_grey_with_published_filters(test_data: Path) -> None:
    """The same with VGG16's own convolutions, read by the safetensors library."""
    path = str(test_data / "weights" / "vgg16_features.safetensors")
    state = safetensors.torch.load_file(path)
    network = torchvision.models.vgg16(weights=None).features[:9].eval()  # up to conv2_2
    network.load_state_dict(
        {name: state[f"features.{name}"].float() for name in network.state_dict()}
    )
    grey = 50 * noise(1, 1, 64, 64)
    asked = Settings(layers="conv2_2", model="vgg16", weights=path, channels=1, device="cpu",
                     transform="features", precision="float32")  # fmt: skip
    with torch.no_grad():
        wanted = network(grey.repeat(1, 3, 1, 1)).mean((2, 3))
    assert_close(Extractor(asked)(grey)["conv2_2"], wanted)


@pytest.mark.parametrize("channels", [2, 4, 7])
def test_channels_all_alike_give_what_grey_gives(folder: Path, channels: int) -> None:
    """Inflated filters of C channels that are all one image give what that image alone gives."""
    grey = noise(2, 1, 32, 32)
    path = folder / "rgb.safetensors"
    assert_close(features(path, grey.repeat(1, channels, 1, 1)), features(path, grey))


def test_inflated_filters_are_the_mean_scaled() -> None:
    """C channels have the filters' mean each, times 3 / C; three are untouched."""
    weight = noise(4, 3, 3, 3)
    for channels in (1, 2, 5):
        wanted = np.repeat(weight.numpy().mean(1, keepdims=True) * 3 / channels, channels, 1)
        np.testing.assert_allclose(inflate(weight, channels).numpy(), wanted, rtol=1e-5, atol=1e-7)
    assert inflate(weight, 3) is weight


def test_three_channels_are_untouched(folder: Path, model: torch.nn.Module) -> None:
    """RGB goes through the pretrained filters, whatever else can be done."""
    images = noise(2, 3, 32, 32)
    assert_close(features(folder / "rgb.safetensors", images), expected(model, images))


@pytest.mark.parametrize("channels", [1, 3, 6])
def test_kaiming_is_drawn_as_torch_draws_it(channels: int) -> None:
    """On request conv1_1 is drawn anew, with He's deviation over the fan out and no bias."""
    layers = needed_layers(parse_specs("conv2_1", "vgg11"), "vgg11")
    weights = find_weights("random:7", "vgg11")
    found = [load_tensors(weights, "vgg11", layers, Entry(channels, "kaiming")) for _ in range(2)]
    first = found[0][FIRST]
    assert tuple(first.shape) == (64, channels, 3, 3)
    assert torch.equal(first, found[1][FIRST])
    reference = torch.nn.init.kaiming_normal_(
        torch.empty(64, channels, 3, 3), mode="fan_out", nonlinearity="relu"
    )
    within = 5 / np.sqrt(2 * first.numel())  # five deviations of an estimated deviation
    assert float(first.std() / reference.std()) == pytest.approx(1, abs=2 * within)
    assert not bool(found[0]["features.0.bias"].any())
    plain = load_tensors(weights, "vgg11", layers)
    assert torch.equal(found[0]["features.3.weight"], plain["features.3.weight"])
    assert first.shape != plain[FIRST].shape or not torch.equal(first, plain[FIRST])


@pytest.mark.parametrize(("name", "channels"), [("five", 5), ("grey", 1)])
def test_a_file_for_other_channels_is_taken_as_it_is(
    folder: Path, model: torch.nn.Module, name: str, channels: int
) -> None:
    """A first convolution that takes C channels already is not touched."""
    images = noise(2, channels, 32, 32)
    first = safetensors.torch.load_file(folder / f"{name}.safetensors")[FIRST]
    assert_close(features(folder / f"{name}.safetensors", images), expected(model, images, first))


@pytest.mark.parametrize(
    ("name", "channels", "message"),
    [
        ("five.safetensors", 3, r"five\.safetensors take images of 5 channels, not 3"),
        ("grey.pth", 4, r"grey\.pth take images of 1 channel, not 4: --channels 1,"),
        ("adapted.safetensors", 3, r"take images of 2 channels, not 3: --channels 2,"),
    ],
)
def test_other_channels_than_the_file_are_one_error(
    folder: Path, name: str, channels: int, message: str
) -> None:
    """What was learnt for other channels is refused, with what to ask for."""
    with pytest.raises(WeightsError, match=message):
        features(folder / name, noise(1, channels, 32, 32))


@pytest.mark.parametrize("name", ["rgb", "five", "grey", "adapted"])
@pytest.mark.parametrize("depth", [8, 16])
def test_every_convolution_gets_channels_last(folder: Path, name: str, depth: int) -> None:
    """Pixels as they are decoded, (N, H, W, C), are never put into another order on the way."""
    channels = {"rgb": 3, "five": 5, "grey": 1, "adapted": 2}[name]
    asked = Settings(
        layers="conv2_1,conv5_2:map", model="vgg11", weights=str(folder / f"{name}.safetensors"),
        channels=channels, depth=depth, device="cpu", precision="float32", size=32,  # type: ignore[arg-type] # 8 or 16
    )  # fmt: skip
    network, strides = Extractor(asked), []
    for module in network._network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_pre_hook(lambda _, given: strides.append(given[0].stride(1)))
    dtype = {8: torch.uint8, 16: torch.uint16}[depth]
    pixels = torch.arange(2 * 32 * 32 * channels).remainder(251).to(dtype)
    network(pixels.view(2, 32, 32, channels).permute(0, 3, 1, 2))
    assert strides == [1] * (8 + (name == "adapted"))


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_one_channel_are_called_channels_last(channels: int) -> None:
    """Where both orders are the same memory, strides say which; or a map would be copied."""
    images = noise(2, channels, 6, 5)
    found = channels_last(images)
    weight = noise(64, channels, 3, 3).contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, images)
    assert found.stride() == (30 * channels, 1, 5 * channels, channels)
    assert functional.conv2d(found.half(), weight.half(), padding=1).stride(1) == 1
    assert images.stride(1) == 30


def test_an_adapter_stands_in_front(folder: Path, model: torch.nn.Module) -> None:
    """A file with an adapter gives torchvision's features of what the adapter makes of images."""
    images = noise(2, 2, 32, 32)
    state = safetensors.torch.load_file(folder / "adapted.safetensors")
    adapted = functional.conv2d(images, state["adapter.weight"], state["adapter.bias"])
    assert_close(features(folder / "adapted.safetensors", images), expected(model, adapted))


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_a_new_adapter_changes_nothing(folder: Path, channels: int) -> None:
    """Before it learns, an adapter gives what rebuilt filters give."""
    images = noise(2, channels, 32, 32)
    path = folder / "rgb.safetensors"
    start = start_adapter(channels)
    adapted = functional.conv2d(images, start["adapter.weight"], start["adapter.bias"])
    assert_close(features(path, adapted), features(path, images))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"adapter.bias": None}, r"adapter\.weight is \[3, 2, 1, 1\], adapter\.bias missing"),
        ({"adapter.weight": (3, 2, 3, 3)}, r"is \[3, 2, 3, 3\], .* expected \[3, C, 1, 1\]"),
        ({"adapter.weight": (4, 2, 1, 1)}, r"is \[4, 2, 1, 1\]"),
    ],
)
def test_an_adapter_that_is_none_is_refused(
    folder: Path, tmp_path: Path, change: dict[str, tuple[int, ...] | None], message: str
) -> None:
    """An adapter of other shapes, or half of one, is named with what was expected."""
    state = safetensors.torch.load_file(folder / "adapted.safetensors")
    for name, shape in change.items():
        del state[name]
        if shape is not None:
            state[name] = torch.zeros(shape)
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=message):
        features(tmp_path / "w.safetensors", noise(1, 2, 32, 32))
    assert [p.stage for p in trace(weights=str(tmp_path / "w.safetensors"), model="vgg11").problems
            ] == ["adapter", "fc6"]  # fmt: skip


def test_an_adapter_is_not_put_before_a_fresh_layer(folder: Path) -> None:
    """Drawing anew the layer that an adapter was learnt for is refused."""
    with pytest.raises(WeightsError, match="have an adapter, learnt for the first layer"):
        features(folder / "adapted.safetensors", noise(1, 2, 32, 32), first_layer="kaiming")


@pytest.mark.skipif(not cpu_has_vnni(), reason="no CPU with VNNI")
def test_integers_refuse_an_adapter(folder: Path, tmp_path: Path) -> None:
    """Precision int8 has no place for an adapter, and says so."""
    state = safetensors.torch.load_file(folder / "adapted.safetensors")
    state["adapter.weight"] = torch.zeros(3, 3, 1, 1)
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    asked = Settings(layers="conv1_1", model="vgg11", weights=str(tmp_path / "w.safetensors"),
                     precision="int8", device="cpu")  # fmt: skip
    with pytest.raises(UsageError, match="int8 does not know the adapter"):
        Extractor(asked, activations={"conv1_1": 1.0})


def test_parameter_shapes_follow_the_channels() -> None:
    """Of all shapes, only the first weight's depends on the channels."""
    layers = needed_layers(parse_specs("fc8", "vgg11"), "vgg11")
    three, five = (parameter_shapes(layers, 1000, channels) for channels in (3, 5))
    assert five == {**three, FIRST: (64, 5, 3, 3)}


# --- what a cache and a weight file say


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grey")
    pixels = np.random.default_rng(0)
    for number in range(3):
        values = pixels.integers(0, 65536, (40, 40), dtype=np.uint16)
        Image.fromarray(values).save(folder / f"{number}.png")
    return folder


def small(**settings: Any) -> Settings:
    usual = {"layers": "conv1_1", "model": "vgg11", "weights": "random:0", "size": 32,
             "workers": 0, "device": "cpu", "precision": "float32"}  # fmt: skip
    return Settings(**{**usual, **settings})


def fingerprint_by_the_format(file: h5py.File, layer: str) -> str:
    """As docs/FORMAT.md describes it, for a file without any of the optional parts."""
    names = ("model", "precision", "weights_sha256")
    parts = {name: file.attrs[name].decode() for name in names}
    parts |= {"dtype": "float16", "layers": [layer]}
    parts["preprocess"] = json.loads(file.attrs["preprocess"])
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def test_a_fresh_first_layer_is_recorded_and_nothing_else(images: Path, tmp_path: Path) -> None:
    """`kaiming` is part of a cache's identity; the default leaves no mark."""
    plain, drawn = tmp_path / "plain.h5", tmp_path / "drawn.h5"
    extract(images, plain, small(channels=1))
    extract(images, drawn, small(channels=1, first_layer="kaiming"))
    with h5py.File(plain) as one, h5py.File(drawn) as other:
        assert "first_layer" not in one.attrs
        assert one.attrs["fingerprint"].decode() == fingerprint_by_the_format(one, "conv1_1")
        assert other.attrs["first_layer"] == b"kaiming"
        assert one.attrs["fingerprint"] != other.attrs["fingerprint"]
        values = (file["features/conv1_1"][:] for file in (one, other))
        assert not np.array_equal(*values)
    with pytest.raises(CacheMismatchError, match="first layer: file kaiming, requested sum"):
        extract(images, drawn, small(channels=1))
    assert extract(images, drawn, small(channels=1, first_layer="kaiming")).new_done == 0


def carrying(folder: Path, out: Path, **preprocess: Any) -> Path:
    """`grey` with metadata such as `adapt` writes."""
    state = safetensors.torch.load_file(folder / "grey.safetensors")
    metadata = {"vggfeat.model": "vgg11", "vggfeat.preprocess": json.dumps(preprocess)}
    safetensors.torch.save_file(state, out, metadata)
    return out


def test_weights_bring_their_settings_along(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What a file was trained with is taken over; what is given explicitly wins, with notice."""
    path = str(carrying(folder, tmp_path / "w.safetensors", size=64, crop="squash", depth=16,
                        mean="0.4", std="0.2", clip="1,99"))  # fmt: skip
    with caplog.at_level(logging.INFO, "vggfeat"):
        made = Settings.for_weights(path, layers="conv1_1", depth=8)
    assert (made.model, made.channels, made.size, made.crop) == ("vgg11", 1, 64, "squash")
    assert (made.mean, made.std, made.clip, made.depth) == ("0.4", "0.2", "1,99", 8)
    assert "trained with model vgg11, size 64, crop squash, mean 0.4" in caplog.text
    assert "trained with depth 16: other values are given" in caplog.text


def test_a_configuration_file_counts_as_given(folder: Path, tmp_path: Path) -> None:
    """Weights named in a configuration file are looked into, and its other values win."""
    path = carrying(folder, tmp_path / "w.safetensors", size=64, crop="squash")
    config = tmp_path / "c.toml"
    config.write_text(f'weights = "{path}"\nlayers = "conv1_1"\nsize = 96\n')
    made = make_settings(str(config), {})
    assert (made.model, made.crop, made.size) == ("vgg11", "squash", 96)


def test_a_size_of_ones_own_goes_with_its_own_resize(folder: Path, tmp_path: Path) -> None:
    """Neither another size nor another crop takes over the file's resize."""
    path = str(carrying(folder, tmp_path / "w.safetensors", size=64, resize=200, crop="center"))
    assert Settings.for_weights(path, layers="conv1_1").resize == 200
    assert Settings.for_weights(path, layers="conv1_1", size=224).preprocess().resize == 256
    assert Settings.for_weights(path, layers="conv1_1", crop="pad").resize is None


@pytest.mark.parametrize("name", ["grey.pth", "grey.safetensors"])
def test_channels_are_those_of_the_file(folder: Path, name: str) -> None:
    """Of a file that says nothing, the first layer says how many channels it takes."""
    assert Settings.for_weights(str(folder / name), layers="conv1_1", model="vgg11").channels == 1


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"vggfeat.model": "vgg99"}, "were trained with a model 'vgg99', which this version"),
        ({"vggfeat.model": "vgg11", "vggfeat.preprocess": '{"gamma": 2}'}, "with settings gamma"),
        ({"vggfeat.model": "vgg11", "vggfeat.preprocess": "{"}, "is not JSON"),
    ],
)
def test_what_a_newer_version_wrote_is_refused(
    tmp_path: Path, metadata: dict[str, str], message: str
) -> None:
    """Metadata that is not understood is an error and is not skipped."""
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file({"x": torch.zeros(1)}, path, metadata)
    with pytest.raises(WeightsError, match=message):
        Settings.for_weights(str(path), layers="conv1_1")


def test_other_weights_say_nothing(folder: Path, tmp_path: Path) -> None:
    """Ordinary, missing, damaged and random weights leave the usual settings."""
    (tmp_path / "damaged.safetensors").write_bytes(b"\x01\0\0\0")
    for name in (folder / "rgb.safetensors", tmp_path / "gone.pth",
                 tmp_path / "damaged.safetensors", "random:0", "imagenet"):  # fmt: skip
        plain = Settings(layers="conv1_1", weights=str(name))
        assert Settings.for_weights(str(name), layers="conv1_1") == plain


def test_trace_shows_adapter_and_first_layer(folder: Path) -> None:
    """A trace begins with the file's channels, and counts the numbers in what takes them."""
    adapted = trace(weights=str(folder / "adapted.safetensors"), model="vgg11")
    stages = {stage.name: stage for stage in adapted.stages}
    assert stages["tensor"].shape == (1, 2, 224, 224)
    assert (stages["adapter"].shape, stages["adapter"].params) == ((1, 3, 224, 224), 9)
    assert stages["conv1_1"].params == 64 * (27 + 1)
    assert any("takes images of --channels 2 to 3" in note for note in adapted.notes)
    five = trace(weights=str(folder / "five.safetensors"), model="vgg11")
    assert five.stages[0].shape == (1, 5, 224, 224)
    assert five.stages[1].params == 64 * (45 + 1)
    assert [problem.stage for problem in five.problems] == ["fc6"]  # convolutions only
