"""Caffe's weights under torchvision's names are known by their first filters, and only they."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from command_line import assert_one_line, vggfeat
from PIL import Image
from torchvision.models.vgg import cfgs, make_layers

import vggfeat as library
from vggfeat import Extractor
from vggfeat.core.held_weights import HeldWeights
from vggfeat.core.preprocessing import NORMALISATIONS
from vggfeat.core.settings import Settings
from vggfeat.core.vgg_layers import layer_table, parameter_shapes
from vggfeat.errors import WeightsError
from vggfeat.network.caffe import caffe_order, colour_order, filters_of, is_other_scale
from vggfeat.network.checkpoint_reader import open_checkpoint
from vggfeat.network.weights import find_weights
from vggfeat.network.weights_in_memory import open_state

if TYPE_CHECKING:
    from pathlib import Path

FIRST = "features.0.weight"
LAYERS = "conv3_3,conv5_3"


@pytest.fixture(scope="module")
def real(test_data: Path) -> Path:
    return test_data / "weights" / "vgg16_features.safetensors"


@pytest.fixture(scope="module")
def bgr(real: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network as Caffe has it, for images in BGR."""
    state = safetensors.torch.load_file(real)
    state[FIRST] = state[FIRST].flip(1).contiguous()
    path = tmp_path_factory.mktemp("bgr") / "caffe.safetensors"
    safetensors.torch.save_file(state, path)
    return path


@pytest.fixture(scope="module")
def first(real: Path) -> np.ndarray:
    return safetensors.torch.load_file(real)[FIRST].float().numpy()


