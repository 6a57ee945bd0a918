"""Accuracy of `adapt` on images that chose nothing: the split, groups, intervals, warnings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
from classes import CLASSES, write_classes
from command_line import assert_one_line, vggfeat
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import vggfeat as package
from vggfeat.core.settings import Settings
from vggfeat.errors import CacheMismatchError, InputError, UsageError
from vggfeat.finetuning.adapt import adapt
from vggfeat.finetuning.dataset import Shares, split_images
from vggfeat.finetuning.intervals import bootstrap, wilson
from vggfeat.finetuning.settings import AdaptSettings

if TYPE_CHECKING:
    from numpy.typing import NDArray

NETWORK: dict[str, Any] = {
    "layers": "conv1_1", "model": "vgg11", "weights": "random:0", "channels": 1, "size": 64,
    "crop": "squash", "workers": 0, "device": "cpu", "checkpoint_seconds": 0,
}  # fmt: skip
WORDS = ["--model", "vgg11", "--weights", "random:0", "--channels", "1", "--size", "64", "--crop",
         "squash", "--layer", "conv1_1", "--workers", "0", "--device", "cpu", "--epochs", "1",
         "--lr", "1e-9"]  # fmt: skip


def asked(**training: Any) -> AdaptSettings:
    return AdaptSettings(Settings(**NETWORK), **{"epochs": 1, "batch_size": 8, **training})


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("held_out") / "images", 10)


@pytest.fixture(scope="module")
def idle(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that learnt nothing, for the rate is next to none, and what the command said."""
    folder = tmp_path_factory.mktemp("idle")
    (folder / "images").symlink_to(images)
    done = vggfeat("adapt", "images", *WORDS, "--out", "w.safetensors", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "said").write_text(done.stdout)
    return folder


def values_of(images: Path, out: Path) -> tuple[NDArray[np.float32], NDArray[np.int_], list[str]]:
    """Features of the untouched network, classes, and paths."""
    settings = Settings(**NETWORK, dtype="float32", precision="float32")
    package.extract(images, out, settings)
    cache = package.open(out)
    paths = [cache.name(row) for row in range(len(cache))]
    truth = [CLASSES.index(path.split("/")[0]) for path in paths]
    return cache.values("conv1_1"), np.array(truth), paths


def test_before_and_after_are_of_the_test_images(idle: Path, images: Path, tmp_path: Path) -> None:
    """Before is scikit-learn's probe, its C chosen on validation; after, the file's own head."""
    again = vggfeat("adapt", "images", *WORDS, "--out", "w.safetensors", "--json", cwd=idle)
    found = json.loads(again.stdout)
    values, truth, _ = values_of(images, tmp_path / "f.h5")
    split = split_images(np.arange(20), truth, CLASSES, Shares(0.2, 0.2, 0))
    assert found["test"] == found["held_out"] == [2, 2]
    assert found["train_images"] == 12
    x = values.astype(np.float64)
    x = StandardScaler().fit(x[split.train]).transform(x)
    probes = [
        LogisticRegression(C=2 * c, tol=1e-9, max_iter=5000).fit(x[split.train], truth[split.train])
        for c in (1, 0.1, 0.01, 0.001)
    ]
    validation = found["before_validation"]["accuracy"]
    reached = {one.score(x[split.validation], truth[split.validation]): one for one in probes}
    assert validation == max(reached)
    right = {one.score(x[split.test], truth[split.test]) for one in probes}
    assert found["before"]["accuracy"] in right
    tensors = safetensors.torch.load_file(idle / "w.safetensors")
    scores = values @ tensors["head.weight"].numpy().T + tensors["head.bias"].numpy()
    after = (scores.argmax(1) == truth)[split.test].mean()  # the rate is next to none
    assert found["after"]["accuracy"] == after
    wanted = binomtest(round(4 * after), 4).proportion_ci(0.95, "wilson")
    assert found["after_interval"] == pytest.approx([wanted.low, wanted.high], abs=1e-6)


def test_that_nothing_was_gained_is_said_wherever_the_report_is(idle: Path) -> None:
    """In the output, again when it is shown again, in JSON, and in the report in the file."""
    words = "no higher than that of a probe of the untouched network"
    assert f"WARNING  the test accuracy is {words}" in (idle / "said").read_text()
    command = ["adapt", "images", *WORDS, "--out", "w.safetensors"]
    again, plain = (vggfeat(*command, *more, cwd=idle) for more in ([], ["--json"]))
    assert words in again.stdout
    assert "gain     +0.000 (+0.000 to +0.000)" in again.stdout
    assert words in json.loads(plain.stdout)["warnings"][0]
    with safetensors.safe_open(idle / "w.safetensors", "pt") as file:
        assert words in json.loads(file.metadata()["vggfeat.report"])["warnings"][0]


