"""The training loop, its batches, and its checkpoints."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from vggfeat.core.records import Progress
from vggfeat.core.signals import Pace, StopFlag
from vggfeat.errors import InputError
from vggfeat.finetuning.augmentation import augment, parse_jitter
from vggfeat.finetuning.held_out_test import Answers
from vggfeat.finetuning.report import MetricSums
from vggfeat.images.batch_plan import EMPTY
from vggfeat.images.dataset import ImageDataset
from vggfeat.images.decoding import choose_workers
from vggfeat.images.loader import load_batches
from vggfeat.network.vgg import Normaliser

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from vggfeat.core.records import DecodedBatch
    from vggfeat.core.settings import Settings
    from vggfeat.finetuning.dataset import Split, TrainingData
    from vggfeat.finetuning.model import FineTunedNetwork
    from vggfeat.finetuning.report import TrainingState
    from vggfeat.finetuning.settings import AdaptSettings
    from vggfeat.images.image_list import ImageList


log = logging.getLogger("vggfeat")


@dataclass(slots=True)
class Trainer:
    """Train a network, validate after each epoch, and stop early without improvement."""

    network: FineTunedNetwork
    data: TrainingData
    loader: BatchLoader
    settings: AdaptSettings
    checkpointer: Checkpointer
    stop: StopFlag
    notice: Callable[[Progress], None]
    _pace: Pace = field(default_factory=Pace)
    _failed: int = 0

    def train(self, state: TrainingState) -> TrainingState:
        """Train from a state until finished or stopped; a stopped state is saved."""
        self.checkpointer.start()
        while not state.is_finished(self.settings.epochs, self.settings.patience):
            done = len(state.epochs)
            state = self._epoch(state)
            if len(state.epochs) == done:  # stopped on the way
                self.checkpointer.save(state)
                break
            self.checkpointer.save_if_due(state)
        return state

    def test(self, rows: NDArray[np.int64]) -> Answers | None:
        """Classify images with the network of the best epoch; None if it was stopped.

        Training must be finished. Images that cannot be decoded any more are left out.
        """
        self.network.use_best()
        batches = rows_in_batches(rows, self.settings.batch_size)
        found, logits, started = [], [], time.monotonic()
        for decoded in self.loader.load(batches, lambda: self.stop.allows(self._pace.slowest)):
            if len(decoded.rows):
                found.append(decoded.rows)
                logits.append(self.network.predict(self.loader.prepare(decoded)))
            self._pace.note(time.monotonic() - started, cold=len(found) == 1)
            started = time.monotonic()
            batches = batches[1:]
        if len(batches):
            return None
        if not found:
            raise InputError(
                "none of the test images can be decoded any more; are they still there?"
            )
        taken = np.concatenate(found)
        return Answers.of(taken, torch.cat(logits), self.data.classes[taken])

    def _epoch(self, state: TrainingState) -> TrainingState:
        """Do the rest of an epoch; return it incomplete if stopped."""
        settings, split = self.settings, self.data.split
        epoch, number, first = len(state.epochs), state.batches, state.batches
        batches = epoch_batches(split, settings.batch_size, seed=settings.seed, epoch=epoch)
        steps = batch_count(len(split.train), settings.batch_size)
        sums = MetricSums.zero(self.data.class_count)
        loaded = self.loader.load(batches[number:], lambda: self.stop.allows(self._pace.slowest))
        started = time.monotonic()
        while number < len(batches):
            decoded = next(loaded, None) if self.stop.allows(self._pace.slowest) else None
            if decoded is None:
                return state
            if number < steps:
                state = self._train_batch(decoded, state, epoch * steps + number)
                self.checkpointer.save_if_due(state)
            elif len(decoded.rows):
                sums += self.network.evaluate(
                    self.loader.prepare(decoded), self.data.classes[decoded.rows]
                )
            number += 1
            # The first batch of an epoch starts worker processes, that of a run the device as well.
            self._pace.note(time.monotonic() - started, cold=number == first + 1)
            started = time.monotonic()
            self._report_progress(epoch, number)
        return self._finish_epoch(state, sums)

    def _train_batch(self, decoded: DecodedBatch, state: TrainingState, step: int) -> TrainingState:
        self._failed += len(decoded.failures)
        if not len(decoded.rows):
            return state.after_batch(0.0, 0)
        settings, epoch = self.settings, len(state.epochs)
        seeds = [(settings.seed, epoch, row) for row in decoded.rows.tolist()]
        images = augment(self.loader.prepare(decoded), parse_jitter(settings.jitter), seeds)
        loss = self.network.train_step(images, self.data.classes[decoded.rows], step)
        return state.after_batch(loss, len(images))

    def _finish_epoch(self, state: TrainingState, sums: MetricSums) -> TrainingState:
        if not sums.counts.sum():
            raise InputError(
                "none of the images held out can be decoded any more; are they still there?"
            )
        validation = sums.metrics()
        state = state.after_epoch(validation)
        if state.best is state.epochs[-1]:
            self.network.keep_best()
        last, best = state.epochs[-1], state.best
        best_so_far = "" if best is None or best == last else (
            f" (best {best.validation.accuracy:.3f} in epoch {best.number})"
        )  # fmt: skip
        log.info(
            "epoch %d of %d: training loss %.4f, validation loss %.4f, accuracy %.3f%s",
            last.number, self.settings.epochs, last.train_loss, validation.loss,
            validation.accuracy, best_so_far,
        )  # fmt: skip
        return state

    def _report_progress(self, epoch: int, number: int) -> None:
        split, size = self.data.split, self.settings.batch_size
        steps = batch_count(len(split.train), size)
        trained = min(number * size, len(split.train))
        validated = min(max(number - steps, 0) * size, len(split.validation))
        each = len(split.train) + len(split.validation)
        done = max(0, epoch * each + trained + validated - self._failed)
        self.notice(Progress(done, self._failed, each * self.settings.epochs))


def batch_count(images: int, batch_size: int) -> int:
    """Return the number of batches of so many images; the last one may not be full."""
    return -(-images // batch_size)


def epoch_batches(split: Split, batch_size: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the batches of an epoch: training images in random order, then validation images.

    They are int64 (batches, B), rows or `EMPTY`; the first `batch_count(train, B)` are those of
    training.
    """
    order = np.random.default_rng((seed, epoch)).permutation(split.train)
    return np.concatenate([rows_in_batches(part, batch_size) for part in (order, split.validation)])


