"""What features are for: real weights find a real photograph again after it has been altered."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from vggfeat import Extractor
from vggfeat.core.records import DecodedBatch
from vggfeat.core.settings import Settings
from vggfeat.images.decode import decode

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    Features = NDArray[np.float32]

pytestmark = pytest.mark.slow

BATCH = 12
QUERIES = range(0, 60, 5)


def mirrored(image: Image.Image) -> Image.Image:
    return ImageOps.mirror(image)


def cropped(image: Image.Image) -> Image.Image:
    """The middle 70 % of either side, at the old size."""
    width, height = image.size
    box = (0.15 * width, 0.15 * height, 0.85 * width, 0.85 * height)
    return image.resize(image.size, Image.Resampling.BICUBIC, box=box)


def recoloured(image: Image.Image) -> Image.Image:
    """Red brighter by a fifth, green darker by a tenth, blue by three tenths."""
    gains = (1.2, 0.9, 0.7)
    bands = [
        band.point([min(255, round(gain * value)) for value in range(256)])
        for band, gain in zip(image.split(), gains, strict=True)
    ]
    return Image.merge("RGB", bands)


@pytest.fixture(scope="module")
def network(test_data: Path) -> Extractor:
    weights = test_data / "weights" / "vgg16_features.safetensors"
    return Extractor(
        Settings(
            layers="conv5_3",
            model="vgg16",
            weights=str(weights),
            transform="features",
            dtype="float32",
            precision="float32",
            device="cpu",
        )
    )


@pytest.fixture(scope="module")
def photos(test_data: Path) -> list[Image.Image]:
    paths = sorted((test_data / "photos").iterdir())
    assert len(paths) == 60
    return [Image.open(path).convert("RGB") for path in paths]


def features_of(network: Extractor, images: list[Image.Image]) -> Features:
    """(N, 512), through the package's own decoding, a batch at a time."""
    rows = []
    for start in range(0, len(images), BATCH):
        decoded = [as_decoded(network, image) for image in images[start : start + BATCH]]
        places = np.arange(len(decoded), dtype=np.int64)
        pixels = torch.from_numpy(np.stack(decoded))
        batch = DecodedBatch(pixels, places, places, np.zeros((len(places), 32), np.uint8), (), 0.0)
        rows.append(network.launch(batch).collect().features["conv5_3"])
    return np.concatenate(rows).astype(np.float32)


def as_decoded(network: Extractor, image: Image.Image) -> NDArray[np.uint8]:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=90)
    stream.seek(0)
    return decode(stream, network.preprocess, 10**8)


@pytest.fixture(scope="module")
def database(network: Extractor, photos: list[Image.Image]) -> Features:
    return features_of(network, photos)


def unit(rows: Features) -> NDArray[np.float64]:
    wide = rows.astype(np.float64)
    lengths: NDArray[np.float64] = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.divide(wide, lengths)


@pytest.mark.parametrize("alter", [mirrored, cropped, recoloured])
def test_an_altered_photograph_finds_its_original(
    alter: Callable[[Image.Image], Image.Image],
    network: Extractor,
    photos: list[Image.Image],
    database: Features,
) -> None:
    """Mirrored, cropped or recoloured, each of twelve photographs is nearest to itself among 60."""
    queries = features_of(network, [alter(photos[index]) for index in QUERIES])
    cosines = unit(queries) @ unit(database).T  # (12, 60)
    own = cosines[np.arange(len(QUERIES)), list(QUERIES)]
    assert own.max() < 1 - 1e-5, "the corruption changed nothing"
    assert cosines.argmax(1).tolist() == list(QUERIES)


def test_different_photographs_are_told_apart(database: Features) -> None:
    """No two of the 60 photographs are taken for one: cosines stay well below 1."""
    cosines = unit(database) @ unit(database).T
    np.fill_diagonal(cosines, -1)
    assert cosines.max() < 0.95


def test_storing_as_float16_costs_nothing(
    test_data: Path, photos: list[Image.Image], database: Features
) -> None:
    """Features stored as float16 keep cosine 0.999999 to float32, and none is clamped."""
    network = Extractor(
        Settings(
            layers="conv5_3",
            model="vgg16",
            weights=str(test_data / "weights" / "vgg16_features.safetensors"),
            transform="features",
            dtype="float16",
            precision="float32",
            device="cpu",
        )
    )
    stored = features_of(network, photos[:BATCH])
    cosines = (unit(stored) * unit(database[:BATCH])).sum(1)
    assert not np.array_equal(stored, database[:BATCH])
    assert cosines.min() >= 0.999999
