"""Zero-shot models as torch modules: layers in, a score for each class out, float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from vggfeat.transforms.layer_weights import LayerWeigher
from vggfeat.zeroshot.nearest import LEAST_WEIGHT, NearestWords

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from vggfeat.zeroshot.features import Inputs

    Values = NDArray[np.float32]


class NormalisedLayers(nn.Module):
    """Normalises each layer as `Inputs.parts` does in NumPy."""

    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        self.norm, self.names = inputs.norm, inputs.layers
        for at, one in enumerate(inputs.standard[name] for name in inputs.standard):
            self.register_buffer(f"mean{at}", torch.from_numpy(one.mean))
            self.register_buffer(f"scale{at}", torch.from_numpy(one.scale))

    def forward(self, layers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return layer → float32 (n, D), of layer → float32 (n, D)."""
        return {name: self._normal(at, layers[name]) for at, name in enumerate(self.names)}

    def _normal(self, at: int, x: Tensor) -> Tensor:
        if self.norm == "standard":
            mean, scale = self.get_buffer(f"mean{at}"), self.get_buffer(f"scale{at}")
            standard: Tensor = (x - mean) / scale / x.shape[1] ** 0.5
            return standard.float()
        return normalize(x.sign() * x.abs().sqrt() if self.norm == "ssr" else x, dim=1)


class BilinearScores(nn.Module):
    """Scores of classes, `xᵀ V s`: of ESZSL, of ridge, and of DeViSE, whose map is trained.

    Args:
        map_: V, float32 (d, a).
        vectors: of the classes, float32 (z, a); may be replaced by those of others.
        cosine: bring xᵀ V to unit length, as of ridge.
    """

    def __init__(self, map_: Tensor, vectors: Tensor, *, cosine: bool) -> None:
        super().__init__()
        self.map, self.cosine = nn.Parameter(map_), cosine
        self.vectors: Tensor
        self.register_buffer("vectors", vectors)

    def forward(self, x: Tensor) -> Tensor:
        """Return float32 (n, z), of float32 (n, d)."""
        embedded = x @ self.map
        return (normalize(embedded, dim=1) if self.cosine else embedded) @ self.vectors.T


class NearestScores(nn.Module):
    """Scores of classes by words of the nearest seen classes: see `NearestWords`.

    Args:
        nearest: the means of seen classes and their words.
        vectors: of the classes, float32 (z, a); may be replaced by those of others.
    """

    def __init__(self, nearest: NearestWords, vectors: Tensor) -> None:
        super().__init__()
        self.count = nearest.count
        self.means: Tensor
        self.words: Tensor
        self.vectors: Tensor
        self.register_buffer("means", torch.tensor(nearest.means))
        self.register_buffer("words", torch.tensor(nearest.words))
        self.register_buffer("vectors", vectors)

    def forward(self, x: Tensor) -> Tensor:
        """Return float32 (n, z), of float32 (n, d) at unit length."""
        similar, places = (x @ self.means.T).topk(self.count)  # (n, count)
        mixed = (similar.clamp(min=LEAST_WEIGHT)[..., None] * self.words[places]).sum(1)
        return normalize(mixed, dim=1) @ self.vectors.T


class ZeroShotNetwork(nn.Module):
    """Normalised layers, joined with equal weights or by attention, then scores of classes.

    Args:
        inputs: the layers and how they are joined.
        map_: V, float32 (d, a), or the words of the nearest classes.
        vectors: of the classes at unit length, float32 (z, a).
        attention: whether each image has its own weights of the layers.
        cosine: see `BilinearScores`.
    """

    scores: BilinearScores | NearestScores

    def __init__(
        self,
        inputs: Inputs,
        map_: Values | NearestWords,
        vectors: Values,
        *,
        attention: bool,
        cosine: bool = False,
    ) -> None:
        super().__init__()
        self.normalised = NormalisedLayers(inputs)
        self.weigher = LayerWeigher(inputs.fusion(), inputs.widths) if attention else None
        if isinstance(map_, NearestWords):
            self.scores = NearestScores(map_, torch.tensor(vectors))
        else:
            self.scores = BilinearScores(torch.tensor(map_), torch.tensor(vectors), cosine=cosine)

    def forward(self, layers: Mapping[str, Tensor]) -> Tensor:
        """Return scores float32 (n, z), of each layer as a cache stores it, float32 (n, D)."""
        scores: Tensor = self.scores(self.joined(layers))
        return scores

    def joined(self, layers: Mapping[str, Tensor]) -> Tensor:
        """Return one vector of unit length for each image, float32 (n, d)."""
        parts = self.normalised(layers)
        if self.weigher is not None:
            fused: Tensor = self.weigher(parts)
            return fused
        return normalize(torch.cat(list(parts.values()), 1), dim=1)


def ranking_loss(scores: Tensor, classes: Tensor, margins: Tensor) -> Tensor:
    """DeViSE's hinge rank loss (Frome et al., NeurIPS 2013), a scalar.

    Σ over wrong classes of max(0, margin - score of the right one + score of the wrong one),
    averaged over the images.

    Args:
        scores: (n, z).
        classes: int64 (n,), the right ones.
        margins: (z, z), from the right class to a wrong one; 0 on the diagonal. With all others
            equal this is the paper's; larger ones for worse mistakes rescale the margin, as in
            hierarchical support vector machines (Cai & Hofmann, CIKM 2004).
    """
    own = scores.gather(1, classes[:, None])  # (n, 1)
    return (margins[classes] - own + scores).clamp(min=0).sum(1).mean()
