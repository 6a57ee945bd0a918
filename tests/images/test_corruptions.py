"""Fixed corruptions: each against another library, all of them as properties, and in whole runs."""

from __future__ import annotations

import io
import json
import re
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
from command_line import SMALL, assert_one_line, vggfeat, write_images
from hypothesis import given, settings
from hypothesis import strategies as st
from killing import contents
from PIL import Image
from places import REPOSITORY
from skimage.filters import gaussian
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as reference

import vggfeat as library
from vggfeat.config import make_settings
from vggfeat.core.preprocessing import CORRUPTIONS, Preprocess, parse_corruptions
from vggfeat.core.settings import Settings
from vggfeat.errors import DecodeError, UsageError
from vggfeat.images import corruptions as module
from vggfeat.images.corruptions import corrupt
from vggfeat.images.decode import decode

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from vggfeat.core.preprocessing import Corruption

    Pixels = NDArray[np.uint8]

CUT = ("crop", "zoom", "rotate")
LIMIT = 10_000_000


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours with some noise, in which a wrong pixel shows."""
    rng = np.random.default_rng([width, height, seed])
    small = rng.integers(0, 256, (min(height, 9), min(width, 9), 3), np.uint8)
    smooth = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))
    noise = rng.integers(-20, 21, smooth.shape)
    return Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8))


def pixels(image: Image.Image, *names: Corruption) -> Pixels:
    return np.asarray(corrupt(image, names))


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


REFERENCES: dict[Corruption, Callable[[Image.Image], Image.Image]] = {
    "mirror": reference.hflip,
    "flip": reference.vflip,
    "grey": lambda image: reference.rgb_to_grayscale(image, num_output_channels=3),
    "invert": reference.invert,
    "darken": lambda image: reference.adjust_brightness(image, 0.5),
    "crop": lambda image: reference.center_crop(image, [84, 140]),
    "zoom": lambda image: reference.center_crop(image, [40, 68]),
    "rotate": lambda image: reference.center_crop(
        reference.rotate(image, 15, InterpolationMode.BILINEAR), [84, 142]
    ),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_as_torchvision_does_it(name: Corruption) -> None:
    """What torchvision can do as well comes out the same, pixel for pixel."""
    image = picture(200, 120)
    np.testing.assert_array_equal(pixels(image, name), np.asarray(REFERENCES[name](image)))


def test_rotation_shows_no_corner_and_little_less_than_it_could() -> None:
    """White stays white all over, and with two pixels more on each side it would not."""
    for width, height in ((300, 200), (201, 301), (64, 640), (97, 97)):
        white = Image.new("RGB", (width, height), "white")
        kept = pixels(white, "rotate")
        assert kept.min() == 255
        rows, columns = kept.shape[:2]
        assert abs(columns * height - rows * width) <= 2 * max(width, height)
        turned = white.rotate(15, Image.Resampling.BILINEAR)
        wider = reference.center_crop(turned, [rows + 4, columns + 4])
        assert np.asarray(wider).min() == 0


def test_recolouring_multiplies_the_channels() -> None:
    """Each channel is its factor times the value, to the nearest, at most white."""
    image = picture(80, 60)
    exact = np.minimum(np.asarray(image) * np.array([1.2, 0.9, 0.7]), 255)
    assert np.abs(pixels(image, "recolour") - exact).max() <= 0.5 + 1e-9


@pytest.mark.parametrize(("side", "sigma"), [(60, 1.0), (300, 3.0)])
def test_blur_is_gaussian(side: int, sigma: float) -> None:
    """The blur is scikit-image's of 1 % of the shorter side, or of 1 pixel, to a few levels."""
    image = picture(side + 40, side)
    exact = gaussian(  # type: ignore[no-untyped-call] # scikit-image has no types
        np.asarray(image), sigma, mode="nearest", preserve_range=True, channel_axis=2, truncate=6
    )
    error = np.abs(pixels(image, "blur") - exact)
    assert error.mean() < 0.6
    assert error.max() < 5
    assert np.abs(np.asarray(image) - exact).mean() > 5


