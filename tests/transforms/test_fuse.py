"""Fusing: vectors are what the recipe says, learning helps or is not used, runs go on."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
import torch
from command_line import SMALL, assert_one_line, vggfeat, write_images
from killing import contents
from noise_caches import blow_up
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler, normalize

import vggfeat as library
from vggfeat.core.fusion_spec import Recipe
from vggfeat.errors import CacheError, CacheMismatchError, InputError, UsageError
from vggfeat.transforms.fusion import Attention, Fusion, fit_fusion
from vggfeat.transforms.layer_weights import Examples, contrastive_loss, learn
from vggfeat.transforms.model_file import Fitted, load_fitted, save_fitted
from vggfeat.transforms.settings import FuseSettings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

LAYERS = ("conv1_1", "conv2_1:max")
WIDE = [*SMALL, "--dtype", "float32"]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished cache of twelve images in three folders and one that failed."""
    folder = tmp_path_factory.mktemp("fuse")
    write_images(folder / "images", 12)
    for number, path in enumerate(sorted((folder / "images").iterdir())):
        place = folder / "images" / f"class{number % 3}"
        place.mkdir(exist_ok=True)
        path.rename(place / path.name)
    (folder / "images" / "class0" / "broken.png").write_bytes(b"no image")
    done = vggfeat("extract", "images", *WIDE, "--out", "feats.h5", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def rows_of(path: Path) -> dict[str, NDArray[np.float64]]:
    """Layer → the done rows of a cache in float64."""
    with h5py.File(path) as file:
        done = file["images/state"][:] == 1
        return {name: data[:][done].astype(np.float64) for name, data in file["features"].items()}


def fused(workplace: Path, tmp_path: Path, **settings: Any) -> NDArray[np.float64]:
    """What fusing the cache stores, in float64."""
    library.fuse(
        workplace / "feats.h5", tmp_path / "out.h5", FuseSettings(**settings), dtype="float32"
    )
    (only,) = rows_of(tmp_path / "out.h5").values()
    return only


def test_concatenation_is_of_unit_vectors(workplace: Path, tmp_path: Path) -> None:
    """Each layer is brought to unit length, joined in the order asked for, and so is the whole."""
    rows = rows_of(workplace / "feats.h5")
    right = normalize(np.hstack([normalize(rows[layer]) for layer in reversed(LAYERS)]))
    found = fused(workplace, tmp_path, layers=",".join(reversed(LAYERS)))
    np.testing.assert_allclose(found, right, atol=1e-6)


def test_without_norms_it_is_the_plain_concatenation(workplace: Path, tmp_path: Path) -> None:
    """Norms `none` leave the values as they are."""
    rows = rows_of(workplace / "feats.h5")
    found = fused(workplace, tmp_path, layers=",".join(LAYERS), norm="none", final_norm="none")
    np.testing.assert_array_equal(found, np.hstack([rows[layer] for layer in LAYERS]))


def test_a_cosine_of_weighted_vectors_is_the_weighted_mean(workplace: Path, tmp_path: Path) -> None:
    """The cosines of the fused vectors are those of the layers, averaged with the weights."""
    rows = rows_of(workplace / "feats.h5")
    cosines = [normalize(rows[layer]) @ normalize(rows[layer]).T for layer in LAYERS]
    found = fused(
        workplace, tmp_path, layers=",".join(LAYERS), method="weighted", weights=(3.0, 1.0)
    )
    np.testing.assert_allclose(found @ found.T, 0.75 * cosines[0] + 0.25 * cosines[1], atol=1e-5)


def test_standardised_layers_weigh_the_same(workplace: Path, tmp_path: Path) -> None:
    """With norm standard each layer is scikit-learn's StandardScaler over the root of its width."""
    rows = rows_of(workplace / "feats.h5")
    parts = [
        StandardScaler().fit_transform(rows[layer]) / np.sqrt(rows[layer].shape[1])
        for layer in LAYERS
    ]
    found = fused(workplace, tmp_path, layers=",".join(LAYERS), norm="standard", final_norm="none")
    np.testing.assert_allclose(found, np.hstack(parts), atol=1e-4)


def test_a_sum_is_of_projections_to_one_width(workplace: Path, tmp_path: Path) -> None:
    """Layers of unequal width are brought to one by PCA, checked against scikit-learn's."""
    rows = rows_of(workplace / "feats.h5")
    parts = [PCA(5, svd_solver="full").fit_transform(normalize(rows[name])) for name in LAYERS]
    found = fused(
        workplace, tmp_path, layers=",".join(LAYERS), method="sum", width=5, weights=(1, 3),
        final_norm="none",
    )  # fmt: skip
    np.testing.assert_allclose(found, 0.25 * parts[0] + 0.75 * parts[1], atol=1e-5)


def test_signed_square_roots_come_before_the_length(workplace: Path, tmp_path: Path) -> None:
    """Norm ssr is RootSIFT's: the root of each value, then unit length."""
    rows = rows_of(workplace / "feats.h5")
    parts = [normalize(np.sign(rows[name]) * np.sqrt(np.abs(rows[name]))) for name in LAYERS]
    found = fused(workplace, tmp_path, layers=",".join(LAYERS), norm="ssr", final_norm="none")
    np.testing.assert_allclose(found, np.hstack(parts), atol=1e-6)


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("concat", {"method": "concat"}),
        ("weighted(2,1)", {"method": "weighted", "weights": (2.0, 1.0)}),
    ],
)
def test_extract_fuses_as_fuse_does(
    workplace: Path, tmp_path: Path, text: str, settings: dict[str, Any]
) -> None:
    """`extract --fuse` stores what `fuse` makes of the layers, and goes on like any run."""
    right = fused(workplace, tmp_path, layers=",".join(LAYERS), **settings)
    words: list[str | Path] = [
        "extract",
        workplace / "images",
        *WIDE,
        "--fuse",
        text,
        "--out",
        tmp_path / "fly.h5",
    ]
    done = vggfeat(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (found,) = rows_of(tmp_path / "fly.h5").values()
    np.testing.assert_allclose(found, right, atol=1e-6)
    whole = contents(tmp_path / "fly.h5")
    with h5py.File(tmp_path / "fly.h5", "r+") as file:
        file["images/state"][:5] = 0
        file["features"][settings["method"]][:5] = 0
    assert vggfeat(*words, cwd=tmp_path).returncode == 0
    assert contents(tmp_path / "fly.h5") == whole


def test_a_fused_cache_is_not_mixed_with_layers(workplace: Path, tmp_path: Path) -> None:
    """Extracting other things into a fused cache is refused with what it was made by."""
    words: list[str | Path] = ["extract", workplace / "images", *WIDE, "--out", tmp_path / "f.h5"]
    assert vggfeat(*words, "--fuse", "concat", cwd=tmp_path).returncode == 0
    assert_one_line(vggfeat(*words, cwd=tmp_path), 5, "made by: file")
    assert_one_line(vggfeat(*words, "--fuse", "weighted(2,1)", cwd=tmp_path), 5, "weighted")
    fused(workplace, tmp_path)
    done = vggfeat(
        "extract", workplace / "images", *WIDE, "--out", tmp_path / "out.h5", cwd=tmp_path
    )
    assert_one_line(done, 5, "made by: file")


def test_rows_keep_their_state_and_their_image(workplace: Path, tmp_path: Path) -> None:
    """Failed rows stay failed with their reason, and paths, digests and times come along."""
    fused(workplace, tmp_path)
    old, new = library.open(workplace / "feats.h5"), library.open(tmp_path / "out.h5")
    assert [failure.reason for failure in new.failures()] == [
        failure.reason for failure in old.failures()
    ]
    for name in ("state", "paths", "digests", "sizes", "mtimes"):
        assert np.array_equal(getattr(new, name), getattr(old, name)), name
    assert library.verify(tmp_path / "out.h5").bad == ()


def test_the_way_back_is_in_the_file(workplace: Path, tmp_path: Path) -> None:
    """A derived cache names its source and how it was made; `inspect` shows it."""
    fused(workplace, tmp_path, method="weighted", weights=(1.0, 2.0))
    library.reduce(tmp_path / "out.h5", tmp_path / "short.h5", library.ReduceSettings(dims=3))
    done = vggfeat("inspect", tmp_path / "short.h5", "--json", cwd=tmp_path)
    first, second = json.loads(done.stdout)["steps"]
    assert first["method"] == "weighted"
    assert first["read"]["path"] == str(workplace / "feats.h5")
    assert first["source"] == library.open(workplace / "feats.h5").header.identity.fingerprint()
    assert second["step"] == "reduce"
    assert second["read"]["path"] == str(tmp_path / "out.h5")
    lines = vggfeat("inspect", tmp_path / "short.h5", cwd=tmp_path).stdout
    assert "made by     fuse, method weighted" in lines
    assert "made by     reduce" in lines


def test_what_is_missing_is_done_and_what_is_there_stays(workplace: Path, tmp_path: Path) -> None:
    """Rows that the source did since, or did anew, are done; nothing else is touched."""
    shutil.copy(workplace / "feats.h5", tmp_path / "source.h5")
    with h5py.File(tmp_path / "source.h5", "r+") as file:
        file["images/state"][5:9] = 0
    first = library.fuse(tmp_path / "source.h5", tmp_path / "out.h5", dtype="float32")
    assert (first.new_done, first.pending) == (8, 4)
    with h5py.File(tmp_path / "source.h5", "r+") as file:
        file["images/state"][5:9] = 1
        file["images/digest"][10] = 5  # another image since, with other features
        file["features/conv1_1"][10] = 3
    second = library.fuse(tmp_path / "source.h5", tmp_path / "out.h5", dtype="float32")
    assert (second.new_done, second.pending, second.done) == (5, 0, 12)
    library.fuse(tmp_path / "source.h5", tmp_path / "at_once.h5", dtype="float32")
    assert contents(tmp_path / "out.h5") == contents(tmp_path / "at_once.h5")
    assert library.fuse(tmp_path / "source.h5", tmp_path / "out.h5", dtype="float32").new_done == 0


def test_a_source_of_other_images_is_refused(workplace: Path, tmp_path: Path) -> None:
    """Once the source has other images, the cache must be begun again, and --fresh does so."""
    library.fuse(workplace / "feats.h5", tmp_path / "out.h5")
    more = tmp_path / "images"
    shutil.copytree(workplace / "images", more)
    shutil.copy(more / "class0" / "00.png", more / "class0" / "zz.png")
    assert vggfeat("extract", more, *WIDE, "--out", "f.h5", cwd=tmp_path).returncode == 0
    done = vggfeat("fuse", "f.h5", "--out", "out.h5", cwd=tmp_path)
    assert_one_line(done, 5, "has 13 images, not those 14")
    assert vggfeat("fuse", "f.h5", "--out", "out.h5", "--fresh", cwd=tmp_path).returncode == 0
    assert len(library.open(tmp_path / "out.h5")) == 14


def test_a_row_that_failed_and_is_done_since_loses_its_reason(
    workplace: Path, tmp_path: Path
) -> None:
    """Once the source has a row that had failed, so has the fused cache, without a reason."""
    shutil.copy(workplace / "feats.h5", tmp_path / "f.h5")
    library.fuse(tmp_path / "f.h5", tmp_path / "o.h5")
    row = library.open(tmp_path / "f.h5").row("class0/broken.png")
    with h5py.File(tmp_path / "f.h5", "r+") as file:
        file["images/state"][row] = 1
        file["images/error"][row] = b""
        for layer in file["features"].values():
            layer[row] = 1
    assert library.fuse(tmp_path / "f.h5", tmp_path / "o.h5").done == 13
    assert library.open(tmp_path / "o.h5").failures() == []
    assert library.verify(tmp_path / "o.h5").bad == ()


def test_new_images_come_in_and_what_is_there_stays(workplace: Path, tmp_path: Path) -> None:
    """`--update` takes over rows that are as they were, does new and changed ones, drops others."""
    images = tmp_path / "images"
    shutil.copytree(workplace / "images", images)
    extract: list[str | Path] = ["extract", images, *WIDE, "--out", "f.h5"]
    fuse: list[str | Path] = ["fuse", "f.h5", "--norm", "standard", "--dtype", "int8", "--out"]
    assert vggfeat(*extract, cwd=tmp_path).returncode == 0
    assert vggfeat(*fuse, "o.h5", cwd=tmp_path).returncode == 0
    before = library.open(tmp_path / "o.h5")
    old = {before.name(row): before["concat"][row].tobytes() for row in range(len(before))}
    model = (tmp_path / "o.model.h5").read_bytes()
    (images / "class1" / "01.png").unlink()
    shutil.copy(images / "class0" / "00.png", images / "class0" / "00a.png")
    shutil.copy(images / "class0" / "03.png", images / "class2" / "02.png")
    assert vggfeat(*extract, "--update", cwd=tmp_path).returncode == 0
    assert_one_line(vggfeat(*fuse, "o.h5", cwd=tmp_path), 5, "--update brings it in line")
    done = vggfeat(*fuse, "o.h5", "--update", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 rows in" in done.stdout
    after, source = library.open(tmp_path / "o.h5"), library.open(tmp_path / "f.h5")
    assert np.array_equal(after.paths, source.paths)
    assert np.array_equal(after.state, source.state)
    new = {after.name(row): after["concat"][row].tobytes() for row in range(len(after))}
    changed = {name for name in new if new[name] != old.get(name)}
    assert changed == {"class0/00a.png", "class2/02.png"}
    assert new["class2/02.png"] == new["class0/03.png"]
    assert (tmp_path / "o.model.h5").read_bytes() == model
    assert library.verify(tmp_path / "o.h5").bad == ()
    done = vggfeat(*fuse, "o.h5", "--update", "--fresh", cwd=tmp_path)
    assert_one_line(done, 2, "without --update")


def test_killed_at_any_time_it_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    """Runs killed over and over end in the same file as one that was left alone."""
    write_images(tmp_path / "images", 2)
    assert vggfeat("extract", "images", *WIDE, "--out", "small.h5", cwd=tmp_path).returncode == 0
    blow_up(tmp_path / "small.h5", tmp_path / "feats.h5", 60_000)
    words: list[str | Path] = ["fuse", "feats.h5", "--dtype", "int8", "--quiet", "--out"]
    assert vggfeat(*words, "whole.h5", cwd=tmp_path).returncode == 0
    noise, kills = np.random.default_rng(3), 0
    for _ in range(12):
        run = subprocess.Popen([sys.executable, "-m", "vggfeat", *words, "cut.h5"], cwd=tmp_path)
        time.sleep(noise.uniform(0.3, 1.6))
        run.send_signal(signal.SIGKILL)
        kills += run.wait() == -signal.SIGKILL
        if (tmp_path / "cut.h5").exists():
            assert library.verify(tmp_path / "cut.h5").bad == ()
    assert kills
    assert vggfeat(*words, "cut.h5", cwd=tmp_path).returncode == 0
    assert contents(tmp_path / "cut.h5") == contents(tmp_path / "whole.h5")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--layers", "conv1_1"], 2, "two layers or more, found conv1_1"),
        (["--layers", "conv1_1,conv3_1"], 2, "no vectors of conv3_1"),
        (["--method", "mean"], 2, "unknown method 'mean'"),
        (["--method", "attention"], 2, "attention is learnt"),
        (["--method", "sum"], 2, "unequal width cannot be added: conv1_1 64, conv2_1:max 128"),
        (["--width", "4"], 2, "--width belongs to the method sum"),
        (["--weights", "1,2"], 2, "concat takes no weights"),
        (["--method", "weighted", "--weights", "1"], 2, "1 weight for 2 layers"),
        (["--method", "weighted", "--weights", "1,-1"], 2, "must be numbers of 0 or more"),
        (["--method", "weighted", "--weights", "a,b"], 2, "are no numbers"),
        (["--labels", "folders"], 2, "concat has no weights to learn"),
        (["--method", "weighted", "--labels", "folders", "--weights", "1,2"], 2, "given or learnt"),
        (["--method", "weighted", "--labels", "gone.csv"], 3, "gone.csv"),
        (["--method", "sum", "--width", "40"], 2, "40"),
        (["--name", "a/b"], 2, "name 'a/b' must be"),
        (["--dtype", "int4"], 2, "unknown dtype 'int4'"),
        (["--use", "gone.h5"], 3, "gone.h5' does not exist"),
        (["--use", "gone.h5", "--method", "sum"], 2, "give it without --method"),
    ],
)
def test_bad_requests_are_one_line(
    workplace: Path, tmp_path: Path, words: list[str], code: int, says: str
) -> None:
    """Each mistake names what, what was expected and found, and leaves nothing behind."""
    done = vggfeat("fuse", workplace / "feats.h5", *words, "--out", "out.h5", cwd=tmp_path)
    assert_one_line(done, code, says)
    assert not [path.name for path in tmp_path.iterdir() if path.suffix == ".h5"]