@pytest.fixture(scope="module")
def pictures(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    photos = sorted((test_data / "photos").iterdir())[:3]
    for photo in photos:
        Image.open(photo).convert("RGB").resize((64, 64)).save(folder / f"{photo.stem}.png")
    return folder


def expected_features(real: Path, pictures: Path) -> torch.Tensor:
    """conv5_3 by torchvision's own VGG16 with the weights' own transform."""
    state = {name: value.float() for name, value in safetensors.torch.load_file(real).items()}
    network = make_layers(cfgs["D"])[:30].eval()
    network.load_state_dict({name.removeprefix("features."): v for name, v in state.items()
                             if int(name.split(".")[1]) < 30})  # fmt: skip
    images = [np.asarray(Image.open(path)) for path in sorted(pictures.iterdir())]
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    transform = torchvision.models.VGG16_Weights.IMAGENET1K_FEATURES.transforms()
    x = torchvision.transforms.functional.normalize(x, transform.mean, transform.std)
    with torch.no_grad():
        found: torch.Tensor = network(x).mean((2, 3))
    return found


def test_a_file_gives_what_the_name_features_gives(real: Path, pictures: Path, tmp_path: Path,
                                                   bgr: Path) -> None:  # fmt: skip
    """Named as a file, in either order of colours, they give torchvision's own features."""
    expected = expected_features(real, pictures)
    for path, transform in ((real, "features"), (bgr, "caffe")):
        done = vggfeat("extract", pictures, "--weights", path, "--model", "vgg16", "--layers",
                       "conv5_3", "--size", "64", "--crop", "squash", "--device", "cpu", "--dtype",
                       "float32", "--precision", "float32", "--out", f"{transform}.h5",
                       cwd=tmp_path)  # fmt: skip
        assert done.returncode == 0, done.stderr
        with h5py.File(tmp_path / f"{transform}.h5") as file:
            found = torch.from_numpy(file["features/conv5_3"][:])
            recorded = json.loads(file.attrs["preprocess"])
        own = NORMALISATIONS[transform]
        assert (tuple(recorded["mean"]), tuple(recorded["std"])) == (own.mean, own.std)
        cosine = torch.cosine_similarity(found, expected).min()
        # Caffe's mean is another one by less than a grey level, which features hardly show.
        assert cosine > (0.99999 if transform == "features" else 0.999)
        if transform == "features":
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_settings_that_have_not_looked_are_refused(real: Path) -> None:
    """From Python, settings made without looking into the file are one error with the remedy."""
    settings = Settings(layers="conv1_1", model="vgg16", weights=str(real), device="cpu")
    with pytest.raises(WeightsError, match=r"transform features, .*give --transform features"):
        Extractor(settings)
    Extractor(Settings(layers="conv1_1", model="vgg16", weights=str(real), device="cpu",
                       transform="features"))  # fmt: skip


def test_auto_is_as_good_as_nothing(real: Path) -> None:
    """Given explicitly, auto still is what the weights want; another one wins."""
    for given, got in (("auto", "features"), ("imagenet", "imagenet"), ("features", "features")):
        found = Settings.for_weights(str(real), layers="conv1_1", model="vgg16", transform=given)
        assert found.transform == got


def test_another_transform_is_a_warning(real: Path, pictures: Path, tmp_path: Path) -> None:
    """Who insists on ImageNet's mean and deviation has it, with a warning."""
    done = vggfeat("extract", pictures, "--weights", real, "--model", "vgg16", "--layers",
                   "conv1_1", "--transform", "imagenet", "--device", "cpu", "--out", "f.h5",
                   cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "go with --transform features, and imagenet is given" in done.stderr


def test_nets_tuned_from_them_are_known(first: np.ndarray) -> None:
    """Fine-tuning moves the filters a little, and they are known all the same; the order too."""
    noise = np.random.default_rng(0).normal(0, 0.02, first.shape).astype(np.float32)
    assert colour_order(first) == colour_order(first + noise) == "rgb"
    assert colour_order(first[:, ::-1]) == colour_order((first + noise)[:, ::-1]) == "bgr"


def test_other_first_layers_are_not_taken_for_them(first: np.ndarray) -> None:
    """Drawn anew, summed to grey, of other channels or sizes, blank or broken: none is Caffe's."""
    for seed in range(20):
        torch.manual_seed(seed)
        drawn = torch.nn.init.kaiming_normal_(torch.empty(64, 3, 3, 3), mode="fan_out")
        assert colour_order(drawn.numpy()) == ""
    grey = first.sum(1, keepdims=True)
    others = [grey, grey.repeat(3, 1) / 3, first[::-1], first.mean(0, keepdims=True).repeat(64, 0),
              np.concatenate([first, first], 1), first[:32], np.zeros_like(first), -first,
              np.full_like(first, np.nan), first[:, :, :2], first[:, [1, 0, 2]]]  # fmt: skip
    assert [colour_order(other) for other in others] == [""] * len(others)


def test_random_weights_and_adapted_files_want_nothing(tmp_path: Path) -> None:
    """An adapter in front and a first layer for one channel leave the transform alone."""
    state = make_layers(cfgs["A"])[:3].state_dict()
    plain = {f"features.{name}": value for name, value in state.items()}
    files = {
        "plain": plain,
        "grey": {**plain, FIRST: plain[FIRST].sum(1, keepdim=True)},
        "adapted": {**plain, "adapter.weight": torch.ones(3, 2, 1, 1), "adapter.bias":
                    torch.zeros(3)},
    }  # fmt: skip
    for name, tensors in files.items():
        path = tmp_path / f"{name}.safetensors"
        safetensors.torch.save_file(tensors, path)
        with open_checkpoint(str(path)) as file:
            assert caffe_order(file) == ""
        assert Settings.for_weights(str(path), layers="conv1_1", model="vgg11").transform == "auto"
        assert find_weights(str(path), "vgg11").warning is None


def test_names_of_a_conversion_with_other_values_are_a_warning(tmp_path: Path) -> None:
    """Weights named as if they came from Caffe, but with other filters, are said to be doubtful."""
    state = {
        f"features.{name}": value for name, value in make_layers(cfgs["A"]).state_dict().items()
    }
    for name, shape in parameter_shapes(layer_table("vgg11")[-4:], 10).items():
        state[name] = torch.zeros(1).expand(shape)
    moved = {"classifier.0": "classifier.1", "classifier.3": "classifier.4"}
    renamed = {f"{moved.get(n.rpartition('.')[0], n.rpartition('.')[0])}.{n.rpartition('.')[2]}": v
               for n, v in state.items()}  # fmt: skip
    torch.save(renamed, tmp_path / "w.pth")
    warning = find_weights(str(tmp_path / "w.pth"), "vgg11").warning
    assert warning is not None
    assert "have the names of weights converted from Caffe" in warning


def test_unknown_transform() -> None:
    """The choices are told."""
    with pytest.raises(ValueError, match="expected one of auto, imagenet, features, caffe"):
        Settings(layers="conv1_1", transform="torch")  # type: ignore[arg-type]


def test_usage(tmp_path: Path) -> None:
    """A weight file that is not there is named, whatever its suffix."""
    for name in ("w.h5", "w.keras", "w.ckpt", "w.pth.tar", "w.bin"):
        assert_one_line(vggfeat("trace", "--weights", name, cwd=tmp_path), 3, "not found")


def other_formats(first: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same filters as a file may hold them: of half the bits, in another order in memory."""
    return {
        "bfloat16": first.bfloat16(),
        "float64": first.double(),
        "channels last": first.float().to(memory_format=torch.channels_last),
        "a part of more": torch.cat([torch.zeros(3, *first.shape[1:]), first.float()])[3:],
    }


@pytest.mark.parametrize("name", ["bfloat16", "float64", "channels last", "a part of more"])
def test_their_format_does_not_hide_them(real: Path, tmp_path: Path, name: str) -> None:
    """Whatever type and strides the first layer has, its values decide."""
    state = {k: v.float() for k, v in safetensors.torch.load_file(real).items()}
    state[FIRST] = other_formats(state[FIRST])[name]
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    with open_checkpoint(str(path)) as file:
        array = file.array(FIRST)
    np.testing.assert_array_equal(array, state[FIRST].float().numpy())
    found = Settings.for_weights(str(path), layers="conv1_1", model="vgg16")
    assert found.transform == "features"


@pytest.fixture(scope="module")
def scaled(real: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network for what torchvision's transform gives: filters times 255 deviations."""
    state = {k: v.float() for k, v in safetensors.torch.load_file(real).items()}
    std = torch.tensor(NORMALISATIONS["imagenet"].std).view(1, 3, 1, 1)
    state[FIRST] *= 255 * std
    path = tmp_path_factory.mktemp("scaled") / "scaled.safetensors"
    safetensors.torch.save_file(state, path)
    return path


def features_of(path: Path, pictures: Path, **chosen: Any) -> torch.Tensor:
    settings = Settings.for_weights(
        str(path), layers="conv5_3", model="vgg16", size=64, crop="squash", device="cpu",
        precision="float32", **chosen,
    )  # fmt: skip
    return Extractor(settings)(sorted(map(str, pictures.iterdir())))["conv5_3"]


def test_filters_scaled_for_imagenets_deviation_take_its_transform(
    real: Path, scaled: Path, pictures: Path
) -> None:
    """The length of Caffe's filters says that their network takes torchvision's pixels."""
    assert Settings.for_weights(str(scaled), layers="conv1_1", model="vgg16").transform == "auto"
    found, expected = features_of(scaled, pictures), expected_features(real, pictures)
    assert torch.cosine_similarity(found, expected).min() > 0.999  # another mean by half a level


MISMATCHES: dict[str, tuple[str, dict[str, Any], str]] = {
    "ImageNet's deviation by hand": ("real", {"std": (0.229, 0.224, 0.225)}, "0.0039.*by 0.23:"),
    "a measured deviation": ("real", {"mean": 0.4, "std": 0.2}, "leave --mean and --std out"),
    "Caffe's for torchvision's": ("scaled", {"transform": "features"}, "leave --transform out"),
    "with its own deviation": ("scaled", {"mean": 0.4, "std": 0.2}, ""),
    "with nothing": ("scaled", {}, ""),
    "the right one": ("real", {"transform": "features"}, ""),
    "the right one by hand": ("real", {"mean": 0.5, "std": 1 / 255}, ""),
}


@pytest.mark.parametrize("case", MISMATCHES)
def test_pixels_of_another_scale_are_warned_of(
    case: str, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    """Pixels 57 times too small or too large give features that look right: a warning says so."""
    which, chosen, told = MISMATCHES[case]
    settings = Settings.for_weights(
        str(request.getfixturevalue(which)), layers="conv1_1", model="vgg16", device="cpu", **chosen
    )
    caution = Extractor(settings).caution
    warnings = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert [caution] * bool(told) == warnings
    assert re.search(told, caution) if told else not caution


def test_a_cache_keeps_the_warning(real: Path, pictures: Path, tmp_path: Path) -> None:
    """Who reads features of wrongly scaled pixels later is warned too."""
    settings = Settings.for_weights(str(real), layers="conv1_1", model="vgg16", device="cpu",
                                    workers=0, size=32, mean=0.4, std=0.2)  # fmt: skip
    summary = library.extract(pictures, tmp_path / "f.h5", settings)
    assert "divided by 0.2: features are not" in summary.warning
    assert library.open(tmp_path / "f.h5").header.provenance.warning == summary.warning


def test_published_files_are_known_by_their_digest() -> None:
    """torchvision's own training goes with ImageNet's deviation, whatever its filters are."""
    file = make_layers(cfgs["A"])[:3].state_dict()
    state = {f"features.{name}": value for name, value in file.items()}
    known = filters_of(open_state(HeldWeights(state)), "397923af" + "0" * 56)
    assert (known.order, known.transform) == ("", "")
    assert is_other_scale(known.deviation, 1 / 255)
    assert not is_other_scale(known.deviation, 0.25)