def rewritten(path: Path, change: Any) -> None:
    """Change the metadata of a weight file or checkpoint."""
    with safetensors.safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
    change(metadata)
    safetensors.torch.save_file(safetensors.torch.load_file(path), path, metadata)


def as_before_there_was_a_test(metadata: dict[str, str]) -> None:
    identity = json.loads(metadata["vggfeat.adapt"])
    del identity["test_share"]
    metadata["vggfeat.adapt"] = json.dumps(identity)
    if "vggfeat.report" in metadata:
        report = json.loads(metadata["vggfeat.report"])
        report["after"] = report["before"] = report["before_validation"]
        for name in ("test", "measured_on", "groups", "before_interval", "after_interval",
                     "gain_interval", "before_validation", "warnings"):  # fmt: skip
            del report[name]
        metadata["vggfeat.report"] = json.dumps(report)


def test_a_report_of_an_earlier_version_is_shown_with_what_it_is(
    idle: Path, tmp_path: Path
) -> None:
    """The same command shows it, and says that it is of images that chose; another is refused."""
    out = tmp_path / "w.safetensors"
    out.write_bytes((idle / "w.safetensors").read_bytes())
    rewritten(out, as_before_there_was_a_test)
    before = out.read_bytes()
    command = ["adapt", str(idle / "images"), *WORDS, "--out", str(out)]
    again = vggfeat(*command, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "on the validation images" in again.stdout
    assert "the validation accuracy is no higher" in again.stdout
    assert "images that chose probe and epoch" in again.stdout
    other = vggfeat(*command, "--test-share", "0.3", cwd=tmp_path)
    assert_one_line(other, 5, "test_share: file None, requested 0.3")
    assert out.read_bytes() == before


def test_training_that_an_earlier_version_began_does_not_mix(images: Path, tmp_path: Path) -> None:
    """It is refused with a test part, and goes on without one, to the weights of one run."""
    whole, out = tmp_path / "whole.safetensors", tmp_path / "w.safetensors"
    adapt(images, whole, asked(test_share=0, epochs=2))

    def interrupt(progress: package.Progress) -> None:
        if progress.done > 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapt(images, out, asked(test_share=0, epochs=2), on_progress=interrupt)
    progress = Path(f"{out}.progress")
    rewritten(progress, as_before_there_was_a_test)
    with pytest.raises(CacheMismatchError, match=r"test_share: file 0\.0, requested 0\.2"):
        adapt(images, out, asked(epochs=2))
    found = adapt(images, out, asked(test_share=0, epochs=2))
    assert found.measured_on == "validation"
    one, other = (safetensors.torch.load_file(path) for path in (whole, out))
    assert all(bool((one[name] == other[name]).all()) for name in (*one, *other))


def test_two_images_of_a_class_leave_none_for_the_test(images: Path, tmp_path: Path) -> None:
    """What is measured then is said: with no test image anywhere, and where one class has none."""
    folder = tmp_path / "images"
    for name, count in zip(CLASSES, (2, 2), strict=True):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            (folder / name / f"{number}.png").symlink_to(images / name / f"{number:02}.png")
    none = adapt(folder, tmp_path / "n.safetensors", asked())
    assert (none.measured_on, none.test, none.after_interval) == ("validation", (0, 0), None)
    assert any("images that chose probe and epoch" in warning for warning in none.warnings)
    for number in range(2, 5):
        (folder / "left" / f"{number}.png").symlink_to(images / "left" / f"{number:02}.png")
    some = adapt(folder, tmp_path / "s.safetensors", asked())
    assert (some.measured_on, some.test) == ("test", (1, 0))
    assert any("1 class has no test image" in warning for warning in some.warnings)
    low, high = some.after_interval or (0, 0)
    assert high - low > 0.7  # a single image says nearly nothing


# --- groups


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(0, 99))
def test_a_group_is_on_one_side(data: st.DataObject, seed: int) -> None:
    """No group is in two parts; each class is in training and validation, or it is refused."""
    groups = np.array(data.draw(st.lists(st.integers(0, 7), min_size=6, max_size=40)))
    classes = np.array([data.draw(st.integers(0, 1)) for _ in groups])
    counts = np.bincount(classes, minlength=2)
    lonely = [len(set(groups[classes == one])) < 2 for one in (0, 1)]
    rows = np.arange(len(groups)) * 2
    ask = (rows, classes, ["a", "b"], Shares(0.2, 0.2, seed), groups)
    if any(lonely) or counts.min() < 2:
        with pytest.raises(InputError, match=r"each group on one side|too few in"):
            split_images(*ask)
        return
    split = split_images(*ask)
    parts = [part // 2 for part in (split.train, split.validation, split.test)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(groups)))
    sides = [set(groups[part].tolist()) for part in parts]
    assert not sides[0] & sides[1] | sides[0] & sides[2] | sides[1] & sides[2]
    for part in parts[:2]:
        assert set(classes[part].tolist()) == {0, 1}


def test_groups_of_one_image_are_split_by_the_shares() -> None:
    """With many small groups each class has its shares, to one group."""
    classes = np.repeat([0, 1], 50)
    groups = np.arange(100) // 2
    split = split_images(np.arange(100), classes, ["a", "b"], Shares(0.2, 0.3, 0), groups)
    for part, share in ((split.validation, 0.2), (split.test, 0.3)):
        assert np.abs(np.bincount(classes[part]) - 50 * share).max() <= 2


def test_groups_from_a_file(images: Path, tmp_path: Path) -> None:
    """Patients stay on one side and are counted; another split begins another training."""
    lines = ["path,patient"]
    lines += [f"{name}/{number:02}.png,p{number // 2}" for name in CLASSES for number in range(10)]
    (tmp_path / "g.csv").write_text("\n".join(lines))
    out = tmp_path / "w.safetensors"
    found = adapt(images, out, asked(), groups=tmp_path / "g.csv")
    assert found.groups == sum(found.test) // 4 >= 1
    assert {sum(found.held_out) % 4, sum(found.test) % 4, found.train_images % 4} == {0}
    with pytest.raises(CacheMismatchError, match=r"groups: file .*, requested None"):
        adapt(images, out, asked())
    done = vggfeat("adapt", images, *WORDS, "--groups", "none.csv", "--out", "c.safetensors",
                   cwd=tmp_path)  # fmt: skip
    assert_one_line(done, 3, "groups 'none.csv' cannot be read")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("left/00.png,p1\n", "19 images with a class have no group: "),
        ("left/00.png;p1\n", "groups '{}' is separated by ';'; expected ','"),
        ("left/00.png,p1,x\n", "expected lines of path,group: line 1: 3 columns"),
        ("".join(f"{n}/{i:02}.png,{n}\n" for n in CLASSES for i in range(10)),
         "'left', 'right' cannot be in training and in validation"),
    ],
)  # fmt: skip
def test_groups_that_do_not_do_are_refused(
    images: Path, tmp_path: Path, text: str, says: str
) -> None:
    """Images without a group, files of another form, a class in a single group."""
    path = tmp_path / "g.csv"
    path.write_text(text)
    with pytest.raises((UsageError, InputError)) as raised:
        adapt(images, tmp_path / "w.safetensors", asked(), groups=path)
    assert says.format(path) in str(raised.value)


