"""Tensors that an `Extractor` would take for something else are refused, and say what they are."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torchvision.transforms import functional

from vggfeat import Extractor, Settings, calibrate
from vggfeat.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor


def settings(**more: Any) -> Settings:
    chosen = {"layers": "conv2_1", "model": "vgg11", "weights": "random:0", "size": 64}
    return Settings(**{**chosen, "device": "cpu", "precision": "float32", **more})


@pytest.fixture(scope="module")
def network() -> Extractor:
    return Extractor(settings())


@pytest.fixture(scope="module")
def photo(test_data: Path) -> Image.Image:
    path = min((test_data / "photos").iterdir())
    return Image.open(path).convert("RGB")


@pytest.fixture(scope="module")
def pixels(photo: Image.Image) -> Tensor:
    """What torchvision's own transform makes of the photo before it is normalised."""
    small = functional.center_crop(functional.resize(photo, [73]), [64])
    return torch.from_numpy(np.array(small)).permute(2, 0, 1)[None]


@pytest.fixture(scope="module")
def normalised(pixels: Tensor) -> Tensor:
    weights = torchvision.models.VGG11_Weights.IMAGENET1K_V1
    return weights.transforms(crop_size=64, resize_size=64)(pixels)  # type: ignore[no-any-return] # torchvision has no types


