"""The report of an adaptation; no I/O, no torch."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vggfeat.finetuning.progress import epochs_from, metrics_from

if TYPE_CHECKING:
    from vggfeat.finetuning.evaluation import Metrics
    from vggfeat.finetuning.progress import Epoch


@dataclass(frozen=True, slots=True)
class FinetuneReport:
    """What `adapt` did.

    Attributes:
        out: the weight file.
        model: VGG variant.
        weights: name of the weights it began with.
        warning: what a user of them must know, empty if nothing.
        layer: on which the head stands, and where the network ends.
        channels: of the images.
        trained: the parts of the network that were trained.
        classes: their names, sorted.
        train_images: how many were trained on.
        held_out: images of each class that were held out for validation.
        failed: images that could not be decoded, and take no part.
        chance: accuracy of always predicting the most frequent class.
        before: of a linear probe of the untouched network, on the images held out; None before it
            is known.
        after: of the network and the head that are written; None as long as none are.
        epochs: those that are complete.
        best_epoch: the one whose network is written, 0 for none.
        precision: in which was trained.
        stopped: why it ended before it was done: a signal's name, `time limit`, or empty.
    """

    out: str
    model: str
    weights: str
    warning: str
    layer: str
    channels: int
    trained: tuple[str, ...]
    classes: tuple[str, ...]
    train_images: int
    held_out: tuple[int, ...]
    failed: int
    chance: float
    before: Metrics | None
    after: Metrics | None
    epochs: tuple[Epoch, ...]
    best_epoch: int
    precision: str
    stopped: str = ""

    def to_json(self) -> str:
        """As text for the metadata of the file; `report_from_json` reads it."""
        fields = dataclasses.asdict(self)
        del fields["out"]  # a file may be moved
        return json.dumps(fields)


def report_from_json(out: str, text: str) -> FinetuneReport:
    """What `FinetuneReport.to_json` wrote.

    Raises:
        ValueError, TypeError, KeyError: it is something else.
    """
    fields: dict[str, Any] = json.loads(text)
    known: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    known |= {
        "out": out,
        "before": metrics_from(fields["before"]),
        "after": metrics_from(fields["after"]),
        "epochs": epochs_from(fields["epochs"]),
    }
    return FinetuneReport(**known)
