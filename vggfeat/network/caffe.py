"""Recognize Caffe's VGG16 under torchvision's names by the filters of its conv1_1.

Simonyan and Zisserman's weights take pixels of 0 to 255 minus a mean. Under torchvision's names
nothing in a file states that, and with ImageNet's deviation they give features that look right and
are wrong. Fine-tuning hardly changes the first filters; networks trained from another start have
others.

Some conversions multiply these filters by 255 times ImageNet's deviation, so that the network takes
what torchvision's transform gives. The direction of the filters says whose they are, their length
what they take: a pixel divided by `d` goes with filters of `255 d` times the published length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from vggfeat.core.vgg_layers import COLOURS, VGG

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from vggfeat.network.checkpoint_reader import WeightFile
    from vggfeat.network.weights_in_memory import StateDict

Order = Literal["rgb", "bgr", ""]

# The filters of the published weights whose colours differ most: red, green, blue, 3 x 3 each.
_FILTERS: Mapping[int, tuple[float, ...]] = {
    5: (
        -0.048, -0.086, -0.043, -0.072, -0.103, -0.082, -0.046, -0.056, -0.046,
        -0.192, -0.224, -0.187, -0.210, -0.236, -0.222, -0.193, -0.197, -0.194,
        0.230, 0.239, 0.232, 0.251, 0.268, 0.237, 0.225, 0.260, 0.220,
    ),
    59: (
        0.087, 0.125, 0.086, 0.150, 0.195, 0.150, 0.112, 0.154, 0.110,
        0.133, 0.143, 0.134, 0.160, 0.176, 0.162, 0.142, 0.154, 0.142,
        -0.203, -0.245, -0.193, -0.247, -0.287, -0.236, -0.214, -0.256, -0.206,
    ),
    12: (
        -0.219, -0.197, -0.210, -0.189, -0.145, -0.174, -0.213, -0.193, -0.206,
        0.292, 0.348, 0.307, 0.358, 0.438, 0.379, 0.301, 0.354, 0.314,
        -0.156, -0.144, -0.148, -0.141, -0.106, -0.124, -0.171, -0.159, -0.158,
    ),
    8: (
        0.164, 0.169, 0.169, 0.197, 0.205, 0.193, 0.172, 0.220, 0.169,
        -0.275, -0.319, -0.275, -0.293, -0.335, -0.300, -0.282, -0.281, -0.288,
        0.130, 0.096, 0.126, 0.111, 0.077, 0.099, 0.106, 0.113, 0.094,
    ),
}  # fmt: skip
_ALIKE = 0.9  # cosine; that of unrelated filters is below 0.6
_OFF = 4.0
"""A deviation that differs by this factor is another scale: 1/255 and ImageNet's differ by 57."""
CAFFE_TRANSFORMS: Mapping[str, str] = {"rgb": "features", "bgr": "caffe"}
"""Preprocessing for weights that take colours in this order."""

JOHNSONS = ("00b39a1b", "d01eb7cb")
"""Beginnings of the SHA-256 of vgg16-00b39a1b.pth and vgg19-d01eb7cb.pth, which take BGR."""
_IMAGENETS = tuple(
    file.rpartition("-")[2].removesuffix(".pth")
    for (name, _), file in VGG.published.items()
    if name == "imagenet"
)
FEATURES_ORDER = "88682ab5"
"""Likewise of torchvision's IMAGENET1K_FEATURES, whose classifier holds no values."""


@dataclass(frozen=True, slots=True)
class FirstFilters:
    """What the filters of a first layer say of its input.

    Attributes:
        order: colour order of Caffe's filters; empty for others.
        deviation: by which pixels of 0 to 1 are to be divided; 0 where it is not known.
    """

    order: Order = ""
    deviation: float = 0.0

    @property
    def transform(self) -> str:
        """Preprocessing that goes with them; empty if only its deviation is known, or nothing."""
        if not self.order or is_other_scale(self.deviation, 1 / 255):
            return ""
        return CAFFE_TRANSFORMS[self.order]


def is_other_scale(one: float, other: float) -> bool:
    """Return whether two deviations are of different scales."""
    return bool(one and other) and not 1 / _OFF < one / other < _OFF


def first_filters(first: NDArray[np.float32]) -> FirstFilters:
    """Return what a conv1_1, (64, 3, 3, 3), says of its input."""
    if first.shape[1:] != (COLOURS, 3, 3) or len(first) <= max(_FILTERS):
        return FirstFilters()
    known = np.array(list(_FILTERS.values())).reshape(-1, COLOURS, 3, 3)
    found = first[list(_FILTERS)].astype(np.float64)
    times = float(np.linalg.norm(found) / np.linalg.norm(known))
    if _cosine(known, found) >= _ALIKE:
        return FirstFilters("rgb", times / 255)
    if _cosine(known, found[:, ::-1]) >= _ALIKE:
        return FirstFilters("bgr", times / 255)
    return FirstFilters()


def colour_order(first: NDArray[np.float32]) -> Order:
    """Return the colour order of Caffe's filters in a conv1_1, (64, 3, 3, 3); '' for others."""
    return first_filters(first).order


def _cosine(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float((one * other).sum()) / lengths if 0 < lengths < np.inf else 0.0


def filters_of(file: WeightFile | StateDict, sha256: str = "") -> FirstFilters:
    """Return what the first layer of an open file says of its input.

    Of files that torchvision published it is known by their digest.
    """
    if file.reading.transform:
        return FirstFilters()  # its dialect converts the order
    if sha256.startswith(JOHNSONS):
        return FirstFilters("bgr", 1 / 255)
    if sha256.startswith(_IMAGENETS):
        return FirstFilters("", 0.226)
    first = file.array(VGG.first_weight)
    return FirstFilters() if first is None else first_filters(first)


def caffe_order(file: WeightFile | StateDict, sha256: str = "") -> Order:
    """Return the colour order of the first layer of an open file, if it is Caffe's, else ''."""
    return filters_of(file, sha256).order
