"""`vggfeat adapt`: what is trained, what is not, what is reported, going on after a kill."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from adapting_child import AdaptServer
from classes import CLASSES, write_classes
from command_line import assert_one_line, vggfeat
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

import vggfeat as package
from vggfeat.core.settings import Settings
from vggfeat.core.vgg_layers import find_layer
from vggfeat.errors import (
    CacheError,
    CacheMismatchError,
    InputError,
    InterruptedRunError,
    UsageError,
    WeightsError,
)
from vggfeat.finetuning.adapt import adapt
from vggfeat.finetuning.augmentation import augment
from vggfeat.finetuning.dataset import Shares, Split, split_images
from vggfeat.finetuning.linear_probe import Scaling, fit_probe
from vggfeat.finetuning.report import Metrics, TrainingState, state_from_json
from vggfeat.finetuning.settings import AdaptSettings, parse_trainable
from vggfeat.finetuning.trainer import batch_count, epoch_batches
from vggfeat.images.loader import load_batches
from vggfeat.storage.locks import hold

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from vggfeat.core.records import Progress
    from vggfeat.finetuning.report import FinetuneReport

FIRST = "features.0.weight"
NETWORK: dict[str, Any] = {
    "layers": "conv3_1", "model": "vgg11", "weights": "random:0", "channels": 1, "size": 64,
    "crop": "squash", "workers": 0, "device": "cpu", "checkpoint_seconds": 0,
}  # fmt: skip
# Measured on the images that choose, as test_adapt_held_out.py is about those that do not.
TRAINING: dict[str, Any] = {"epochs": 3, "batch_size": 8, "lr": 1e-2, "test_share": 0}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("adapt") / "images", 14)


def asked(network: dict[str, Any] | None = None, **training: Any) -> AdaptSettings:
    return AdaptSettings(Settings(**{**NETWORK, **(network or {})}), **{**TRAINING, **training})


@dataclasses.dataclass(frozen=True)
class Done:
    """A finished adaptation."""

    out: Path
    found: FinetuneReport

    @property
    def tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = safetensors.torch.load_file(self.out)
        return tensors


@pytest.fixture(scope="module")
def done(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """One with an adapter and conv2_1 trained."""
    out = tmp_path_factory.mktemp("done") / "w.safetensors"
    return Done(out, adapt(images, out, asked(trainable="adapter,conv2_1", epochs=6)))


def untouched() -> dict[str, Tensor]:
    """What training begins with, by the published way of drawing it: torch alone is asked."""
    settings = Settings(**{**NETWORK, "channels": 3, "precision": "float32"})
    return dict(package.Extractor(settings)._network.state_dict())


# --- what is trained


def test_it_learns(done: Done) -> None:
    """The loss falls from epoch to epoch's end, and all of them are reported."""
    losses = [epoch.train_loss for epoch in done.found.epochs]
    assert len(losses) == 6
    assert losses[-1] < losses[0] / 2
    assert done.found.after is not None
    assert done.found.after.accuracy >= max(
        epoch.validation.accuracy for epoch in done.found.epochs
    )


def test_what_is_frozen_stays_bit_for_bit(done: Done) -> None:
    """Only the parts that were named differ from the weights that training began with."""
    before, after = untouched(), done.tensors
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert set(before) - same == {"features.3.weight", "features.3.bias"}
    assert not torch.equal(after["adapter.weight"], torch.ones(3, 1, 1, 1))
    assert set(after) - set(before) == {
        "adapter.weight", "adapter.bias", "head.weight", "head.bias",
    }  # fmt: skip