def test_the_source_is_never_the_output(workplace: Path, tmp_path: Path) -> None:
    """A cache is not fused into itself, whatever it is called."""
    shutil.copy(workplace / "feats.h5", tmp_path / "feats.h5")
    (tmp_path / "link.h5").symlink_to("feats.h5")
    before = (tmp_path / "feats.h5").read_bytes()
    for out in ("feats.h5", "link.h5"):
        done = vggfeat("fuse", "feats.h5", "--out", out, "--fresh", cwd=tmp_path)
        assert_one_line(done, 2, "is the cache that is read")
    assert (tmp_path / "feats.h5").read_bytes() == before


def examples(kind: str, seed: int = 0) -> Examples:
    """Two layers of unit vectors: one tells the groups, the other is noise; or each for half."""
    noise = np.random.default_rng(seed)
    groups = np.repeat(np.arange(20), 8)
    centres = noise.normal(size=(20, 16))
    good = normalize(centres[groups] + 0.8 * noise.normal(size=(160, 16)))
    bad = normalize(noise.normal(size=(160, 24)))
    layers = {"good": good, "bad": bad}
    if kind == "mixed":  # a mark in each layer says whether it is of use for this image
        half = np.arange(160) % 2 == 0
        mark = np.where(half, 1.0, -1.0)[:, None]
        swapped = normalize(noise.normal(size=(160, 16)))
        centres_too = normalize(centres[groups] @ noise.normal(size=(16, 24)))
        layers = {
            "good": np.hstack([np.where(half[:, None], good, swapped), mark]),
            "bad": np.hstack([np.where(half[:, None], bad, centres_too), -mark]),
        }
    return Examples({name: x.astype(np.float32) for name, x in layers.items()}, groups)