def noise_of(grey: int, width: int = 400, height: int = 300) -> NDArray[np.int64]:
    flat = Image.new("RGB", (width, height), (grey, grey, grey))
    return pixels(flat, "noise").astype(int) - grey


def test_noise_is_normal_with_a_deviation_of_25() -> None:
    """Mean 0, deviation 25, the normal distribution's shares within one, two and three of it."""
    noise = noise_of(128)
    assert abs(noise.mean()) < 0.2
    assert abs(noise.std() - 25) < 0.2
    for levels, share in ((25.5, 0.6923), (50.5, 0.9566), (75.5, 0.9975)):
        assert abs((np.abs(noise) < levels).mean() - share) < 0.005
    assert np.abs(np.corrcoef(noise.reshape(-1, 3).T) - np.eye(3)).max() < 0.02
    beside = np.corrcoef(noise[:, :-1].ravel(), noise[:, 1:].ravel())[0, 1]
    assert abs(beside) < 0.02


def test_noise_is_the_pictures_own() -> None:
    """The same pixels have the same noise, others of the same size another one."""
    np.testing.assert_array_equal(noise_of(128), noise_of(128))
    assert abs(np.corrcoef(noise_of(128).ravel(), noise_of(129).ravel())[0, 1]) < 0.02


def test_noise_of_a_large_image_is_made_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """How many values are made at once changes none."""
    image = picture(57, 33)
    whole = pixels(image, "noise")
    monkeypatch.setattr(module, "_AT_ONCE", 100)
    np.testing.assert_array_equal(pixels(image, "noise"), whole)


def test_noise_ends_at_black_and_white() -> None:
    """Values beyond the range are set to its end, and do not come around."""
    assert noise_of(0).min() == 0
    assert 0.45 < (noise_of(0) == 0).mean() < 0.55
    assert noise_of(255).max() == 0


def test_jpeg_is_pillows_of_quality_ten() -> None:
    """The pixels are those of a JPEG file of quality 10."""
    image = picture(120, 90)
    data = saved(image, "JPEG", quality=10, subsampling=2)
    np.testing.assert_array_equal(pixels(image, "jpeg"), np.asarray(Image.open(io.BytesIO(data))))


def test_jpeg_of_an_image_with_a_long_comment() -> None:
    """A comment that no JPEG can hold costs nothing."""
    image = picture(40, 30)
    image.info["comment"] = b"x" * 100_000
    image.info["icc_profile"] = b"x" * 100_000
    np.testing.assert_array_equal(pixels(image, "jpeg"), pixels(picture(40, 30), "jpeg"))
    assert len(image.info["comment"]) == 100_000


def test_jpeg_of_an_image_that_is_too_long() -> None:
    """What no JPEG can hold fails as any bad image does, with both sides and the limit."""
    data = saved(Image.new("RGB", (65_501, 2)), "PNG")
    wanted = Preprocess(size=32, resize=None, crop="squash", augment=("jpeg",))
    with pytest.raises(DecodeError, match=r"^corruption jpeg: 65501 x 2 pixels; at most 65500 a"):
        decode(io.BytesIO(data), wanted, LIMIT)


@settings(deadline=None)
@given(width=st.integers(1, 60), height=st.integers(1, 60))
def test_shuffling_keeps_every_pixel_once(width: int, height: int) -> None:
    """The same pixels stand in an image of the same size, whether or not four divides it."""
    image = picture(width, height)
    shuffled, before = pixels(image, "shuffle"), np.asarray(image)
    assert shuffled.shape == before.shape
    assert sorted(shuffled.reshape(-1, 3).tolist()) == sorted(before.reshape(-1, 3).tolist())