def test_the_file_gives_what_was_reported(done: Done, images: Path, tmp_path: Path) -> None:
    """Features extracted with the file and its head in NumPy recognise the share reported."""
    out = tmp_path / "f.h5"
    settings = Settings.for_weights(
        str(done.out), layers="conv3_1", dtype="float32", precision="float32", workers=0
    )
    assert (settings.channels, settings.size, settings.crop) == (1, 64, "squash")
    package.extract(images, out, settings)
    cache = package.open(out)
    x, truth = features_and_truth(cache)
    tensors = done.tensors
    scores = x @ tensors["head.weight"].numpy().T + tensors["head.bias"].numpy()
    hits = scores.argmax(1) == truth
    split = split_of(cache)
    assert done.found.after is not None
    assert hits[split.validation].mean() == pytest.approx(done.found.after.accuracy)
    assert hits[split.train].mean() > 0.9
    identity = cache.header.identity
    assert identity.weights == "w.safetensors"
    assert identity.weights_sha256 == sha256_of(done.out)


def features_and_truth(cache: package.FeatureCache) -> tuple[NDArray[np.float32], NDArray[np.int_]]:
    rows = np.arange(len(cache))
    truth = [CLASSES.index(cache.name(row).split("/")[0]) for row in rows.tolist()]
    return cache.values("conv3_1", rows), np.array(truth)


def split_of(cache: package.FeatureCache) -> Split:
    _, truth = features_and_truth(cache)
    return split_images(np.arange(len(truth)), truth, CLASSES, Shares(0.2, 0, 0))


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_before_is_a_linear_probe_of_the_untouched_network(
    done: Done, images: Path, tmp_path: Path
) -> None:
    """Accuracy before is that of scikit-learn's logistic regression, at the best of four C."""
    package.extract(
        images, tmp_path / "f.h5", Settings(**NETWORK, dtype="float32", precision="float32")
    )
    cache = package.open(tmp_path / "f.h5")
    values, truth = features_and_truth(cache)
    split, x = split_of(cache), values.astype(np.float64)
    scaler = StandardScaler().fit(x[split.train])
    train, validation = (scaler.transform(x[part]) for part in (split.train, split.validation))
    wanted = []
    for c in (1, 0.1, 0.01, 0.001):
        # Of two classes it learns one vector where a softmax has two, of half the length each.
        probe = LogisticRegression(C=2 * c, tol=1e-9, max_iter=5000).fit(train, truth[split.train])
        hits = probe.score(validation, truth[split.validation])
        wanted.append((hits, -log_loss(truth[split.validation], probe.predict_proba(validation))))
    before = done.found.before
    assert before is not None
    assert (before.accuracy, -before.loss) == pytest.approx(max(wanted), abs=1e-4)
    assert done.found.held_out == tuple(np.bincount(truth[split.validation]))
    assert done.found.chance == 0.5


@pytest.mark.parametrize(
    ("trainable", "first_channels", "changed"),
    [("first", 1, {FIRST, "features.0.bias"}), ("conv2,conv3", 1, {"features.3.weight",
     "features.3.bias", "features.6.weight", "features.6.bias"}), ("adapter", 3, set())],
)  # fmt: skip
def test_names_of_what_learns(
    images: Path, tmp_path: Path, trainable: str, first_channels: int, changed: set[str]
) -> None:
    """`first` is conv1_1 for the images' channels, a block its convolutions; none else learns."""
    out = tmp_path / "w.safetensors"
    adapt(images, out, asked(trainable=trainable, epochs=1))
    after = safetensors.torch.load_file(out)
    before = untouched()
    if first_channels == 1:
        before[FIRST] = before[FIRST].sum(1, keepdim=True)
    assert after[FIRST].shape[1] == first_channels
    assert {name for name in before if not torch.equal(before[name], after[name])} == changed


def test_batch_normalisation_learns_but_for_its_statistics(images: Path, tmp_path: Path) -> None:
    """Of a _bn variant scale and shift of a layer learn with it; running statistics stay."""
    out = tmp_path / "w.safetensors"
    adapt(images, out, asked({"model": "vgg11_bn", "layers": "conv2_1"}, epochs=1))
    after = safetensors.torch.load_file(out)
    assert not torch.equal(after["features.1.weight"], torch.ones(64))
    assert torch.equal(after["features.1.running_mean"], torch.zeros(64))
    assert torch.equal(after["features.1.running_var"], torch.ones(64))
    assert torch.equal(after["features.5.weight"], torch.ones(128))