def untrained(method: Any, given: Examples) -> Fusion:
    widths = {name: x.shape[1] for name, x in given.layers.items()}
    return Fusion(Recipe(method, tuple(given.layers)), widths, method)


@pytest.mark.parametrize("method", ["weighted", "attention"])
@pytest.mark.parametrize("by_group", [True, False])
def test_learning_finds_the_layer_that_tells_the_groups(method: str, by_group: bool) -> None:
    """The layer of noise loses its weight, and images held out find each other better."""
    given = examples("one")
    learnt = learn(untrained(method, given), given, by_group=by_group, device="cpu")
    assert learnt.mean_weights["good"] > 0.75
    assert learnt.after > learnt.before + 0.02
    again = learn(untrained(method, given), given, by_group=by_group, device="cpu")
    assert again.mean_weights == learnt.mean_weights


def test_attention_weighs_each_image_by_itself() -> None:
    """Where the layer of use differs by image, attention finds it and fixed weights cannot."""
    given = examples("mixed")
    fixed = learn(untrained("weighted", given), given, by_group=False, device="cpu")
    each = learn(untrained("attention", given), given, by_group=False, device="cpu")
    assert each.fusion.attention is not None
    weights = each.fusion.attention.weights(given.layers)
    of_use = np.where(np.arange(160) % 2 == 0, weights[:, 0], weights[:, 1])
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
    assert of_use.mean() > 0.7
    assert each.after > fixed.after