def test_shuffling_destroys_the_layout() -> None:
    """No tile stays, in its row or in its column, nor beside one that it was beside; edges stay."""
    tiles = np.arange(1, 17, dtype=np.uint8).reshape(4, 4)
    picture = np.zeros((4 * 5 + 3, 4 * 7 + 2, 3), np.uint8)
    picture[:20, :28] = tiles.repeat(5, 0).repeat(7, 1)[..., None]
    shuffled = pixels(Image.fromarray(picture), "shuffle")
    found = shuffled[2:20:5, 3:28:7, 0].astype(int)
    np.testing.assert_array_equal(shuffled[:20, :28, 1], found.repeat(5, 0).repeat(7, 1))
    assert not shuffled[20:].any()
    assert not shuffled[:, 28:].any()
    rows, columns = np.divmod(found - 1, 4)
    here = np.indices((4, 4))
    assert (rows != here[0]).all()
    assert (columns != here[1]).all()
    for axis in (0, 1):
        distance = np.abs(np.diff(rows, axis=axis)) + np.abs(np.diff(columns, axis=axis))
        assert (distance > 1).all()


def test_occluding_hides_the_middle() -> None:
    """Half of either side is grey, the rest is as it was."""
    expected = np.array(picture(120, 80))
    expected[20:60, 30:90] = 128
    np.testing.assert_array_equal(pixels(picture(120, 80), "occlude"), expected)


@settings(deadline=None)
@given(
    names=st.lists(st.sampled_from(CORRUPTIONS), min_size=1, max_size=3),
    width=st.integers(1, 70),
    height=st.integers(1, 70),
)
def test_any_corruption_of_any_image(names: list[Corruption], width: int, height: int) -> None:
    """Corruptions repeat exactly, go in order, keep the size or cut, and leave their input."""
    image, twin = picture(width, height), picture(width, height)
    altered = corrupt(image, tuple(names))
    assert altered.mode == "RGB"
    assert 1 <= altered.width <= width
    assert 1 <= altered.height <= height
    if not set(names) & set(CUT):
        assert altered.size == image.size
    one_by_one = twin
    for name in names:
        one_by_one = corrupt(one_by_one, (name,))
    np.testing.assert_array_equal(np.asarray(altered), np.asarray(one_by_one))
    np.testing.assert_array_equal(np.asarray(image), np.asarray(picture(width, height)))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_corruption_alters(name: Corruption) -> None:
    """No name stands for doing nothing."""
    image = picture(64, 48)
    altered = pixels(image, name)
    assert altered.shape != (48, 64, 3) or (altered != np.asarray(image)).any()


def test_no_corruption_is_the_image_itself() -> None:
    """Without names nothing is copied."""
    image = picture(9, 9)
    assert corrupt(image, ()) is image


def test_the_table_of_the_documents_is_the_list() -> None:
    """Each corruption has its function and its line, in one order."""
    page = (REPOSITORY / "docs" / "IMAGES.md").read_text()
    section = page.partition("## Corruptions")[2].partition("\n## ")[0]
    assert tuple(re.findall(r"^\| `(\w+)`", section, flags=re.MULTILINE)) == CORRUPTIONS
    assert tuple(module._CORRUPTIONS) == CORRUPTIONS


@pytest.mark.parametrize(
    ("text", "names"),
    [("", ()), (" crop , mirror,", ("crop", "mirror")), ("blur,blur", ("blur", "blur"))],
)
def test_names_are_read_in_their_order(text: str, names: tuple[str, ...]) -> None:
    """Names keep their order and may repeat; blanks and empty parts count for nothing."""
    assert parse_corruptions(text) == names


def test_unknown_names_come_in_one_message() -> None:
    """Every unknown name is told, with the one it is close to, and what there is."""
    with pytest.raises(UsageError) as caught:
        parse_corruptions("mirorr,crop,sepia")
    assert str(caught.value) == (
        f"unknown augment 'mirorr', 'sepia'; expected one of {', '.join(CORRUPTIONS)} "
        "(did you mean mirror?)"
    )


def test_settings_name_a_wrong_corruption_beside_all_else() -> None:
    """Corruptions are checked with the other settings, all at once."""
    with pytest.raises(UsageError) as caught:
        Settings(layers="fc9", augment="sepia", size=3)
    for words in ("unknown augment 'sepia'", "size is 3", "'fc9'"):
        assert words in str(caught.value)
    with pytest.raises(UsageError, match=r"^augment is 3; expected text$"):
        Settings(layers="fc7", augment=3)  # type: ignore[arg-type] # the claim is that this fails