def test_bfloat16_learns_too(images: Path, tmp_path: Path) -> None:
    """In bfloat16 products the loss falls as well, and float32 weights are written."""
    out = tmp_path / "w.safetensors"
    found = adapt(images, out, asked({"precision": "bfloat16"}, trainable="all", epochs=3))
    assert found.precision == "bfloat16"
    assert found.epochs[-1].train_loss < found.epochs[0].train_loss
    assert {tensor.dtype for tensor in safetensors.torch.load_file(out).values()} == {torch.float32}


def test_adapted_weights_can_be_adapted_further(done: Done, images: Path, tmp_path: Path) -> None:
    """A file with an adapter goes on with that adapter, and keeps what does not learn now."""
    out = tmp_path / "w.safetensors"
    network = Settings.for_weights(
        str(done.out), layers="conv2_1", workers=0, checkpoint_seconds=0.0
    )
    adapt(images, out, AdaptSettings(network, trainable="first", epochs=1))
    before, after = done.tensors, safetensors.torch.load_file(out)
    assert torch.equal(after["adapter.weight"], before["adapter.weight"])
    assert not torch.equal(after[FIRST], before[FIRST])
    assert "features.6.weight" not in after


def test_an_adapter_wants_weights_for_three(images: Path, tmp_path: Path) -> None:
    """Weights whose first layer takes one channel get no adapter, with what to train instead."""
    first = tmp_path / "first.safetensors"
    adapt(images, first, asked(epochs=1))
    network = {"weights": str(first)}
    with pytest.raises(WeightsError, match=r"take images of 1 channel already.*train first"):
        adapt(images, tmp_path / "w.safetensors", asked(network, trainable="adapter"))


# --- pure parts


@pytest.mark.parametrize("c", [1, 0.01])
def test_the_probe_is_scikit_learns(c: float) -> None:
    """Weights and biases are those of scikit-learn's LogisticRegression with the same C."""
    chance = np.random.default_rng(1)
    x = chance.standard_normal((60, 7)).astype(np.float32)
    truth = (x[:, :3] + chance.standard_normal((60, 3))).argmax(1)
    found = fit_probe(torch.from_numpy(x), truth, 3, c)
    wanted = LogisticRegression(C=c, tol=1e-9, max_iter=5000).fit(x.astype(np.float64), truth)
    np.testing.assert_allclose(found.weight.numpy(), wanted.coef_, atol=1e-4)
    bias = found.bias.numpy() - found.bias.numpy().mean()  # which softmax leaves open
    np.testing.assert_allclose(bias, wanted.intercept_ - wanted.intercept_.mean(), atol=1e-4)


def test_a_head_without_scaling_gives_the_same_scores() -> None:
    """The scaling of features can be folded into the head; constant dimensions do no harm."""
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * 3 + 5
    x[:, 1] = 2
    scaling = Scaling.of(x)
    varied = [0, 2, 3]
    wanted = StandardScaler().fit_transform(x.numpy())
    np.testing.assert_allclose(scaling(x).numpy()[:, varied], wanted[:, varied], atol=1e-5)
    head = fit_probe(scaling(x), np.arange(50) % 2, 2)
    plain = head.unscaled(scaling)
    scores = scaling(x) @ head.weight.T + head.bias
    np.testing.assert_allclose((x @ plain.weight.T + plain.bias).numpy(), scores.numpy(), atol=1e-5)


