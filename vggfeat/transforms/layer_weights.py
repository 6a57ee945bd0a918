"""Learn the weights of layers from groups of images that belong together.

A group is one class of labels, or one image and its altered versions. Weights are learnt with the
supervised contrastive loss (Khosla et al., NeurIPS 2020), which for pairs is that of SimCLR (Chen
et al., ICML 2020). They start equal, and stay so unless others retrieve more of a group among
images held out: a lower loss alone is no reason.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from vggfeat.core.ranking_metrics import average_precision
from vggfeat.core.text import counted
from vggfeat.errors import InputError
from vggfeat.network.device import choose_device
from vggfeat.network.pooling import join_layers
from vggfeat.transforms.fusion import Attention, Fusion

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Values = NDArray[np.float32]
    Numbers = NDArray[np.int64]

TEMPERATURE = 0.1
"""Initial temperature of the loss, as in Khosla et al.; it is learnt along with the weights.

With a fixed one, the layer whose cosines happen to spread most would win.
"""

_HELD_OUT = 0.2
_STEPS = 400
_LOOK_EVERY = 10
_PATIENCE = 10  # looks without a gain
_GAIN = 1e-4  # of mean average precision, below which others are not better
_GROUPS, _OF_EACH = 64, 4  # of a batch
_RATES = {"weighted": 0.05, "sum": 0.05, "attention": 0.01}
_DECAY = 1e-4
_JUDGED = 500  # held-out images whose average precision is taken

log = logging.getLogger("vggfeat")


@dataclass(frozen=True, slots=True)
class Examples:
    """Images that belong together in groups, of equal numbers."""

    layers: Mapping[str, Values]  # layer → (n, D), normalised and projected for the fusion
    groups: Numbers  # (n,)

    def take(self, rows: Numbers) -> Examples:
        """Return some of them."""
        return Examples({name: x[rows] for name, x in self.layers.items()}, self.groups[rows])


@dataclass(frozen=True, slots=True)
class LearnedWeights:
    """A fusion with learnt weights, and how much they help on images held out."""

    fusion: Fusion  # with `recipe.weights` or `attention` set
    images: int  # to learn from
    held_out: int
    before: float  # mean average precision among these with equal weights
    after: float  # likewise with the learnt weights
    mean_weights: Mapping[str, float]  # of each layer, over all images


def learn(
    fusion: Fusion, examples: Examples, *, by_group: bool, device: str = "auto"
) -> LearnedWeights:
    """Learn the weights of a fusion's layers; the same examples give the same weights.

    The fusion is `weighted`, `sum` or `attention`, without weights. Images alone in their group are
    left out. `by_group` holds out whole groups, as for an image and its versions, or some of each.
    """
    examples = examples.take(_with_company(examples.groups))
    train, judge = _split(examples.groups, by_group=by_group)
    tensors = {name: torch.from_numpy(x) for name, x in examples.layers.items()}
    weigher = LayerWeigher(fusion, {name: x.shape[1] for name, x in tensors.items()})
    weigher.to(choose_device(device))
    groups = torch.from_numpy(examples.groups)
    before = weigher.judged(tensors, examples.groups, judge)
    _train(weigher, tensors, groups, (train, judge))
    after = weigher.judged(tensors, examples.groups, judge)
    return LearnedWeights(
        fusion=weigher.learnt(),
        images=len(train),
        held_out=len(judge),
        before=before,
        after=after,
        mean_weights=weigher.mean_weights(tensors),
    )


def _with_company(groups: Numbers) -> Numbers:
    """Return the positions of members of groups of two or more."""
    _, inverse, counts = np.unique(groups, return_inverse=True, return_counts=True)
    return np.flatnonzero(counts[inverse] > 1)


def _split(groups: Numbers, *, by_group: bool) -> tuple[Numbers, Numbers]:
    """Return the positions to learn from and those to judge by."""
    noise = np.random.default_rng(0)
    if by_group:
        names = noise.permutation(np.unique(groups))
        held_out = np.isin(groups, names[: round(_HELD_OUT * len(names))])
    else:
        held_out = np.zeros(len(groups), dtype=bool)
        for name in np.unique(groups):
            members = noise.permutation(np.flatnonzero(groups == name))
            held_out[members[: round(_HELD_OUT * len(members))]] = True
    parts = [np.flatnonzero(part) for part in (~held_out, held_out)]
    train, judge = (part[_with_company(groups[part])] for part in parts)
    if len(np.unique(groups[train])) < 2 or len(np.unique(groups[judge])) < 2:  # noqa: PLR2004 others
        raise InputError(
            f"{counted(len(groups), 'image')} in {counted(len(np.unique(groups)), 'group')} "
            "cannot be split to learn from some and judge by others: two groups of two or more are "
            "needed in either; give more labels or pairs, or give --weights"
        )
    return train, judge


class LayerWeigher(nn.Module):
    """A fusion of normalised layers into unit vectors, by weights that can be learnt.

    It begins with the attention of `fusion`, or with equal weights.
    """

    def __init__(self, fusion: Fusion, widths: Mapping[str, int]) -> None:
        super().__init__()
        self._fusion = fusion
        self._names = fusion.recipe.layers
        self.bias = nn.Parameter(torch.zeros(len(self._names)))
        self.log_scale = nn.Parameter(torch.tensor(-math.log(TEMPERATURE)))
        per_image = fusion.recipe.method == "attention"
        self.gates = nn.ParameterList(
            [torch.zeros(widths[name]) for name in self._names] if per_image else []
        )
        if fusion.attention is not None:
            self._begin_with(fusion.attention)

    @torch.no_grad()
    def _begin_with(self, attention: Attention) -> None:
        self.bias.copy_(torch.from_numpy(attention.bias))
        for gate, known in zip(self.gates, attention.gates.values(), strict=True):
            gate.copy_(torch.from_numpy(known))

    def weights(self, layers: Mapping[str, Tensor]) -> Tensor:
        """Return the weight of each layer, (n, layers) or (1, layers)."""
        scores = self.bias[None]
        if len(self.gates):
            pairs = zip(self._names, self.gates, strict=True)
            scores = scores + torch.stack([layers[name] @ gate for name, gate in pairs], 1)
        return scores.softmax(1)

    def forward(self, layers: Mapping[str, Tensor]) -> Tensor:
        """Fuse normalised layers, (n, D) each, into vectors of unit length, (n, width)."""
        weights = self.weights(layers)
        add = self._fusion.recipe.method == "sum"
        factors = torch.split(weights if add else weights.sqrt(), 1, dim=1)
        fused = join_layers([layers[name] for name in self._names], factors, add=add)
        return nn.functional.normalize(fused, dim=1)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.bias.device

    def some(self, layers: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
        """Return some rows of each layer, on the device."""
        return {name: layers[name][rows].to(self.device) for name in self._names}

    @torch.no_grad()
    def judged(self, layers: Mapping[str, Tensor], groups: Numbers, rows: Numbers) -> float:
        """Return the mean average precision of retrieving a row's group among some rows."""
        fused = self(self.some(layers, torch.from_numpy(rows))).cpu().numpy()
        own = groups[rows]
        queries = np.unique(np.linspace(0, len(rows) - 1, _JUDGED).astype(np.int64))
        precisions = []
        for query in queries.tolist():
            others = np.arange(len(rows)) != query
            scores = fused[others] @ fused[query]
            precisions.append(average_precision(scores, own[others] == own[query]))
        return float(np.mean(precisions))

    @torch.no_grad()
    def mean_weights(self, layers: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the weight of each layer, averaged over all rows."""
        every = torch.arange(len(layers[self._names[0]]))
        blocks = torch.split(every, 4096)
        mean = torch.cat([self.weights(self.some(layers, rows)) for rows in blocks]).mean(0)
        return dict(zip(self._names, mean.tolist(), strict=True))

    def learnt(self) -> Fusion:
        """Return the fusion with what was learnt."""
        if len(self.gates):
            gates = [gate.detach().cpu().numpy() for gate in self.gates]
            attention = Attention(
                dict(zip(self._names, gates, strict=True)), self.bias.detach().cpu().numpy()
            )
            return dataclasses.replace(self._fusion, attention=attention)
        weights = tuple(self.bias.detach().softmax(0).cpu().tolist())
        recipe = dataclasses.replace(self._fusion.recipe, weights=weights)
        return dataclasses.replace(self._fusion, recipe=recipe)


def contrastive_loss(fused: Tensor, groups: Tensor, scale: Tensor | float) -> Tensor:
    """Return the supervised contrastive loss of Khosla et al. 2020 (their L_out), a scalar.

    Args:
        fused: (n, width) of unit length.
        groups: int64 (n,); those alone in their group count only as others.
        scale: one over the temperature.
    """
    itself = torch.eye(len(fused), dtype=torch.bool, device=fused.device)
    logits = (fused @ fused.T * scale).masked_fill(itself, -torch.inf)  # (n, n)
    log_share = logits.log_softmax(1).masked_fill(itself, 0)
    same = (groups[:, None] == groups[None]) & ~itself
    count = same.sum(1)
    per_image = -(log_share * same).sum(1) / count.clamp(min=1)
    return per_image[count > 0].mean()


def _train(
    weigher: LayerWeigher, layers: dict[str, Tensor], groups: Tensor, rows: tuple[Numbers, Numbers]
) -> None:
    """Learn from the first rows until the second no longer gain; keep the best."""
    train, judge = rows
    method = weigher.learnt().recipe.method
    optimiser = torch.optim.Adam(weigher.parameters(), _RATES[method], weight_decay=_DECAY)
    noise = np.random.default_rng(0)
    own = groups.numpy()
    best, kept, since = weigher.judged(layers, own, judge), copy.deepcopy(weigher.state_dict()), 0
    for step in range(1, _STEPS + 1):
        batch = torch.from_numpy(train[_batch(own[train], noise)])
        fused = weigher(weigher.some(layers, batch))
        loss = contrastive_loss(fused, groups[batch].to(weigher.device), weigher.log_scale.exp())
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call] # torch has no types here
        optimiser.step()
        if step % _LOOK_EVERY:
            continue
        now, since = weigher.judged(layers, own, judge), since + 1
        if now > best + _GAIN:
            best, kept, since = now, copy.deepcopy(weigher.state_dict()), 0
        if since >= _PATIENCE:
            break
    log.info("learnt for %s", counted(step, "step"))
    weigher.load_state_dict(kept)


def _batch(groups: Numbers, noise: np.random.Generator) -> Numbers:
    """Return the positions of some members each of some groups."""
    names = np.unique(groups)
    chosen = noise.permutation(names)[:_GROUPS]
    members = [noise.permutation(np.flatnonzero(groups == name))[:_OF_EACH] for name in chosen]
    return np.concatenate(members)