def test_settings_from_a_file(tmp_path: Path) -> None:
    """A TOML file gives corruptions as text or as a list; a flag overrides it, also with none."""
    for value in ('"crop,mirror"', '["crop", "mirror"]'):
        (tmp_path / "mine.toml").write_text(f'layers = "fc7"\naugment = {value}\n')
        made = make_settings(str(tmp_path / "mine.toml"), {"augment": None})
        assert made.as_dict()["augment"] == "crop,mirror"
        assert made.preprocess().augment == ("crop", "mirror")
        plain = make_settings(str(tmp_path / "mine.toml"), {"augment": ""})
        assert plain.preprocess() == Settings(layers="fc7").preprocess()


def test_only_corruptions_that_are_set_are_recorded() -> None:
    """What a file records without corruptions is what it did before there were any."""
    plain, altered = (
        Settings(layers="fc7", augment=text).preprocess() for text in ("", "blur,crop")
    )
    assert "augment" not in plain.recorded()
    assert json.loads(json.dumps(altered.recorded()))["augment"] == ["blur", "crop"]


@pytest.mark.parametrize("name", ["crop", "mirror", "noise", "shuffle"])
def test_the_upright_image_is_altered_before_it_is_resized(name: Corruption) -> None:
    """Decoding with a corruption is decoding the altered file, whatever the EXIF orientation."""
    image = picture(150, 100)
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = saved(image.rotate(90, expand=True), "PNG", exif=exif)
    plain, altered = Preprocess(size=64, resize=80), Preprocess(size=64, resize=80, augment=(name,))
    expected = decode(io.BytesIO(saved(corrupt(image, (name,)), "PNG")), plain, LIMIT)
    np.testing.assert_array_equal(decode(io.BytesIO(lying), altered, LIMIT), expected)


def test_fast_decoding_keeps_every_pixel_for_corruptions() -> None:
    """With a corruption a JPEG is not shrunk while it is decoded, as it is without."""
    data = saved(picture(1200, 900), "JPEG")

    def decoded(how: Any, *names: Corruption) -> Pixels:
        wanted = Preprocess(size=64, resize=64, decode=how, augment=names)
        return decode(io.BytesIO(data), wanted, LIMIT)

    assert (decoded("fast") != decoded("exact")).any()
    for names in (("zoom",), ("mirror",), ("noise", "crop")):
        np.testing.assert_array_equal(decoded("fast", *names), decoded("exact", *names))


