"""`vggfeat.Extractor`: images of any kind in, features out; `extract` without files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from vggfeat.core.isolation import isolated
from vggfeat.errors import DecodeError, UsageError
from vggfeat.images.transform import ImageLike, ImageTransform, is_one_image
from vggfeat.network.extractor import TensorExtractor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from vggfeat.core.settings import Settings
    from vggfeat.network.weights import Weights

ImagesLike: TypeAlias = "ImageLike | Sequence[ImageLike]"
"""One image, or several of any kinds and sizes; a tensor (N, C, H, W) or array (N, H, W, C)."""

_IMAGES_PER_PASS = 16
_AXES = 3  # of one image


class Extractor(TensorExtractor):
    """Images in, named features out.

        extractor = vggfeat.Extractor(vggfeat.Settings(layers="conv5_3,fc7"))
        features = extractor(Image.open("a.jpg"))      # {"conv5_3": (1, 512), "fc7": (1, 4096)}
        features = extractor(["a.jpg", array, image])  # {"conv5_3": (3, 512), "fc7": (3, 4096)}

    Args:
        settings: layers, model, weights, precision, device, preprocessing, and the images of one
            pass in `batch_size`.
        weights: weights already found; None looks for `settings.weights`.
        activations: for precision int8, what `calibrate` found.

    Attributes:
        transform: the preprocessing by itself, one image in, its pixels (C, H, W) out; see
            `ImageTransform`. It can be sent to the workers of a DataLoader.

    Raises:
        UsageError: precision int8 without activations, or several devices.
        WeightsError: the weights are not found, could not be downloaded, or do not fit.
        DeviceError: the device does not exist, or does not support the precision.
    """

    def __init__(
        self,
        settings: Settings,
        weights: Weights | None = None,
        activations: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(settings, weights, activations)
        self.transform = ImageTransform(self.preprocess, settings.max_pixels)

    @isolated()
    def __call__(self, images: ImagesLike, *, normalized: bool = False) -> dict[str, Tensor]:
        """Return the features of images.

        A list is computed in batches of `settings.batch_size` (`auto`: 16), with `crop="none"` one
        by one. A map has the same bits whatever its batch and its place in it; a vector
        (`fc6` to `prob`) is the cached row to the bit in a batch of the cache's size, in the slot
        it has there, and to about 1e-6 in another.

        Args:
            images: what `transform` takes, one or a list: paths, bytes of files, PIL images of any
                mode, arrays (H, W) or (H, W, C) of any sizes; they are preprocessed as `extract`
                does. An array (N, H, W, C) is N images. A tensor, (N, C, H, W), (C, H, W) or a list
                of these, is taken as preprocessed: uint8 or uint16 pixels of the size that the
                settings give, such as `transform` returns, which are normalised as the weights want
                it; or floating point of any size, (pixel - mean) / std already (not with int8).
            normalized: floating-point tensors are normalised even though none of their values is
                negative. Without it those that look like plain pixels, of 0 to 1 or 0 to 255, are
                refused: their features would be wrong, and look right. Zeros alone are taken.

        Returns:
            canonical spec, or with `settings.fuse` its method → float32 (N, …) on this
            extractor's device; N is 1 for one image. No images have no rows, of the right shape.

        Raises:
            UsageError: nothing of these kinds; tensors of another size or type, NaN or infinite
                values, or floating-point tensors that look like pixels.
            DecodeError: an image is damaged, too large, or of other channels; of a list it says
                which.
            DeviceError: the device has not enough memory for one image.
        """
        if isinstance(images, Tensor):
            alone = images.dim() == _AXES and images.shape[0] == self.preprocess.channels
            return super().__call__(images[None] if alone else images, normalized=normalized)
        given: Any = images
        if is_one_image(given) or not isinstance(given, (Sequence, np.ndarray)):
            return super().__call__(self.transform(given)[None], normalized=normalized)
        parts = [
            super(Extractor, self).__call__(batch, normalized=normalized)
            for batch in self._batches(given)
        ]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _batches(self, images: Sequence[ImageLike] | NDArray[Any]) -> Iterator[Tensor]:
        """Yield tensors (n, C, H, W); one of no images where there are none."""
        size = self.preprocess.size
        if not len(images):
            yield torch.empty((0, self.preprocess.channels, size, size), dtype=torch.uint8)
        auto = self.settings.batch_size == "auto"
        step = _IMAGES_PER_PASS if auto else int(self.settings.batch_size)
        step = 1 if self.preprocess.crop == "none" else step
        for start in range(0, len(images), step):
            places = range(start, min(start + step, len(images)))
            yield _stacked([self._tensor(images[place], place) for place in places], start)

    def _tensor(self, image: ImageLike, place: int) -> Tensor:
        """Return one image of a list, (C, H, W); a tensor as it is."""
        if isinstance(image, Tensor):
            if image.dim() != _AXES:
                raise UsageError(
                    f"images[{place}] is a tensor of shape {list(image.shape)}; expected (C, H, W)"
                )
            return image
        try:
            return self.transform(image)
        except DecodeError as error:
            raise DecodeError(f"images[{place}]: {error}") from error
        except UsageError as error:
            raise UsageError(f"images[{place}]: {error}") from error


def _stacked(tensors: list[Tensor], first: int) -> Tensor:
    """Return one batch of tensors (C, H, W), which must have one shape and type."""
    kinds = [(list(tensor.shape), tensor.dtype, tensor.device) for tensor in tensors]
    for place, kind in enumerate(kinds, first):
        if kind != kinds[0]:
            shown = [f"{one[1]} {one[0]} on {one[2]}" for one in (kinds[0], kind)]
            raise UsageError(
                f"images[{place}] is {shown[1]}, and images[{first}] {shown[0]}; expected tensors "
                "of one kind in a list: pass pixels through Extractor.transform first"
            )
    return torch.stack(tensors)
