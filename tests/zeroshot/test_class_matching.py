"""Classes that different files spell differently are the same in every command."""

from __future__ import annotations

import json
import unicodedata
from typing import TYPE_CHECKING

import numpy as np
import pytest
from command_line import assert_one_line, vggfeat
from PIL import Image
from zeroshot_caches import write_cache, write_vectors

import vggfeat as library
from vggfeat.cache.labels import labels_of
from vggfeat.errors import UsageError
from vggfeat.transforms.fuse import fuse
from vggfeat.transforms.settings import FuseSettings
from vggfeat.zeroshot.class_split import read_class_list, split_classes
from vggfeat.zeroshot.class_tree import read_tree

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("Zebra", "horse", "sea_lion", "tiger", "wolf", "yak")
PER_CLASS = 12


def features(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n, 8) around a centre for each class, and the vectors of the classes (6, 4)."""
    noise = np.random.default_rng(seed)
    vectors = noise.standard_normal((len(NAMES), 4)).astype(np.float32)
    centres = vectors @ noise.standard_normal((4, 8))
    rows = np.repeat(centres, PER_CLASS, axis=0)
    return (rows + 0.5 * noise.standard_normal(rows.shape)).astype(np.float32), vectors


PATHS = [f"{name}/{at:02}.png" for name in NAMES for at in range(PER_CLASS)]


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    """A cache with a folder for each class, and vectors of their names in lower case."""
    rows, vectors = features()
    write_cache(tmp_path / "f.h5", {"conv1_1": rows, "conv2_1": rows[:, ::-1].copy()}, PATHS)
    write_vectors(tmp_path / "v.csv", vectors, tuple(name.lower() for name in NAMES))
    return tmp_path


def fit(folder: Path, unseen: str, out: str = "m.h5", **given: str) -> library.ZeroShotModel:
    chosen = library.ZeroShotSettings(layers="conv1_1", unseen=unseen, held_out=0.0, **given)  # type: ignore[arg-type] # names of fields
    library.fit_zeroshot(folder / "f.h5", folder / "v.csv", folder / out, chosen)
    return library.ZeroShotModel.load(folder / out)


@pytest.mark.parametrize("unseen", ["zebra,sea lion", " ZEBRA ,Sea-Lion", "Zebra,sea_lion"])
def test_an_unseen_class_is_not_learnt_from_however_it_is_spelled(
    animals: Path, unseen: str
) -> None:
    """The unseen class is left out of learning, and the model is that of the folders' names."""
    model = fit(animals, unseen)
    assert model.names == ("horse", "tiger", "wolf", "yak", "Zebra", "sea_lion")
    assert model.seen.tolist() == [True] * 4 + [False] * 2
    right = fit(animals, "Zebra,sea_lion", "right.h5")
    np.testing.assert_array_equal(model.map, right.map)
    found = library.evaluate_zeroshot(animals / "m.h5", animals / "f.h5")
    assert (found.unseen_classes, found.unseen_images) == (2, 2 * PER_CLASS)


def test_labels_with_white_space_are_the_class(animals: Path) -> None:
    """A label " zebra" is the unseen class zebra; its images judge and are not learnt from."""
    lines = [f"{path}, {path.split('/')[0].lower()}" for path in PATHS]
    (animals / "labels.csv").write_text("\n".join(lines) + "\n")
    model = fit(animals, "zebra", labels=str(animals / "labels.csv"))
    assert "zebra" in model.names
    assert model.seen[model.names.index("zebra")] == np.False_
    assert len(model.trained) == 5 * PER_CLASS


def test_predict_and_evaluate_match_the_models_names(animals: Path) -> None:
    """Classes asked for, and folders of another cache, are found in any spelling."""
    fit(animals, "zebra")
    cache, model = animals / "f.h5", animals / "m.h5"
    told = library.predict_zeroshot(model, cache, classes="zebra,Sea Lion,ZEBRA")
    assert told.names == ("Zebra", "sea_lion")
    again = library.predict_zeroshot(model, cache, classes="zebra,yak", vectors=animals / "v.csv")
    assert again.names == ("Zebra", "yak")
    rows, _ = features()
    other = sorted(path.replace("Zebra", "zebra ") for path in PATHS)
    order = [PATHS.index(path.replace("zebra ", "Zebra")) for path in other]
    write_cache(animals / "other.h5", {"conv1_1": rows[order]}, other)
    judged = library.evaluate_zeroshot(model, animals / "other.h5")
    assert (judged.unseen_classes, judged.unseen_images) == (1, PER_CLASS)
    assert judged.figures == library.evaluate_zeroshot(model, cache).figures


def test_a_seen_class_under_another_name_is_refused(animals: Path) -> None:
    """Without its identifier n02391049_zebra is zebra: it would be learnt from, called unseen."""
    rows, vectors = features()
    paths = [path.replace("Zebra", "n02391049_zebra") for path in PATHS]
    order = np.argsort(paths)
    (animals / "f.h5").unlink()
    write_cache(animals / "f.h5", {"conv1_1": rows[order]}, sorted(paths))
    with pytest.raises(UsageError, match=r"'zebra' is 'n02391049_zebra'; name each as the labels"):
        fit(animals, "zebra,yak")
    assert fit(animals, "n02391049_zebra").names[-1] == "n02391049_zebra"
    # Two identifiers are two classes of one name, as ImageNet's cranes.
    write_vectors(animals / "v.csv", vectors, tuple(name.lower() for name in NAMES))
    assert len(fit(animals, "n00000001_zebra", "two.h5").names) == len(NAMES) + 1