def test_the_limit_of_pixels_holds_behind_corruptions() -> None:
    """A strip that becomes too large once its altered form is resized fails and says so."""
    data = saved(picture(900, 12), "PNG")
    wanted = Preprocess(size=64, resize=None, crop="none", augment=("zoom",))
    assert decode(io.BytesIO(data), wanted, 300 * 64 * 64).shape == (64, 4800, 3)
    with pytest.raises(DecodeError, match=r"too large once resized for crop none: 4800 x 64"):
        decode(io.BytesIO(data), wanted, 200 * 64)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, the same ones mirrored, and a cache of the first without corruption."""
    folder = tmp_path_factory.mktemp("corruptions")
    write_images(folder / "images", 4)
    (folder / "mirrored").mkdir()
    for path in (folder / "images").iterdir():
        turned = np.asarray(Image.open(path))[:, ::-1]
        Image.fromarray(turned).save(folder / "mirrored" / path.name)
    extract(folder, "images", "plain.h5")
    return folder


def extract(folder: Path, images: str, out: str, *more: str) -> None:
    done = vggfeat("extract", images, *SMALL, *more, "--out", out, cwd=folder)
    assert done.returncode == 0, done.stderr


def test_extracting_mirrored_is_extracting_the_mirrored_files(workplace: Path) -> None:
    """Features of `--augment mirror` are, to the byte, those of files mirrored before."""
    extract(workplace, "images", "altered.h5", "--augment", "mirror", "--workers", "2")
    extract(workplace, "mirrored", "files.h5")
    altered, files, plain = (
        library.open(workplace / f"{name}.h5") for name in ("altered", "files", "plain")
    )
    assert altered.layers == files.layers
    for layer in altered.layers:
        assert altered[layer].tobytes() == files[layer].tobytes()
        assert altered[layer].tobytes() != plain[layer].tobytes()
    np.testing.assert_array_equal(altered.paths, plain.paths)


def test_no_corruption_changes_nothing(workplace: Path) -> None:
    """`--augment ''` gives the file that no such option gives, and goes on with it."""
    extract(workplace, "images", "none.h5", "--augment", "")
    assert contents(workplace / "none.h5") == contents(workplace / "plain.h5")
    with h5py.File(workplace / "none.h5") as none, h5py.File(workplace / "plain.h5") as plain:
        assert none.attrs["fingerprint"] == plain.attrs["fingerprint"]
        assert none.attrs["preprocess"] == plain.attrs["preprocess"]
        assert "augment" not in json.loads(none.attrs["preprocess"])


def test_corruptions_do_not_mix_in_one_file(workplace: Path) -> None:
    """A file made without a corruption, or in another order, is refused with exit 5."""
    done = vggfeat(
        "extract", "images", *SMALL, "--augment", "crop", "--out", "plain.h5", cwd=workplace
    )
    assert_one_line(done, 5, "preprocess.augment: file (), requested ('crop',)")
    extract(workplace, "images", "both.h5", "--augment", "crop,mirror")
    extract(workplace, "images", "both.h5", "--augment", "crop, mirror")
    done = vggfeat(
        "extract", "images", *SMALL, "--augment", "mirror,crop", "--out", "both.h5", cwd=workplace
    )
    assert_one_line(
        done, 5, "preprocess.augment: file ('crop', 'mirror'), requested ('mirror', 'crop')"
    )


def test_an_unknown_corruption_is_wrong_usage(workplace: Path) -> None:
    """A name that is not known ends in exit 2 before anything is made."""
    done = vggfeat(
        "extract", "images", *SMALL, "--augment", "crpo", "--out", "no.h5", cwd=workplace
    )
    assert_one_line(done, 2, "unknown augment 'crpo'", "(did you mean crop?)")
    assert not (workplace / "no.h5").exists()


def test_inspect_shows_corruptions(workplace: Path) -> None:
    """The summary of a file names its corruptions, as words and as JSON; a dash where none."""
    extract(workplace, "images", "shown.h5", "--augment", "noise,zoom")
    words = {
        name: vggfeat("inspect", f"{name}.h5", cwd=workplace).stdout for name in ("shown", "plain")
    }
    assert ", augment noise/zoom\n" in words["shown"]
    assert ", augment -\n" in words["plain"]
    assert "mean 0.485/0.456/0.406" in words["shown"]
    told = vggfeat("inspect", "shown.h5", "--json", cwd=workplace).stdout
    assert json.loads(told)["preprocess"]["augment"] == ["noise", "zoom"]
    header = library.open(workplace / "shown.h5").header
    assert header.identity.preprocess.augment == ("noise", "zoom")


def test_an_image_that_cannot_be_altered_is_a_failed_row(tmp_path: Path) -> None:
    """A corruption that fails costs its image, and the row tells why."""
    write_images(tmp_path / "images", 1)
    Image.new("RGB", (66_000, 1)).save(tmp_path / "images" / "long.png")
    extract(tmp_path, "images", "f.h5", "--augment", "jpeg")
    (failure,) = library.open(tmp_path / "f.h5").failures()
    assert failure.reason.startswith("corruption jpeg: 66000 x 1 pixels")


def test_lists_of_corruptions_are_bounded() -> None:
    """An image is not corrupted thousands of times over."""
    assert len(parse_corruptions("mirror," * 32)) == 32
    with pytest.raises(UsageError, match=r"augment has 20000 corruptions; at most 32 are applied"):
        parse_corruptions("mirror," * 20_000)
