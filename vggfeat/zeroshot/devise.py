"""DeViSE: a linear map from features to class vectors, trained with a ranking loss.

Frome et al., "DeViSE: a deep visual-semantic embedding model", NeurIPS 2013, on fixed features. The
map starts at 0; the loss is convex in it. With attention, the weights of layers are trained along,
starting from equal ones.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vggfeat.core.arrays import spread
from vggfeat.core.text import counted
from vggfeat.network.device import choose_device
from vggfeat.zeroshot.class_split import Labelled, held_out
from vggfeat.zeroshot.cross_validation import FEW_CLASSES, FEWEST_CLASSES, class_folds
from vggfeat.zeroshot.metrics import fit_temperature, judge, per_class, trade_off
from vggfeat.zeroshot.torch_model import BilinearScores, ZeroShotNetwork, ranking_loss

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from vggfeat.cache.reader import FeatureCache
    from vggfeat.transforms.fusion import Attention
    from vggfeat.zeroshot.features import Inputs
    from vggfeat.zeroshot.metrics import Judged

    Numbers = NDArray[np.int64]
    Values = NDArray[np.float32]

_BATCH = 128
_RATE, _DECAY = 3e-3, 1e-5
_EPOCHS, _PATIENCE = 200, 20
_EPOCHS_UNCHECKED = 50  # with too few classes to hold some out
_JUDGED = 2000  # rows of a kind
_SPARE = 0.2

log = logging.getLogger("vggfeat")


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """A training: rows of a cache, and the vectors of their classes at unit length, (z, a).

    Attributes:
        cache: read in batches from the memory map.
        inputs: the layers and how they are joined, without attention.
        labelled: rows and their classes, indices into `vectors`.
        margins: float32 (z, z): see `ranking_loss`.
        attention: learn weights of the layers.
        seed: of the order of rows and of the held-out classes.
    """

    cache: FeatureCache
    inputs: Inputs
    labelled: Labelled
    vectors: Values
    margins: Values
    attention: bool
    seed: int
    device: str


@dataclass(frozen=True, slots=True)
class Trial:
    """Training with held-out classes: the best number of epochs and the figures after it.

    Attributes:
        epochs: best number.
        accuracy: on held-out classes, averaged over them.
        chance: accuracy of guessing.
        bias, temperature: see `Calibration`.
    """

    epochs: int
    accuracy: float
    chance: float
    bias: float
    temperature: float


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """What was learnt.

    Attributes:
        map: float32 (d, a).
        attention: if requested.
        epochs: of training.
        trial: with held-out classes; None if too few classes are seen to hold some out.
    """

    map: Values
    attention: Attention | None
    epochs: int
    trial: Trial | None


def train_devise(task: Task) -> Trained:
    """Find the number of epochs on held-out classes, then train that long on all classes.

    The same task gives the same map on the same machine.
    """
    if len(task.vectors) < FEWEST_CLASSES:
        trial, epochs = None, _EPOCHS_UNCHECKED
    else:
        trial = _try_out(task)
        epochs = trial.epochs
        log.info("training for %s, the best number on held-out classes", counted(epochs, "epoch"))
    network = _trained(task, task.labelled, np.ones(len(task.vectors), dtype=bool), epochs)
    attention = None if network.weigher is None else network.weigher.learnt().attention
    return Trained(_map(network).detach().cpu().numpy(), attention, epochs, trial)


def _try_out(task: Task) -> Trial:
    """Hold out each fold of few classes in turn and take the median; of many, hold out one fold."""
    noise = np.random.default_rng(task.seed)
    spare = held_out(task.labelled.classes, _SPARE, noise)
    folds = class_folds(len(task.vectors), noise)
    if len(task.vectors) >= FEW_CLASSES:
        folds = folds[:1]
    trials = [_try_without(task, out, spare) for out in folds]
    return Trial(
        int(np.median([trial.epochs for trial in trials])),
        float(np.mean([trial.accuracy for trial in trials])),
        float(np.mean([trial.chance for trial in trials])),
        float(np.median([trial.bias for trial in trials])),
        float(np.median([trial.temperature for trial in trials])),
    )


def _try_without(task: Task, out: Numbers, spare: NDArray[np.bool_]) -> Trial:
    """Train without the classes `out` and the spare rows; judge by both after each epoch."""
    kept = ~np.isin(np.arange(len(task.vectors)), out)
    mine = kept[task.labelled.classes]
    judging = [
        task.labelled.where(np.isin(np.arange(len(which)), spread(np.flatnonzero(which), _JUDGED)))
        for which in (mine & spare, ~mine)
    ]
    best, margin = Trial(1, -1.0, 1 / len(out), 0.0, 1.0), -math.inf
    numbers = np.cumsum(~kept) - 1  # of classes among those held out

    def look(network: ZeroShotNetwork, epoch: int) -> bool:
        nonlocal best, margin
        scores = _scores(task, network, judging[1])
        unseen = judge(scores, judging[1].classes, kept)
        accuracy, now = (
            per_class(unseen.within(1), unseen.classes),
            _mean_lead(scores, unseen, ~kept),
        )
        if (accuracy, now) > (best.accuracy, margin):  # few classes tie often: then by how clearly
            seen = judge(_scores(task, network, judging[0]), judging[0].classes, kept)
            bias = trade_off(seen, unseen).best if len(seen.classes) else 0.0
            warmth = fit_temperature([(scores[:, ~kept], numbers[judging[1].classes])])
            best, margin = Trial(epoch, accuracy, best.chance, bias, warmth), now
        return epoch - best.epochs < _PATIENCE

    _trained(task, task.labelled.where(mine & ~spare), kept, _EPOCHS, look)
    return best


def _trained(
    task: Task,
    labelled: Labelled,
    kept: NDArray[np.bool_],
    epochs: int,
    look: Callable[[ZeroShotNetwork, int], bool] = lambda _network, _epoch: True,
) -> ZeroShotNetwork:
    """Train on rows of the classes `kept` until `look` returns False."""
    noise = np.random.default_rng(task.seed)
    start = np.zeros((task.inputs.width, task.vectors.shape[1]), dtype=np.float32)
    network = ZeroShotNetwork(task.inputs, start, task.vectors, attention=task.attention)
    network = network.to(choose_device(task.device))
    optimiser = torch.optim.Adam(network.parameters(), _RATE, weight_decay=_DECAY)
    wanted = torch.from_numpy(np.flatnonzero(kept))
    margins = torch.from_numpy(task.margins[np.ix_(kept, kept)]).to(_map(network).device)
    numbers = np.cumsum(kept) - 1
    for epoch in range(1, epochs + 1):
        order = noise.permutation(len(labelled))
        for at in range(0, len(order), _BATCH):
            batch = np.sort(order[at : at + _BATCH])  # neighbours in the file together
            scores = network(_layers(task, network, labelled.rows[batch]))[:, wanted]
            classes = torch.from_numpy(numbers[labelled.classes[batch]]).to(scores.device)
            loss = ranking_loss(scores, classes, margins)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call] # torch has no types here
            optimiser.step()
        if not look(network, epoch):
            break
    return network


def _map(network: ZeroShotNetwork) -> Tensor:
    assert isinstance(network.scores, BilinearScores)  # noqa: S101 it was made from a map
    return network.scores.map


def _layers(task: Task, network: ZeroShotNetwork, rows: Numbers) -> dict[str, Tensor]:
    device = _map(network).device
    return {
        name: torch.from_numpy(task.cache.values(name, rows)).to(device)
        for name in task.inputs.layers
    }


def _mean_lead(scores: Values, judged: Judged, among: NDArray[np.bool_]) -> float:
    """Return the mean lead of the right class over all candidates, in standard deviations."""
    some = scores[:, among]
    own = np.take_along_axis(scores, judged.classes[:, None], 1)[:, 0]
    deviation = some.std(1)
    lead = np.divide(own - some.mean(1), deviation, out=np.zeros_like(own), where=deviation > 0)
    return float(lead.mean())


@torch.no_grad()
def _scores(task: Task, network: ZeroShotNetwork, labelled: Labelled) -> Values:
    """Return the scores of all seen classes, float32 (n, z)."""
    parts = [
        network(_layers(task, network, rows)).cpu().numpy()
        for rows in np.array_split(labelled.rows, len(labelled) // _BATCH + 1)
    ]
    scores: Values = np.concatenate(parts)
    return scores