REFUSED: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "floats of 0 to 1": (
        lambda x: x / 255,
        (
            r"float images of [\d.e-]+ to [\d.]+ look like pixels of 0 to 1; expected normalised "
            r"ones, \(image - mean\) / std: pass uint8 pixels, or normalise them and pass "
            "normalized=True"
        ),
    ),
    "half precision": (lambda x: (x / 255).half(), "look like pixels of 0 to 1"),
    "float64": (lambda x: x.double() / 255, "look like pixels of 0 to 1"),
    "floats of 0 to 255": (
        lambda x: x.float(),
        r"look like pixels of 0 to 255; expected \(image / 255 - mean\) / std, .* 2\.64 at most",
    ),
    "not resized": (
        lambda x: functional.resize(x, [100, 80]),
        (
            r"images are 100 x 80 pixels; expected 64 x 64, .*resize them first, or have "
            r"Settings\(size=80, crop=\"none\"\)"
        ),
    ),
    "too large": (
        lambda x: functional.resize(x, [100, 100]),
        r"images are 100 x 100 pixels; expected 64 x 64, .*Settings\(size=100\)",
    ),
    "too small": (
        lambda x: functional.resize(x, [1, 9]) / 255 - 1,
        "images are 1 x 9; expected 2 x 2 at least, .* request earlier layers",
    ),
    "no height": (lambda x: x[:, :, :0] / 255 - 1, "images are 0 x 64; expected 2 x 2 at least"),
    "float8": (
        lambda x: x.to(torch.float8_e4m3fn),
        "float8_e4m3fn; expected uint8 or uint16 .*float16, bfloat16, float32 or float64",
    ),
    "infinite": (
        lambda x: torch.where(x > 250, torch.inf, x / 255 - 0.5),
        r"hold -0\.[\d]+ to inf, .*finite",
    ),
    "beyond float32": (
        lambda x: x.double() * -1e300,
        r"hold -[\d.]+e\+302 to -[\d.]+e\+301, .*float32",
    ),
    "sparse": (lambda x: x.to_sparse(), r"sparse_coo tensor; .*dense: images.to_dense\(\)"),
    "meta": (lambda x: x.to("meta"), "on device meta, without values"),
    "int64": (lambda x: x.long(), r"torch.int64; expected uint8 or uint16 .*to\(torch.uint8\)"),
    "int8": (lambda x: (x.int() - 128).to(torch.int8), "torch.int8; expected uint8"),
    "bool": (lambda x: x > 128, "torch.bool; expected uint8"),
    "complex": (lambda x: x + 0j, "torch.complex64; expected uint8"),
    "channels last": (lambda x: x.permute(0, 2, 3, 1), r"images.permute\(0, 3, 1, 2\)"),
    "another image": (lambda x: x[0, :2], r"shape \[2, 64, 64\]; expected \(N, 3, H, W\)$"),
    "NaN": (lambda x: torch.where(x > 250, torch.nan, x / 255 - 0.5), "hold NaN"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_input_is_refused(kind: str, network: Extractor, pixels: Tensor) -> None:
    """Each says what was expected, what was found and what to do."""
    change, message = REFUSED[kind]
    with pytest.raises(UsageError, match=message) as error:
        network(change(pixels))
    assert "\n" not in str(error.value)


def test_pixels_and_normalised_floats_agree(
    network: Extractor, pixels: Tensor, normalised: Tensor
) -> None:
    """uint8 pixels and torchvision's normalised floats of them have the same features."""
    expected = network(normalised)["conv2_1"]
    for images in (pixels, normalised.double()):
        torch.testing.assert_close(network(images)["conv2_1"], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(network(normalised, normalized=True)["conv2_1"], expected)


def test_normalised_means_normalised(network: Extractor, pixels: Tensor) -> None:
    """With normalized=True floats of 0 to 1 are the network's input as they are."""
    floats = pixels / 255
    floats[0, 0, 0, 0] = 0
    below = floats.clone()
    below[0, 0, 0, 0] = -1e-30  # which shows that they are no pixels
    found = network(floats, normalized=True)["conv2_1"]
    torch.testing.assert_close(found, network(below)["conv2_1"])
    with pytest.raises(ValueError, match="normalized=True is for float images"):
        network(pixels, normalized=True)


def test_a_white_image_is_no_pixels(network: Extractor) -> None:
    """A normalised image without a negative value is taken, as far as white goes."""
    weights = torchvision.models.VGG11_Weights.IMAGENET1K_V1
    white = torch.full((1, 3, 64, 64), 255, dtype=torch.uint8)
    floats = weights.transforms(crop_size=64, resize_size=64)(white)
    assert float(floats.min()) > 1
    torch.testing.assert_close(network(floats)["conv2_1"], network(white)["conv2_1"])


def test_a_trial_batch_of_zeros_is_taken(network: Extractor) -> None:
    """Zeros are images of the mean colour once normalised, and no pixels that are all black."""
    assert torch.equal(
        network(torch.zeros(1, 3, 64, 64))["conv2_1"],
        network(torch.zeros(1, 3, 64, 64), normalized=True)["conv2_1"],
    )


@pytest.mark.parametrize("layers", ["conv2_1,conv1_1.pre:map", "pool1:gem,pool1:spp,pool1:rmac"])
def test_no_images_have_no_rows(layers: str, pixels: Tensor) -> None:
    """An empty batch gives for each layer what a batch of one gives without its row."""
    network = Extractor(settings(layers=layers))
    for images in (pixels, pixels / 255 - 0.5):
        right = {name: rows[:0] for name, rows in network(images).items()}
        found = network(images[:0])
        assert list(found) == list(right)
        for name, rows in right.items():
            assert found[name].shape == rows.shape
            assert found[name].dtype == rows.dtype


def test_whole_images_have_one_side_of_the_size(pixels: Tensor) -> None:
    """Without a crop the shorter side is that of the settings, the longer one any."""
    whole = Extractor(settings(crop="none"))
    wide = functional.resize(pixels, [64, 100])
    assert whole(wide)["conv2_1"].shape == (1, 128)
    message = re.escape("images are 80 x 100 pixels; expected a shorter side of 64")
    with pytest.raises(ValueError, match=message):
        whole(functional.resize(pixels, [80, 100]))


def test_calibration_refuses_them_too(pixels: Tensor) -> None:
    """Activations are found on images of the size that a run has."""
    asked = settings(precision="int8")
    with pytest.raises(ValueError, match="100 x 100 pixels; expected 64 x 64"):
        calibrate(asked, functional.resize(pixels, [100, 100]))
    nothing: Any = None
    for images, found in ((pixels[:0], r"\[0, 3, 64, 64\]"), (nothing, "NoneType")):
        with pytest.raises(UsageError, match=f"calibrate on are {found}; expected"):
            calibrate(asked, images)