def test_shares_that_leave_nothing_are_refused() -> None:
    """Together they may be nine tenths."""
    with pytest.raises(UsageError, match=r"val-share 0.5 and test-share 0.5 leave too little"):
        asked(val_share=0.5, test_share=0.5)


# --- intervals


@given(st.integers(1, 200), st.data())
def test_wilsons_interval_is_scipys(images: int, data: st.DataObject) -> None:
    """For any number of right images, all and none included."""
    right = data.draw(st.integers(0, images))
    wanted = binomtest(right, images).proportion_ci(0.95, "wilson")
    assert wilson(right, images) == pytest.approx((wanted.low, wanted.high), abs=1e-6)


def test_a_bootstrap_over_groups_is_wider() -> None:
    """Images of one group say the same; drawn one by one, it is the normal interval."""
    draw = np.random.default_rng(0)
    values = np.repeat(draw.integers(0, 2, 40), 10).astype(np.float64)
    deviation = values.std()
    low, high = bootstrap(values, np.arange(400))
    assert high - low == pytest.approx(2 * 1.96 * deviation / 400**0.5, rel=0.1)
    low, high = bootstrap(values, np.repeat(np.arange(40), 10))
    assert high - low == pytest.approx(2 * 1.96 * deviation / 40**0.5, rel=0.1)
    assert bootstrap(np.zeros(3), np.arange(3)) == (0, 0)