def test_the_fusion_is_what_was_trained() -> None:
    """NumPy's application of learnt attention is torch's own formula."""
    given = examples("mixed")
    attention = learn(untrained("attention", given), given, by_group=False, device="cpu").fusion
    assert attention.attention is not None
    parts = {name: torch.from_numpy(x) for name, x in given.layers.items()}
    parts = {name: torch.nn.functional.normalize(x) for name, x in parts.items()}
    gates = attention.attention.gates
    scores = torch.stack([parts[name] @ torch.from_numpy(gates[name]) for name in parts], 1)
    weights = (scores + torch.from_numpy(attention.attention.bias)).softmax(1).sqrt()
    joined = torch.cat([x * weights[:, at, None] for at, x in enumerate(parts.values())], 1)
    found = attention(given.layers)["attention"]
    np.testing.assert_allclose(found, torch.nn.functional.normalize(joined).numpy(), atol=1e-5)


def test_attention_without_learning_is_the_concatenation() -> None:
    """Gates of 0 are equal weights, which is the plain concatenation of unit vectors."""
    given = examples("one")
    gates = {name: np.zeros(x.shape[1], np.float32) for name, x in given.layers.items()}
    attention = Attention(gates, np.zeros(2, np.float32))
    plain = untrained("concat", given)(given.layers)["concat"]
    recipe = Recipe("attention", tuple(given.layers))
    fusion = Fusion(recipe, {name: len(g) for name, g in gates.items()}, "a", attention=attention)
    np.testing.assert_allclose(fusion(given.layers)["a"], plain, atol=1e-6)