@given(
    st.lists(st.integers(2, 9), min_size=2, max_size=5),
    st.floats(0.05, 0.9),
    st.floats(0, 0.9),
    st.integers(0, 99),
)
def test_every_class_has_images_on_both_sides(
    counts: list[int], share: float, test_share: float, seed: int
) -> None:
    """A split loses no image, and of each class some are in training and in validation; the test
    part takes nothing from validation.
    """
    classes = np.repeat(np.arange(len(counts)), counts)
    rows = np.arange(len(classes)) * 3
    names = [str(number) for number in range(len(counts))]
    split = split_images(rows, classes, names, Shares(share, test_share, seed))
    parts = (split.train, split.validation, split.test)
    assert sorted(row for part in parts for row in part.tolist()) == rows.tolist()
    plain = split_images(rows, classes, names, Shares(share, 0, seed))
    assert split.validation.tolist() == plain.validation.tolist()
    assert not len(plain.test)
    for number, count in enumerate(counts):
        held_out = int((classes[split.validation // 3] == number).sum())
        assert held_out == min(count - 1, max(1, round(share * count)))
        left, tested = count - held_out, int((classes[split.test // 3] == number).sum())
        wanted = max(1, round(test_share * count)) if test_share else 0
        assert tested == min(left - 1, wanted)


def test_too_few_images_of_a_class_are_all_named() -> None:
    """Classes with one image are listed with their numbers."""
    with pytest.raises(InputError, match="found too few in 'b' 1, 'c' 1"):
        split_images(np.arange(4), np.array([0, 0, 1, 2]), ["a", "b", "c"], Shares(0.5, 0, 0))


@given(st.integers(2, 30), st.integers(1, 9), st.integers(1, 9), st.integers(0, 5))
def test_an_epoch_sees_every_image_once(train: int, validation: int, size: int, epoch: int) -> None:
    """Each epoch has an order of its own, of all images, and validates by all held out."""
    split = Split(np.arange(train), np.arange(train, train + validation))
    batches = epoch_batches(split, size, seed=3, epoch=epoch)
    steps = batch_count(train, size)
    trained, validated = batches[:steps].ravel(), batches[steps:].ravel()
    assert sorted(trained[trained >= 0].tolist()) == split.train.tolist()
    assert validated[validated >= 0].tolist() == split.validation.tolist()
    assert batches.tolist() == epoch_batches(split, size, seed=3, epoch=epoch).tolist()


def test_the_best_epoch_is_the_first_that_none_beats() -> None:
    """More recognised images beat fewer, then a lower loss; patience counts from the best."""
    state = TrainingState()
    for accuracy, loss in ((0.5, 1.0), (0.8, 0.9), (0.8, 0.7), (0.8, 0.7), (0.7, 0.1)):
        metrics = Metrics(accuracy, loss, (accuracy,))
        state = state.after_batch(2.0, 4).after_epoch(metrics)
    assert state.best is not None
    assert state.best.number == 3
    assert state.epochs[0].train_loss == 2.0
    assert state.is_finished(9, 2)
    assert not state.is_finished(9, 3)
    assert not state.is_finished(9, 0)
    assert state.is_finished(5, 0)
    assert state_from_json(state.to_json()) == state


def test_what_learns_is_parsed() -> None:
    """Names stand for layers up to that of the head, in the order of the network."""
    deepest = find_layer("vgg16", "conv3_2")
    parse = {text: parse_trainable(text, "vgg16", deepest).names
             for text in ("conv3, first", "adapter,conv2_2", "all")}  # fmt: skip
    assert parse["conv3, first"] == ("conv1_1", "conv3_1", "conv3_2")
    assert parse["adapter,conv2_2"] == ("adapter", "conv2_2")
    assert parse["all"] == ("conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1", "conv3_2")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "conv1,adaptor,pool2",
            r"'adaptor', 'pool2' in vgg16; expected .*mean adapter\?\)",
        ),
        ("conv4,fc6,first", "conv4, fc6 lies behind conv3_2, on which the head stands"),
        (" , ", "unknown trainable ' , ' in vgg16; expected adapter, first, a layer with weights"),
    ],
)
def test_what_cannot_learn_is_named(text: str, message: str) -> None:
    """Unknown names and layers behind the head are all named."""
    with pytest.raises(UsageError, match=message):
        parse_trainable(text, "vgg16", find_layer("vgg16", "conv3_2"))


def test_wrong_settings_are_told_at_once() -> None:
    """Everything that makes no sense is in one message."""
    with pytest.raises(UsageError) as caught:
        asked({"layers": "conv1_1,conv2_1:max,pool2", "precision": "float16", "fuse": "concat"},
              epochs=0, lr=0.0, jitter="mirror,spin", batch_size=1.5)  # fmt: skip
    for words in ("epochs is 0", "lr is 0.0; expected a number above 0", "unknown jitter 'spin'",
                  "batch_size is 1.5; expected a whole number", "name one", "fuse concat",
                  "precision float16 cannot be trained in"):  # fmt: skip
        assert words in str(caught.value)


def test_jitter_changes_each_image_by_its_own_seed() -> None:
    """Mirrored, flipped and moved images are the image's own pixels; a seed gives one change."""
    x = torch.arange(2 * 32 * 32, dtype=torch.float32).view(1, 2, 32, 32) + 1
    many = x.repeat(40, 1, 1, 1)
    seeds = [(0, 1, number) for number in range(40)]
    mirrored = augment(many, ("mirror",), seeds)
    kinds = [torch.equal(one, x[0]) for one in mirrored]
    assert all(kind or torch.equal(one, x[0].flip(2))
               for kind, one in zip(kinds, mirrored, strict=True))  # fmt: skip
    assert 5 < sum(kinds) < 35
    shifted = augment(many, ("shift",), seeds)
    assert all(set(one.ravel().tolist()) <= {0.0, *x.ravel().tolist()} for one in shifted)
    assert len({tuple(one.ravel().tolist()) for one in shifted}) > 5
    assert torch.equal(shifted[7:9], augment(many[7:9], ("shift",), seeds[7:9]))
    gains = augment(many, ("contrast",), seeds)[:, 0, 0, :2]
    assert bool(((gains[:, 1] - gains[:, 0]) > 0.79).all())
    assert augment(x, (), []) is x


# --- killed, stopped, run again


SMALL: dict[str, Any] = {**NETWORK, "layers": "conv2_1"}
SHORT: dict[str, Any] = {"epochs": 2, "batch_size": 8, "trainable": "adapter,conv2_1",
                         "jitter": "mirror,shift", "lr": 1e-3}  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[AdaptServer]:
    with AdaptServer() as running:
        yield running


def files_beside(out: Path) -> set[str]:
    return {path.name.removeprefix(out.name) for path in out.parent.iterdir()}


def test_killed_at_any_instant_the_same_bytes_come_out(
    server: AdaptServer, images: Path, tmp_path: Path
) -> None:
    """A SIGKILL before a write, sync, rename or removal costs nothing: the file is the same."""
    whole = tmp_path / "whole" / "w.safetensors"
    whole.parent.mkdir()
    status, calls = server.run(images, whole, SMALL, SHORT)
    assert status == 0
    assert calls > 30
    assert files_beside(whole) == {""}
    # Also right before and behind the end, and at the checkpoints of training.
    ends = (calls - 9, calls - 6, calls - 3, calls)
    for kill_at in (2, calls // 4, calls // 2, 3 * calls // 4, *ends):
        out = tmp_path / f"{kill_at}" / "w.safetensors"
        out.parent.mkdir()
        status, _ = server.run(images, out, SMALL, SHORT, kill_at=kill_at)
        assert status == -signal.SIGKILL
        status, _ = server.run(images, out, SMALL, SHORT)
        assert status == 0
        assert out.read_bytes() == whole.read_bytes(), kill_at
        assert files_beside(out) == {""}


WORDS = ["--model", "vgg11", "--weights", "random:0", "--in-channels", "1", "--size", "64",
         "--crop", "squash", "--layer", "conv2_1", "--workers", "1", "--device", "cpu",
         "--trainable", "adapter,first", "--batch-size", "8",
         "--checkpoint-seconds", "0"]  # fmt: skip


def test_signals_end_it_and_the_same_command_goes_on(
    server: AdaptServer, images: Path, tmp_path: Path
) -> None:
    """SIGTERM while it trains ends in 143 with all kept; again, the bytes are those of one run."""
    words = ["adapt", str(images), *WORDS, "--epochs", "8", "--patience", "0"]
    out = tmp_path / "w.safetensors"
    command = [sys.executable, "-m", "vggfeat", *words, "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                               env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    progress = Path(f"{out}.progress")
    while process.poll() is None and not progress.exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate()
    assert process.returncode == 143, stderr
    assert "stopped by SIGTERM in epoch" in stderr
    assert "UNFINISHED (SIGTERM); the same command again resumes it" in stdout
    assert not out.exists()
    again = vggfeat(*words, "--out", out, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "resuming in epoch" in again.stderr
    assert files_beside(out) == {""}
    whole = tmp_path / "whole" / "w.safetensors"
    whole.parent.mkdir()
    training = {"trainable": "adapter,first", "batch_size": 8, "epochs": 8, "patience": 0}
    assert server.run(images, whole, SMALL, training)[0] == 0
    assert out.read_bytes() == whole.read_bytes()
    fresh = vggfeat(*words, "--out", out, "--fresh", "--time-limit", "0.001s", cwd=tmp_path)
    assert "again resumes it; the output of the earlier run is as it was" in fresh.stdout
    assert vggfeat(*words, "--out", out, "--fresh", cwd=tmp_path).returncode == 0
    assert files_beside(out) == {"", "whole"}
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("batches", [2, 9])
def test_a_batch_without_a_decodable_image_is_no_step_of_the_optimizer(
    batches: int, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted after it, training gives the bytes of one run, though images do not decode."""
    left, lost = batches, list[int]()

    def load(open_: Any, rows: NDArray[np.int64], *given: Any, **named: Any) -> Iterator[Any]:
        lost[:] = lost or [int(rows[0, 0])]  # of the first batch, in each epoch with all beside it
        for batch in load_batches(open_, rows, *given, **named):
            kept = slice(0 if lost[0] in batch.rows else None)
            yield dataclasses.replace(batch, rows=batch.rows[kept], slots=batch.slots[kept])

    def interrupt(progress: package.Progress) -> None:
        nonlocal left
        left -= progress.done > len(names)
        if not left:
            raise KeyboardInterrupt

    monkeypatch.setattr("vggfeat.finetuning.trainer.load_batches", load)
    names = [path for path in images.rglob("*") if path.is_file()]
    whole, out = tmp_path / "whole.safetensors", tmp_path / "w.safetensors"
    settings = asked({"layers": "conv2_1"}, trainable="adapter,conv2_1", patience=0)
    adapt(images, whole, settings)
    with pytest.raises(KeyboardInterrupt):
        adapt(images, out, settings, on_progress=interrupt)
    adapt(images, out, settings)
    assert out.read_bytes() == whole.read_bytes()


def test_a_time_limit_stops_cleanly(images: Path, tmp_path: Path) -> None:
    """Without time to finish nothing is written but where it stands, and it goes on from there."""
    out = tmp_path / "w.safetensors"
    seconds = 1

    def limited() -> FinetuneReport:
        network = {
            "time_limit": f"{seconds}s",
            "layers": "conv2_1",
            "checkpoint_seconds": 1000,
        }
        return adapt(images, out, asked(network, epochs=100_000, patience=0))

    first = limited()
    progress = Path(f"{out}.progress")
    while not progress.exists() and not out.exists():  # a busy machine does not get to training
        seconds *= 2
        first = limited()
    assert first.stopped == "time limit"
    assert first.after is None
    assert not out.exists()
    second = limited()
    while len(second.epochs) <= len(first.epochs) and not out.exists():  # nor to an epoch's end
        seconds *= 2
        second = limited()
    assert len(second.epochs) > len(first.epochs)
    assert second.epochs[: len(first.epochs)] == first.epochs


# --- the command line


@pytest.fixture(scope="module")
def ready(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with finished weights, made by the command."""
    folder = tmp_path_factory.mktemp("ready")
    (folder / "images").symlink_to(images)
    done = vggfeat("adapt", "images", *WORDS, "--epochs", "2", "--out", "w.safetensors", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "output").write_text(done.stdout)
    (folder / "notices").write_text(done.stderr)
    return folder


def test_the_report_is_shown(ready: Path) -> None:
    """Images, accuracy before and after with chance, each class, and random weights are said."""
    text = (ready / "output").read_text()
    assert "w.safetensors: 2 classes, trained adapter, conv1_1" in text
    assert "16 for training, 6 for validation, 6 for the test, 0 failed" in text
    assert "vgg11 up to conv2_1, channels 1, began with random:0" in text
    assert "after, chance 0.500, on the test images" in text
    assert "class  test images  before  after" in text
    assert "WARNING  RANDOM WEIGHTS (seed 0)" in text
    assert "epoch 2 of 2: training loss " in (ready / "notices").read_text()


def test_once_done_the_same_command_only_tells(ready: Path) -> None:
    """Run again it changes nothing, needs no torch, and gives the same report as JSON."""
    before = (ready / "w.safetensors").read_bytes()
    again = vggfeat("adapt", "images", *WORDS, "--epochs", "2", "--out", "w.safetensors", "--json",
                    cwd=ready, env={"PYTHONPROFILEIMPORTTIME": "1"})  # fmt: skip
    assert again.returncode == 0
    assert "| torch" not in again.stderr
    report = json.loads(again.stdout)
    assert report["classes"] == list(CLASSES)
    assert report["held_out"] == [3, 3]
    assert len(report["after"]["class_accuracy"]) == len(report["epochs"]) == 2
    assert (ready / "w.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (
            ["--epochs", "3", "--size", "96"],
            5,
            "epochs: file 2, requested 3; preprocess.size: file",
        ),
        (["--epochs", "0", "--trainable", "fc6"], 2, "epochs is 0"),
        (["--out", "w.pth"], 2, "expected a name that ends in .safetensors"),
        (["--out", "gone/w.safetensors"], 2, "folder"),
        (["--weights", "gone.pth"], 3, "'gone.pth' not found"),
    ],
)
def test_wrong_requests(ready: Path, words: list[str], code: int, message: str) -> None:
    """What cannot be done is one line, and the exit code of its kind."""
    usual = ["--epochs", "2", "--out", "w.safetensors"]
    done = vggfeat("adapt", "images", *WORDS, *usual, *words, cwd=ready)
    assert_one_line(done, code, message)


def test_a_list_on_standard_input_is_refused(ready: Path) -> None:
    """What can be read only once is no source, and the message says what is."""
    done = vggfeat("adapt", "-", *WORDS, "--out", "x.safetensors", cwd=ready, stdin=b"x.png\n")
    assert_one_line(done, 2, "write it to a file and name it as @list.txt")


def test_files_of_others_are_left_alone(images: Path, tmp_path: Path) -> None:
    """Weights that adapt did not write are not replaced, not even with `fresh`."""
    out = tmp_path / "w.safetensors"
    safetensors.torch.save_file({"x": torch.zeros(2)}, out)
    before = out.read_bytes()
    for fresh in (False, True):
        with pytest.raises(CacheError, match="exists and was not written by adapt"):
            adapt(images, out, asked(), fresh=fresh)
    assert out.read_bytes() == before


def test_fresh_begins_again(images: Path, tmp_path: Path) -> None:
    """What was begun or made otherwise is refused, and replaced with `fresh`."""
    out = tmp_path / "w.safetensors"
    adapt(images, out, asked({"layers": "conv1_1"}, epochs=1))
    with pytest.raises(
        CacheMismatchError, match=r"begun with other settings or images: seed: file 0, requested 1"
    ):
        adapt(images, out, asked({"layers": "conv1_1"}, epochs=1, seed=1))
    found = adapt(images, out, asked({"layers": "conv1_1"}, epochs=1, seed=1), fresh=True)
    assert found.after is not None
    with safetensors.safe_open(out, "pt") as file:
        assert json.loads(file.metadata()["vggfeat.adapt"])["seed"] == 1


def test_an_interrupted_fresh_training_is_kept_by_other_commands(
    images: Path, tmp_path: Path
) -> None:
    """Without `fresh` it is resumed, though finished weights lie there; another leaves it alone."""
    out = tmp_path / "w.safetensors"
    first, second = (asked({"layers": "conv1_1"}, epochs=2, seed=seed) for seed in (0, 1))
    adapt(images, out, first)
    before = out.read_bytes()
    listed = sum(1 for path in images.rglob("*") if path.is_file())

    def stop(progress: Progress) -> None:
        if progress.done > listed:  # it trains
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(InterruptedRunError):
        adapt(images, out, second, fresh=True, on_progress=stop)
    left = files_beside(out)
    assert ".progress" in left
    assert adapt(images, out, first).after is not None
    assert (files_beside(out), out.read_bytes()) == (left, before)
    adapt(images, out, second)
    assert files_beside(out) == {""}
    with safetensors.safe_open(out, "pt") as file:
        assert json.loads(file.metadata()["vggfeat.adapt"])["seed"] == 1


def test_a_damaged_progress_file_is_an_error(images: Path, tmp_path: Path) -> None:
    """Half a file of progress is named, and `fresh` begins without it."""
    out = tmp_path / "w.safetensors"
    progress = Path(f"{out}.progress")
    progress.write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    small = asked({"layers": "conv1_1"}, epochs=1)
    with pytest.raises(CacheError, match=r"w\.safetensors\.progress' is damaged; --fresh"):
        adapt(images, out, small)
    adapt(images, out, small, fresh=True)
    assert not progress.exists()


def test_a_users_file_at_the_name_of_the_progress_file(images: Path, tmp_path: Path) -> None:
    """It is named and left alone, with `fresh` too, and so is one at the name of the cache."""
    out = tmp_path / "w.safetensors"
    progress, cache = Path(f"{out}.progress"), Path(f"{out}.before.h5")
    progress.write_bytes(b"my thesis")
    cache.write_bytes(b"my notes")
    for fresh in (False, True):
        with pytest.raises(UsageError, match=r"progress' has the name of .*not touched: move it"):
            adapt(images, out, asked({"layers": "conv1_1"}, epochs=1), fresh=fresh)
    assert progress.read_bytes() == b"my thesis"
    progress.unlink()
    with pytest.raises(CacheError, match=r"before\.h5"):
        adapt(images, out, asked({"layers": "conv1_1"}, epochs=1), fresh=True)
    assert cache.read_bytes() == b"my notes"


def test_one_run_an_output(images: Path, tmp_path: Path) -> None:
    """While another run holds the output, the command leaves with exit 75."""
    with hold(str(tmp_path / "w.safetensors")):
        done = vggfeat("adapt", images, *WORDS, "--out", "w.safetensors", cwd=tmp_path)
    assert_one_line(done, 75, "is held by another run")


def test_images_that_fail_or_have_no_class_take_no_part(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A broken image is counted as failed and one outside the class folders is left out."""
    folder = tmp_path / "images"
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for path in sorted((images / name).iterdir())[:5]:
            (folder / name / path.name).symlink_to(path)
    (folder / "left" / "broken.png").write_bytes(b"nothing")
    (folder / "lone.png").symlink_to(images / "left" / "00.png")
    with caplog.at_level(logging.WARNING, "vggfeat"):
        found = adapt(folder, tmp_path / "w.safetensors", asked({"layers": "conv1_1"}, epochs=1))
    assert (found.train_images, found.held_out, found.failed) == (8, (1, 1), 1)
    assert "1 image without a class takes no part" in caplog.text


def test_labels_from_a_file(images: Path, tmp_path: Path) -> None:
    """A CSV file names the classes instead of folders."""
    lines = [f"left/{number:02}.png,{'odd' if number % 2 else 'even'}" for number in range(10)]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    found = adapt(images, tmp_path / "w.safetensors", asked({"layers": "conv1_1"}, epochs=1),
                  labels=tmp_path / "labels.csv")  # fmt: skip
    assert found.classes == ("even", "odd")
    assert found.train_images + sum(found.held_out) == 10


def test_classes_are_needed(images: Path, tmp_path: Path) -> None:
    """Images of one class, or of none, are refused with what was expected."""
    with pytest.raises(InputError, match=r"expected images of two classes or more.*found 0 class"):
        adapt(images / "left", tmp_path / "w.safetensors", asked({"layers": "conv1_1"}))