def test_unseen_classes_without_images_are_said_with_what_is_near(animals: Path) -> None:
    """A misspelled class is no other: it is said that it has no images, and what looks like it."""
    with open(animals / "v.csv", "a", encoding="utf-8") as file:
        file.write("zebu,1,0,0,0\n")
    words = ["zeroshot", "fit", "f.h5", "--vectors", "v.csv", "--layer", "conv1_1"]
    done = vggfeat(*words, "--unseen", "zebu,yak", "--out", "m.h5", cwd=animals)
    assert done.returncode == 0, done.stderr
    assert "unseen classes without images here: 'zebu' (near: Zebra)" in done.stdout


def test_class_lists_hold_each_class_once(tmp_path: Path) -> None:
    """Of several spellings the first stays; a split finds the labels' own."""
    (tmp_path / "list.txt").write_text("Zebra\nzebra \n\n sea lion\nSea_Lion\n")
    assert read_class_list(tmp_path / "list.txt") == ("Zebra", "sea lion")
    found = split_classes(["a b", "cat", "d"], ["A_B", "CAT"], None)
    assert (found.seen, found.unseen) == (("a b", "cat"), ("d",))


def test_a_table_with_two_rows_for_one_class_is_refused(animals: Path) -> None:
    """Rows of a class that differ are no choice to make silently, unless one is exactly it."""
    (animals / "t.csv").write_text("Yak,1,2\nYAK,3,4\nwolf,1,1\nWolf,1,1\n")
    with pytest.raises(UsageError, match=r"'yak' may be 'Yak' or 'YAK', whose numbers differ"):
        library.class_vectors(animals / "t.csv", ["yak"])
    found = library.class_vectors(animals / "t.csv", ["Yak", "WOLF"])
    assert found.vectors.tolist() == [[1, 2], [1, 1]]
    np.savez(animals / "t.npz", names=["yak", "wolf", "yak"], vectors=np.eye(3))
    with pytest.raises(UsageError, match="'yak' occurs twice"):
        library.class_vectors(animals / "t.npz", ["yak"])
    np.savez(animals / "s.npz", names=[" yak ", "wolf"], vectors=np.eye(2))
    assert library.class_vectors(animals / "s.npz", ["Yak"]).vectors.tolist() == [[1, 0]]


def test_an_identifier_may_stand_in_front_of_either(tmp_path: Path) -> None:
    """Of the class or of its row; two identifiers are two classes, and rows may differ."""
    table = tmp_path / "t.csv"
    table.write_text(
        "001.Black_footed_Albatross,1,2\nlaysan albatross,3,4\nn02129165-SeaLion,5,6\n"
        "n02012849_crane,7,8\nn03126707_crane,9,9\n004.Groove-billed Ani,2,1\n"
    )
    names = ["Black footed Albatross", "002.Laysan_Albatross", "sea lion", "groove billed ani"]
    found = library.class_vectors(table, names)
    assert found.vectors.tolist() == [[1, 2], [3, 4], [5, 6], [2, 1]]
    assert found.found_as[0] == ("001.Black_footed_Albatross",)
    with pytest.raises(UsageError, match="'crane' may be 'n02012849_crane' or 'n03126707_crane'"):
        library.class_vectors(table, ["crane"])
    with pytest.raises(UsageError, match=r"none for 1 of 1 class: '007\.Black_footed_Albatross'"):
        library.class_vectors(table, ["007.Black_footed_Albatross"])
    (tmp_path / "tree.csv").write_text("001.Black_footed_Albatross,bird\nn1_crane,bird\n")
    tree = read_tree(tmp_path / "tree.csv")
    assert tree.find(["black-footed albatross"]) == ("001.Black_footed_Albatross",)


@pytest.mark.parametrize("suffix", [".csv", ".txt"])
def test_vectors_of_decomposed_names(tmp_path: Path, suffix: str) -> None:
    """A name typed finds the vector of the name as a Mac writes it, and the other way round."""
    forms = [unicodedata.normalize(form, "löwe") for form in ("NFC", "NFD")]
    for one, other in (forms, forms[::-1]):
        line = f"{other},1,2" if suffix == ".csv" else f"{other} 1 2"
        (tmp_path / f"v{suffix}").write_text(line + "\n", encoding="utf-8")
        found = library.class_vectors(tmp_path / f"v{suffix}", [one])
        assert found.vectors.tolist() == [[1, 2]]