def test_the_loss_is_that_of_the_paper() -> None:
    """Khosla et al.'s equation 2, written out with loops."""
    noise = torch.Generator().manual_seed(0)
    z = torch.nn.functional.normalize(torch.randn(9, 5, generator=noise))
    groups = torch.tensor([0, 0, 1, 1, 1, 2, 3, 3, 0])
    total = []
    for i in range(9):
        others = [a for a in range(9) if a != i]
        same = [p for p in others if groups[p] == groups[i]]
        if same:
            down = torch.logsumexp(torch.stack([z[i] @ z[a] / 0.1 for a in others]), 0)
            total.append(-torch.stack([z[i] @ z[p] / 0.1 - down for p in same]).mean())
    assert float(contrastive_loss(z, groups, 10.0)) == pytest.approx(
        float(torch.stack(total).mean())
    )


def test_equal_weights_stay_unless_others_are_better() -> None:
    """Where equal weights already find everything, a lower loss is no reason to change them."""
    noise = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 8)
    far, near = (normalize(noise.normal(size=(20, 16)))[groups] for _ in range(2))
    layers = {"far": far, "near": normalize(5 * np.ones(16) + near)}
    layers = {name: x + 0.01 * noise.normal(size=x.shape) for name, x in layers.items()}
    given = Examples({name: x.astype(np.float32) for name, x in layers.items()}, groups)
    learnt = learn(untrained("weighted", given), given, by_group=False, device="cpu")
    assert learnt.before == learnt.after == 1
    assert learnt.mean_weights == {"far": 0.5, "near": 0.5}