def rows_in_batches(rows: NDArray[np.int64], batch_size: int) -> NDArray[np.int64]:
    """Return rows as batches, int64 (batches, B), the last one filled with `EMPTY`."""
    batches = np.full((batch_count(len(rows), batch_size), batch_size), EMPTY, dtype=np.int64)
    batches.ravel()[: len(rows)] = rows
    return batches


@dataclass(slots=True)
class Checkpointer:
    """Write checkpoints, at least `seconds` apart, in less than a tenth of the time.

    With `seconds` 0 one is written after every batch nevertheless.
    """

    write: Callable[[TrainingState], None]
    seconds: float
    _due: float = 0.0

    def start(self) -> None:
        """Count from now."""
        self._due = time.monotonic() + self.seconds

    def save_if_due(self, state: TrainingState) -> None:
        """Save if enough time has passed."""
        if time.monotonic() >= self._due:
            self.save(state)

    def save(self, state: TrainingState) -> None:
        """Save now."""
        started = time.monotonic()
        self.write(state)
        ended = time.monotonic()
        self._due = ended + (max(self.seconds, 10 * (ended - started)) if self.seconds else 0)


class BatchLoader:
    """Decode batches of images and turn them into network input."""

    def __init__(self, images: ImageList, network: Settings, device: torch.device) -> None:
        self._images = ImageDataset(images, network)
        self._network, self._device = network, device
        self._normalise = Normaliser(network.preprocess(), device)

    def load(
        self, batches: NDArray[np.int64], may_continue: Callable[[], bool]
    ) -> Iterator[DecodedBatch]:
        """Yield decoded batches, int64 (batches, B), while `may_continue` returns True."""
        return load_batches(
            self._images,
            batches,
            self._network,
            workers=min(batches.size, choose_workers(self._network, {self._device.type})),
            pin=self._device.type == "cuda",
            goes_on=may_continue,
        )

    def prepare(self, batch: DecodedBatch) -> Tensor:
        """Return the n images of a batch, normalised, (n, C, H, W) on the device."""
        slots = torch.from_numpy(batch.slots).to(self._device)
        images = batch.images.to(self._device, non_blocking=True).permute(0, 3, 1, 2)
        # Taken from floats: not every device picks uint16 by index.
        chosen = self._normalise(images)[slots]  # (n, C, H, W)
        return chosen.contiguous(memory_format=torch.channels_last)