def test_parents_of_a_tree_are_nodes_in_any_spelling(tmp_path: Path) -> None:
    """A parent spelled otherwise than its own line is no second root; a genus stays one."""
    lines = ["zebra,Equus", "horse,equus", "EQUUS,animal", "bison,Bison", "Bison,Animal"]
    (tmp_path / "tree.csv").write_text("child,parent\n" + "\n".join(lines) + "\n")
    tree = read_tree(tmp_path / "tree.csv")
    assert tree.lineage("zebra") == ("animal", "EQUUS", "zebra")
    assert tree.lineage("horse") == ("animal", "EQUUS", "horse")
    assert tree.lineage("bison") == ("animal", "Bison", "bison")


def test_labels_that_only_white_space_tells_apart_are_one_class(animals: Path) -> None:
    """Compare finds what it finds with clean labels, and white space alone is not worth a word."""
    clean = [f"{path},{path.split('/')[0]}" for path in PATHS]
    (animals / "clean.csv").write_text("\n".join(clean) + "\n")
    spaced = [line + " " * (at % 3) for at, line in enumerate(clean)]
    (animals / "spaced.csv").write_text("\n".join(spaced) + "\n")
    right = library.compare([animals / "f.h5"], labels=animals / "clean.csv")
    assert library.compare([animals / "f.h5"], labels=animals / "spaced.csv") == right
    assert right.classes == len(NAMES)
    assert right.notes == ()


def test_spellings_taken_for_one_class_are_said(animals: Path) -> None:
    """Case and joints too: one class, named by most images, with a warning and a note."""
    lines = [f"{path},{path.split('/')[0]}" for path in PATHS]
    lines[0], lines[25] = lines[0].lower().replace("zebra/", "Zebra/"), "sea_lion/01.png,Sea Lion"
    (animals / "labels.csv").write_text("\n".join(lines) + "\n")
    done = vggfeat("compare", "f.h5", "--labels", "labels.csv", cwd=animals)
    assert done.returncode == 0, done.stderr
    said = "labels taken for one class: 'Zebra', 'zebra' as 'Zebra'; 'Sea Lion', 'sea_lion' as"
    assert f"vggfeat: warning: {said} 'sea_lion'" in done.stderr
    plain = vggfeat("compare", "f.h5", cwd=animals)
    assert done.stdout == plain.stdout
    told = vggfeat("compare", "f.h5", "--labels", "labels.csv", "--json", cwd=animals)
    assert json.loads(told.stdout)["notes"] == [f"{said} 'sea_lion'"]


def test_fuse_learns_of_the_same_classes(animals: Path) -> None:
    """Weights learnt from labels are those of clean labels, and the notes say what was joined."""
    lines = [f"{path},{path.split('/')[0].upper() if at % 3 == 0 else path.split('/')[0]}"
             for at, path in enumerate(PATHS)]  # fmt: skip
    (animals / "labels.csv").write_text("\n".join(lines) + "\n")
    made = [
        fuse(animals / "f.h5", animals / f"{number}.h5",
             FuseSettings(method="weighted", labels=labels, device="cpu"))
        for number, labels in enumerate(["folders", str(animals / "labels.csv")])
    ]  # fmt: skip
    assert made[0].notes == tuple(note for note in made[1].notes if "one class" not in note)
    assert len(made[1].notes) == len(made[0].notes) + 1


def test_adapt_takes_spellings_for_one_class(tmp_path: Path) -> None:
    """Folders Cat and "cat " are one class to train on; the weights name it once."""
    noise = np.random.default_rng(0)
    for folder in ("Cat", "cat ", "dog"):
        (tmp_path / "images" / folder).mkdir(parents=True)
        for number in range(4):
            pixels = noise.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / folder / f"{number}.png")
    words = ["adapt", "images", "--model", "vgg11", "--weights", "random:0", "--size", "32",
             "--trainable", "conv1", "--epochs", "1", "--device", "cpu", "--workers", "0",
             "--out", "w.safetensors"]  # fmt: skip
    done = vggfeat(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "labels taken for one class: 'Cat', 'cat' as 'Cat'" in done.stderr
    told = vggfeat(*words, "--json", cwd=tmp_path)
    assert json.loads(told.stdout)["classes"] == ["Cat", "dog"]


def test_labels_of_folders_are_stripped(tmp_path: Path) -> None:
    """A folder "c1 " is the class c1; letters and signs that are classes stay apart."""
    paths = ["-1/a.png", "1/a.png", "A/a.png", "a/a.png", "c1 /a.png", "c1/b.png"]
    rows = np.zeros((len(paths), 8), np.float32)
    cache = library.open(write_cache(tmp_path / "f.h5", {"conv1_1": rows}, paths))
    found = labels_of(cache)
    assert found.names == ("-1", "1", "A", "a", "c1")
    assert found.classes.tolist() == [0, 1, 2, 3, 4, 4]


def test_one_unseen_class_that_is_seen_is_one_line(animals: Path) -> None:
    """The command refuses it with exit code 2."""
    words = ["zeroshot", "fit", "f.h5", "--vectors", "v.csv", "--layer", "conv1_1"]
    done = vggfeat(*words, "--unseen", "001_zebra", "--out", "m.h5", cwd=animals)
    assert_one_line(done, 2, "'001_zebra' is 'Zebra'")
    assert not (animals / "m.h5").exists()