def test_too_little_to_learn_from_is_an_error() -> None:
    """Without groups to judge by, nothing is learnt."""
    given = examples("one")
    few = given.take(np.array([0, 1, 8, 9]))
    with pytest.raises(InputError, match=r"cannot be split to learn from some and judge by others"):
        learn(untrained("weighted", few), few, by_group=True, device="cpu")


def test_a_learnt_model_is_saved_used_again_and_applied(workplace: Path, tmp_path: Path) -> None:
    """Learnt weights are kept beside the cache, taken up by the same command, and fit others."""
    images = tmp_path / "images"
    for number in range(24):
        place = images / f"class{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(workplace / "images" / f"class{number % 3}" / f"{number % 12:02}.png",
                    place / f"{number:02}.png")  # fmt: skip
    assert vggfeat("extract", images, *WIDE, "--out", "f.h5", cwd=tmp_path).returncode == 0
    words: list[str | Path] = [
        "fuse",
        "f.h5",
        "--method",
        "attention",
        "--labels",
        "folders",
        "--out",
        "a.h5",
    ]
    done = vggfeat(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "held out, mean average precision" in done.stdout
    assert (tmp_path / "a.model.h5").exists()
    written = (tmp_path / "a.model.h5").stat().st_mtime_ns
    assert "nothing left to do" in vggfeat(*words, cwd=tmp_path).stdout
    assert (tmp_path / "a.model.h5").stat().st_mtime_ns == written
    done = vggfeat("fuse", "f.h5", "--use", "a.model.h5", "--out", "b.h5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "a.h5") == contents(tmp_path / "b.h5")
    other = [*words[:2], "--method", "weighted", *words[4:]]
    assert_one_line(vggfeat(*other, cwd=tmp_path), 5, "fitted to something else: method")
    seeded = ["random:1" if word == "random:0" else word for word in WIDE]
    assert vggfeat("extract", images, *seeded, "--out", "g.h5", cwd=tmp_path).returncode == 0
    done = vggfeat("fuse", "g.h5", "--use", "a.model.h5", "--out", "c.h5", cwd=tmp_path)
    assert_one_line(done, 5, "weights_sha256")


def test_weights_are_learnt_from_altered_pairs(tmp_path: Path) -> None:
    """Caches of altered versions of the same images serve as pairs."""
    images = write_images(tmp_path / "images", 30)
    base: list[str | Path] = ["extract", images, *WIDE, "--out"]
    assert vggfeat(*base, "f.h5", cwd=tmp_path).returncode == 0
    assert vggfeat(*base, "m.h5", "--augment", "mirror", cwd=tmp_path).returncode == 0
    words: list[str | Path] = [
        "fuse",
        "f.h5",
        "--method",
        "weighted",
        "--pairs",
        "m.h5",
        "--out",
        "w.h5",
        "--json",
    ]
    done = vggfeat(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    notes = json.loads(done.stdout)["notes"]
    assert "learnt from 48 images; on 12 held out" in notes[0]
    for name in ("f", "m"):  # made in one way, though of other images
        joined = vggfeat("fuse", f"{name}.h5", "--out", f"{name}_joined.h5", cwd=tmp_path)
        assert joined.returncode == 0, joined.stderr
    found = vggfeat("compare", "f_joined.h5", "--queries", "m_joined.h5", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    bad: list[str | Path] = ["extract", images, *WIDE, "--layers", "conv1_1", "--out", "n.h5"]
    assert vggfeat(*bad, cwd=tmp_path).returncode == 0
    done = vggfeat(*words[:5], "n.h5", "--out", "x.h5", cwd=tmp_path)
    assert_one_line(done, 5, "it has no conv2_1:max")


def test_a_model_file_keeps_what_it_is_given(tmp_path: Path) -> None:
    """Saved and loaded, a model has the same numbers and digest; another has another."""
    arrays = {"a b": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.asarray(7)}
    fitted = Fitted("fuse", {"x": [1, 2]}, arrays)
    save_fitted(str(tmp_path / "m.h5"), fitted)
    back = load_fitted(str(tmp_path / "m.h5"), "fuse")
    assert back.sha256 == fitted.sha256
    assert np.array_equal(back.arrays["a b"], arrays["a b"])
    assert Fitted("fuse", {"x": [1, 3]}, arrays).sha256 != fitted.sha256
    assert Fitted("fuse", {"x": [1, 2]}, {**arrays, "n": np.asarray(8)}).sha256 != fitted.sha256
    assert [path.name for path in tmp_path.iterdir()] == ["m.h5"]


def save_model_of(path: Path, version: int) -> None:
    save_fitted(str(path), Fitted("fuse", {}, {}))
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = version


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: path.write_bytes(b"no HDF5"), r"damaged, or no HDF5"),
        (lambda path: h5py.File(path, "w").close(), r"is no model of ours"),
        (lambda path: save_fitted(str(path), Fitted("reduce", {}, {})), r"made by vggfeat reduce"),
        (
            lambda path: save_model_of(path, 3),
            r"^model '.*' has format version 3, this vggfeat reads 1 and 2; upgrade it$",
        ),
        (
            lambda path: save_model_of(path, 0),
            r"^model '.*' has format version 0, this vggfeat reads 1 and 2; the file is damaged$",
        ),
    ],
)
def test_files_that_are_no_model_are_refused(
    tmp_path: Path, make: Callable[[Path], object], says: str
) -> None:
    """Anything else in place of a model is one clear error."""
    make(tmp_path / "m.h5")
    with pytest.raises(CacheError, match=says):
        load_fitted(str(tmp_path / "m.h5"), "fuse")


def test_settings_and_a_model_are_not_given_together(workplace: Path, tmp_path: Path) -> None:
    """A model has its own settings."""
    with pytest.raises(UsageError, match=r"has its own settings"):
        library.fuse(workplace / "feats.h5", tmp_path / "o.h5", FuseSettings(), use="m.h5")


def test_a_cache_made_another_way_is_refused(workplace: Path, tmp_path: Path) -> None:
    """The same output with another recipe is not mixed."""
    library.fuse(workplace / "feats.h5", tmp_path / "o.h5")
    with pytest.raises(CacheMismatchError, match=r"fuse method: file concat, requested weighted"):
        library.fuse(workplace / "feats.h5", tmp_path / "o.h5", FuseSettings(method="weighted"))
    with pytest.raises(CacheMismatchError, match=r"dtype: file float16, requested float32"):
        library.fuse(workplace / "feats.h5", tmp_path / "o.h5", dtype="float32")


def test_maps_are_not_fused(workplace: Path, tmp_path: Path) -> None:
    """Layers kept as maps are refused, in a cache and on the fly."""
    words: list[str | Path] = [
        "extract",
        workplace / "images",
        *WIDE,
        "--layers",
        "conv1_1:map,conv2_1",
    ]
    assert_one_line(
        vggfeat(*words, "--fuse", "concat", "--out", "x.h5", cwd=tmp_path), 2, "keep maps"
    )
    assert vggfeat(*words, "--out", "m.h5", cwd=tmp_path).returncode == 0
    done = vggfeat("fuse", "m.h5", "--layers", "conv1_1:map,conv2_1", "--out", "y.h5", cwd=tmp_path)
    assert_one_line(done, 2, "no vectors of conv1_1:map")


def test_rows_that_come_out_infinite_fail(workplace: Path, tmp_path: Path) -> None:
    """A row of which no number can be made is failed with its reason and not stored."""
    shutil.copy(workplace / "feats.h5", tmp_path / "f.h5")
    with h5py.File(tmp_path / "f.h5", "r+") as file:
        file["features/conv1_1"][6] = np.inf
    derived = library.fuse(tmp_path / "f.h5", tmp_path / "o.h5")
    assert (derived.done, derived.failed) == (11, 2)
    reasons = [failure.reason for failure in library.open(tmp_path / "o.h5").failures()]
    assert "fuse gave values that are not finite" in reasons


def test_fitting_reads_only_rows_that_are_done(workplace: Path) -> None:
    """What a failed row holds has no part in a fit."""
    cache = library.open(workplace / "feats.h5")
    recipe = Recipe("concat", LAYERS, norm="standard")
    fusion = fit_fusion(cache, recipe)
    right = StandardScaler().fit(rows_of(workplace / "feats.h5")["conv1_1"])
    np.testing.assert_allclose(fusion.standard["conv1_1"].mean, right.mean_, rtol=1e-4)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of many rows, which takes a while."""
    folder = tmp_path_factory.mktemp("large")
    write_images(folder / "images", 2)
    assert vggfeat("extract", "images", *WIDE, "--out", "small.h5", cwd=folder).returncode == 0
    blow_up(folder / "small.h5", folder / "feats.h5", 400_000)
    return folder


def test_a_signal_ends_a_run_that_then_goes_on(large: Path, tmp_path: Path) -> None:
    """After SIGINT the run says how far it came, ends with 130, and the same command goes on."""
    words = ["fuse", str(large / "feats.h5"), "--norm", "ssr", "--out", "o.h5"]
    run = subprocess.Popen(
        [sys.executable, "-m", "vggfeat", *words], cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    while (
        not (tmp_path / "o.h5").exists() or not library.open(tmp_path / "o.h5")["concat"][0].any()
    ):
        time.sleep(0.01)
    run.send_signal(signal.SIGINT)
    out, error = run.communicate()
    assert run.returncode == 130, error
    assert "run the same command again to resume" in error
    assert " left" in out
    first = library.open(tmp_path / "o.h5")
    before = int(first.done.sum())
    assert 0 < before < 400_000
    done = vggfeat(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert library.open(tmp_path / "o.h5").done.all()
    assert f"{400_000 - before} rows" in done.stdout


def test_two_runs_do_not_write_one_file(large: Path, tmp_path: Path) -> None:
    """While one run holds the output, another leaves with exit 75."""
    words = ["fuse", str(large / "feats.h5"), "--out", "o.h5"]
    run = subprocess.Popen([sys.executable, "-m", "vggfeat", *words, "--quiet"], cwd=tmp_path)
    while not (tmp_path / "o.h5").exists():
        time.sleep(0.01)
    assert_one_line(vggfeat(*words, cwd=tmp_path), 75, "held by another run")
    assert run.wait() == 0
