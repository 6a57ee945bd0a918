"""What newcomers mix up is answered by what it is and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from command_line import SMALL, assert_one_line, vggfeat, write_images
from safetensors.numpy import save_file

import vggfeat as library
from vggfeat.core.settings import Settings
from vggfeat.transforms.reduce import reduce
from vggfeat.transforms.settings import ReduceSettings

if TYPE_CHECKING:
    from pathlib import Path

SETTINGS = Settings(
    layers="conv1_1,conv2_1", model="vgg11", weights="random:0", size=32, device="cpu", workers=0
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, a cache of them, a fused one with its model, weights, a text, and an empty folder."""
    folder = tmp_path_factory.mktemp("mistakes")
    write_images(folder / "photos", 3)
    library.extract(folder / "photos", folder / "feats.h5", SETTINGS)
    standard = ReduceSettings(method="standard")
    reduce(folder / "feats.h5", folder / "reduced.h5", standard, save=folder / "model.h5")
    save_file({"a": np.zeros(2, np.float32)}, folder / "w.safetensors")
    (folder / "text.txt").write_text("words")
    (folder / "list.txt").write_text("never.jpg\n")
    (folder / "empty").mkdir()
    return folder


MISTAKES: dict[str, tuple[str, int, str]] = {
    "an image for a cache": (
        "inspect photos/00.png", 5, "'photos/00.png' is a PNG image, and no cache: `vggfeat extract"
    ),
    "weights for a cache": ("search w.safetensors photos/00.png", 5, "is a safetensors file"),
    "a model for a cache": (
        "duplicates model.h5", 5, "is a model that vggfeat fuse, reduce or zeroshot has fitted, and"
    ),
    "a cache for a query": (
        "search feats.h5 feats.h5 --layer conv1_1", 4, "'feats.h5': a cache of vggfeat, and no"
    ),
    "a query that never was": (
        "search feats.h5 @list.txt --layer conv1_1", 4, "'never.jpg': no such file"
    ),
    "a picture that never was": ("plot none.jpg --out p.png", 3, "no such file; expected an image"),
    "a photo that never was": ("trace none.jpg", 3, "photo 'none.jpg' cannot be read: no such"),
    "a folder for a photo": ("trace photos", 3, "photo 'photos' cannot be read: not a regular"),
    "the images' folder for the output": (
        "extract photos --out photos", 2, "such as '00.png', and no cache; name a file such as"
    ),
    "a folder of weights": (
        "extract photos --out a.h5 --weights photos", 3, "'photos' are a folder; name a file in it"
    ),
    "a folder for a model": (
        "reduce feats.h5 --out b.h5 --dims 1 --save photos", 2, "'photos' is a folder; expected a"
    ),
    "nothing that can be read": (
        "extract @list.txt --out c.h5", 4,
        "1 of 1 image failed; none is done. `vggfeat inspect c.h5` names it, with the reason",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_was_mixed_up_is_said(place: Path, mistake: str) -> None:
    """One line that names what was found in place of what was expected, and its exit code."""
    text, code, told = MISTAKES[mistake]
    words = text.split()
    small = [*SMALL] if words[0] == "extract" else []
    if "--weights" in words:
        small = [one for one in small if one not in ("--weights", "random:0")]
    done = vggfeat(*words, *small, cwd=place)
    assert_one_line(done, code, told)
    assert "gone since" not in done.stderr
    assert "were allowed" not in done.stderr


def test_labels_that_zeroshot_lacks_are_not_to_be_given_as_queries(place: Path) -> None:
    """`--queries` is of `compare` alone, and only its message offers it."""
    (place / "attr.csv").write_text("name,x\na,1\nb,0\n")
    fit = vggfeat("zeroshot", "fit", "feats.h5", "--vectors", "attr.csv", "--out", "z.h5",
                  cwd=place)  # fmt: skip
    assert_one_line(fit, 2, "give --labels FILE.csv")
    assert "--queries" not in fit.stderr
    assert "or --queries" in vggfeat("compare", "feats.h5", cwd=place).stderr


def test_an_image_that_was_listed_and_is_gone_says_so(tmp_path: Path) -> None:
    """Only of a file that was there when the images were listed."""
    images = library.ImageDataset(write_images(tmp_path / "photos", 2), SETTINGS)
    (tmp_path / "photos" / "01.png").unlink()
    assert images[1].reason == "no such file (gone since it was listed)"
