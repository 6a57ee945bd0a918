"""Settings, presets and TOML files, and the identity that decides on resuming."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from command_line import assert_one_line, vggfeat, write_images
from hypothesis import given
from hypothesis import strategies as st
from torchvision.models import VGG16_Weights

from vggfeat.cache.identity import Identity
from vggfeat.config import PRESETS, load_config
from vggfeat.core.preprocessing import Preprocess
from vggfeat.core.settings import LARGEST_SIZE, SETTING_NAMES, SMALLEST_SIZE, Settings
from vggfeat.core.vgg_layers import VARIANTS, layer_table
from vggfeat.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path


def settings(**values: Any) -> Settings:
    return Settings(**{"layers": "fc7", **values})


def refusal(**values: Any) -> str:
    with pytest.raises(UsageError) as caught:
        settings(**values)
    return str(caught.value)


def toml(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_layers_alone_are_enough() -> None:
    """Everything but the layers has a default, and the specs are parsed with the pool and norm."""
    made = settings(layers="relu5_3,fc7", pool="max", norm="l2")
    assert [str(spec) for spec in made.specs] == ["conv5_3:max:l2", "fc7:l2"]


def test_settings_are_frozen() -> None:
    """What was checked on construction cannot be changed behind the check."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings().size = 3  # type: ignore[misc]  # the claim is that this fails


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": "vgg20"}, "unknown model 'vgg20'; expected one of vgg11,"),
        ({"layers": ""}, "no layers requested"),
        ({"layers": "fc9"}, "layer 'fc9' is not in vgg19"),
        ({"layers": ["fc7", 8]}, "layers is ['fc7', 8]; expected text"),
        ({"model": 19}, "model is 19; expected text"),
        ({"weights": None}, "weights is None; expected text"),
        ({"pool": 3}, "pool is 3; expected text"),
        ({"pool": "mean"}, "default pool 'mean': unknown pool 'mean'; expected one of avg,"),
        ({"norm": "l3"}, "unknown norm 'l3'; expected one of none, l2, ssr"),
        ({"device": 0}, "device is 0; expected text"),
        ({"device": "gpu"}, "device 'gpu' is not known; expected auto, cpu, cuda[:N], several"),
        ({"device": "mps"}, "device 'mps' is not known; expected auto, cpu, cuda[:N], several"),
        ({"device": "cuda:"}, "device 'cuda:' is not known"),
        ({"transform": "cafe"}, "unknown transform 'cafe'; expected one of auto, imagenet"),
        ({"crop": "middle"}, "unknown crop 'middle'; expected one of center, none, pad"),
        ({"exif": "drop"}, "unknown exif 'drop'; expected one of apply, ignore"),
        ({"dtype": "int4"}, "unknown dtype 'int4'; expected one of float16, float32, int8"),
        ({"precision": "half"}, "unknown precision 'half'; expected one of auto, float32"),
        ({"precision": None}, "unknown precision None"),
        ({"size": 31}, "size is 31; expected a whole number from 32 to 4096"),
        ({"size": 4097}, "size is 4097; expected a whole number from 32 to 4096"),
        ({"size": "auto"}, "size is 'auto'; expected a whole number"),
        ({"size": 224.0}, "size is 224.0; expected a whole number"),
        ({"size": True}, "size is True; expected a whole number"),
        ({"resize": 31}, "resize is 31; expected a whole number from 32 to 8192"),
        ({"size": "big", "resize": 300}, "size is 'big'; expected a whole number"),
        ({"batch_size": 0}, "batch_size is 0; expected a whole number from 1 to 65536, or auto"),
        ({"batch_size": None}, "batch_size is None; expected a whole number"),
        ({"workers": -1}, "workers is -1; expected a whole number from 0 to 1024, or auto"),
        ({"workers": "many"}, "workers is 'many'; expected a whole number from 0 to 1024, or auto"),
        ({"max_pixels": 0}, "max_pixels is 0; expected a whole number from 1 to 1099511627776"),
        ({"max_pixels": None}, "max_pixels is None; expected a whole number"),
        ({"max_pixels": "auto"}, "max_pixels is 'auto'; expected a whole number"),
        ({"max_failures": "-1"}, "max_failures is '-1'; expected for example 100 or 1%"),
        ({"max_failures": "1.5"}, "max_failures is '1.5'; expected"),
        ({"max_failures": "%"}, "max_failures is '%'; expected"),
        ({"max_failures": "None"}, "max_failures is 'None'; expected"),
        ({"max_failures": 1.5}, "max_failures is 1.5; expected"),
        ({"checkpoint_seconds": -1}, "checkpoint_seconds is -1; expected a number from 0 to 3600"),
        ({"checkpoint_seconds": 3601}, "checkpoint_seconds is 3601; expected a number"),
        ({"checkpoint_seconds": "5"}, "checkpoint_seconds is '5'; expected a number"),
        ({"checkpoint_seconds": True}, "checkpoint_seconds is True; expected a number"),
        ({"checkpoint_seconds": float("nan")}, "checkpoint_seconds is nan; expected a number"),
        ({"crop": "pad", "resize": 256}, "resize 256 belongs to crop center; crop pad goes by"),
        ({"resize": 200}, "resize 200 is below size 224; the crop would show borders"),
        ({"size": 300, "resize": 299}, "resize 299 is below size 300"),
        (
            {"crop": "none", "layers": "conv5_3:map,fc7,pool5:flatten,pool5"},
            "conv5_3:map, pool5:flatten has a row size that varies with the image under crop none",
        ),
        (
            {"weights": "features"},
            "weights features exist for vgg16 only, not for vgg19; use model vgg16",
        ),
    ],
)  # fmt: skip
def test_each_wrong_setting_is_refused(values: dict[str, Any], message: str) -> None:
    """A setting that makes no sense is named with what was found and what was expected."""
    assert message in refusal(**values)


@pytest.mark.parametrize(
    "values",
    [
        {"size": SMALLEST_SIZE},
        {"size": LARGEST_SIZE, "resize": 2 * LARGEST_SIZE},
        {"resize": 224},
        {"batch_size": 1, "workers": 0},
        {"batch_size": "auto", "workers": "auto"},
        {"max_failures": "0"},
        {"max_failures": "0.5%"},
        {"checkpoint_seconds": 0},
        {"checkpoint_seconds": 0.25},
        {"device": "cuda:1"},
        {"crop": "none", "batch_size": 1, "layers": "conv5_3:spp,conv5_4:rmac,fc7"},
        {"crop": "pad", "layers": "conv5_3:map"},
        {"weights": "features", "model": "vgg16"},
    ],
    ids=str,
)
def test_the_limits_themselves_are_taken(values: dict[str, Any]) -> None:
    """The least, the most, and every documented word are settings."""
    made = settings(**values)
    assert {name: made.as_dict()[name] for name in values} == values


def test_all_wrong_settings_come_in_one_message() -> None:
    """Choices, numbers, texts and layers that are wrong are all named at once."""
    message = refusal(
        crop="middle", dtype="int4", size=3, workers=-1, device="gpu", layers="fc9,conv5_3:mean"
    )
    for words in (
        "crop 'mid",
        "dtype 'int4",
        "size is 3",
        "workers is -1",
        "device 'gpu'",
        "'fc9'",
    ):
        assert words in message
    assert "unknown pool 'mean'" in message
    assert len(message.split("; expected")) > 6


def test_all_wrong_combinations_come_in_one_message() -> None:
    """Settings that are right alone and wrong together are all named at once."""
    message = refusal(crop="none", resize=256, layers="conv5_3:map", weights="features")
    for words in (
        "resize 256 belongs",
        "conv5_3:map has",
        "weights features exist",
    ):
        assert words in message


@given(
    name=st.sampled_from(SETTING_NAMES),
    value=st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=8),
        st.lists(st.text(max_size=3), max_size=2),
    ),
)
def test_any_value_is_taken_or_refused(name: str, value: Any) -> None:
    """Whatever a TOML file may hold makes settings that work, or a usage error that names it."""
    try:
        made = settings(**{name: value})
    except UsageError as error:
        assert name in str(error) or name == "layers"  # noqa: PT017 some values are taken
        return
    assert made.preprocess().size >= SMALLEST_SIZE
    assert made.failures_allowed(10) >= 0


@pytest.mark.parametrize(
    ("allowance", "images", "allowed"),
    [
        (None, 1000, 1000),
        ("0", 1000, 0),
        ("12", 1000, 12),
        ("1%", 1000, 10),
        ("1%", 99, 0),
        ("0.5%", 1000, 5),
        ("29%", 100, 29),
        ("0.57%", 10_000, 57),
        ("100%", 3, 3),
        ("5%", 0, 0),
    ],
)
def test_failures_allowed(allowance: str | None, images: int, allowed: int) -> None:
    """An allowance is a number or an exact percentage rounded down; None is no limit."""
    assert settings(max_failures=allowance).failures_allowed(images) == allowed


def test_as_dict_is_json_and_makes_the_same_settings() -> None:
    """All settings by name survive JSON and construct an equal object."""
    made = settings(layers="conv5_3:spp(1,2),fc7", size=320, batch_size=8, max_failures="1%")
    assert Settings(**json.loads(json.dumps(made.as_dict()))) == made


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("imagenet", VGG16_Weights.IMAGENET1K_V1),
        ("features", VGG16_Weights.IMAGENET1K_FEATURES),
    ],
)
def test_preprocessing_is_torchvisions_own(name: str, weights: VGG16_Weights) -> None:
    """By default size, resize, mean and deviation are those of the weights' own transform."""
    own: Any = weights.transforms()
    made = settings(weights=name, model="vgg16").preprocess()
    assert [made.size] == own.crop_size
    assert [made.resize] == own.resize_size
    assert list(made.mean) == own.mean
    assert list(made.std) == pytest.approx(own.std, rel=1e-12)
    assert made.interpolation == own.interpolation.value


def test_default_preprocessing_is_the_default_settings() -> None:
    """The record's own defaults are what default settings come to: each default has one value."""
    assert settings().preprocess() == Preprocess()


@pytest.mark.parametrize(
    ("values", "size", "resize"),
    [
        ({}, 224, 256),
        ({"size": 448}, 448, 512),
        ({"size": 225}, 225, 257),
        ({"size": 32}, 32, 37),
        ({"resize": 224}, 224, 224),
        ({"size": 300, "resize": 340}, 300, 340),
        ({"crop": "none"}, 224, None),
        ({"crop": "pad", "size": 512}, 512, None),
        ({"crop": "squash"}, 224, None),
    ],
)
def test_size_and_resize(values: dict[str, Any], size: int, resize: int | None) -> None:
    """The shorter side grows in proportion to the size, and only the centre crop has one."""
    made = settings(**values).preprocess()
    assert (made.size, made.resize) == (size, resize)
    assert made.crop == values.get("crop", "center")


@given(size=st.integers(SMALLEST_SIZE, LARGEST_SIZE))
def test_default_resize_leaves_no_border(size: int) -> None:
    """Whatever the size, the resize that goes with it covers the crop."""
    resize = settings(size=size).preprocess().resize
    assert resize is not None
    assert resize >= size


def test_exif_is_handed_on() -> None:
    """The preprocessing knows whether the orientation is applied."""
    assert settings(exif="ignore").preprocess().exif == "ignore"


@pytest.mark.parametrize(
    ("weights", "transform", "fill"),
    [
        ("imagenet", "auto", (124, 116, 104)),
        ("features", "auto", (123, 117, 104)),
        ("random:1", "auto", (124, 116, 104)),
        ("mine.pth", "features", (123, 117, 104)),
        ("features", "imagenet", (124, 116, 104)),
    ],
)
def test_fill_is_the_mean_of_the_transform(
    weights: str, transform: str, fill: tuple[int, int, int]
) -> None:
    """Padding has the mean colour of the named transform, else of the weights' own."""
    made = settings(model="vgg16", weights=weights, transform=transform).preprocess()
    assert made.fill == fill


def test_every_value_of_a_file_arrives(tmp_path: Path) -> None:
    """A file's settings come as written, and make settings."""
    text = (
        'layers = "conv5_3:spp(1,2), fc7"\nmodel = "vgg16"\nsize = 320\nworkers = 0\n'
        'crop = "pad"\ncheckpoint_seconds = 2.5\nmax_failures = "1%"\n'
    )
    values = load_config(toml(tmp_path, text))
    assert values == {
        "layers": "conv5_3:spp(1,2), fc7",
        "model": "vgg16",
        "size": 320,
        "workers": 0,
        "crop": "pad",
        "checkpoint_seconds": 2.5,
        "max_failures": "1%",
    }
    assert [str(spec) for spec in Settings(**values).specs] == ["conv5_3:spp(1,2)", "fc7"]


def test_layers_may_be_a_list(tmp_path: Path) -> None:
    """A list of specs is the same as their text joined by commas."""
    values = load_config(toml(tmp_path, 'layers = ["conv5_3:spp(1,2)", "fc7"]'))
    assert values == {"layers": "conv5_3:spp(1,2),fc7"}


def test_failures_may_be_a_number(tmp_path: Path) -> None:
    """An allowance written as a TOML number means the same as in quotes."""
    values = load_config(toml(tmp_path, 'layers = "fc7"\nmax_failures = 12'))
    assert Settings(**values).failures_allowed(1000) == 12


@pytest.mark.parametrize("layers", ["[1, 2]", "7", '{ fc7 = "l2" }'])
def test_layers_of_another_type_are_a_usage_error(tmp_path: Path, layers: str) -> None:
    """Layers that are no text are refused by the settings, with what was found."""
    with pytest.raises(UsageError, match=r"layers is .*; expected text"):
        Settings(**load_config(toml(tmp_path, f"layers = {layers}")))


def test_unknown_keys_are_all_named_and_the_near_one_suggested(tmp_path: Path) -> None:
    """Keys that are no settings are listed, with the setting probably meant and all there are."""
    name = toml(tmp_path, 'layers = "fc7"\nbatch-sise = 8\n[extra]\nx = 1\n')
    with pytest.raises(UsageError) as caught:
        load_config(name)
    message = str(caught.value)
    assert message.startswith(f"config {name!r}: unknown settings 'batch-sise', 'extra'")
    assert message.endswith(f"{', '.join(SETTING_NAMES)} (did you mean batch_size?)")


def test_keys_may_be_spelt_as_options_are(tmp_path: Path) -> None:
    """A file of every setting with hyphens, as `--help` prints them, gives the same settings."""
    values = {"batch_size": 8, "max_failures": 3, "first_layer": "kaiming", "time_limit": "2h"}
    for spelling in ("-", "_"):
        lines = [f"{key.replace('_', spelling)} = {value!r}" for key, value in values.items()]
        assert load_config(toml(tmp_path, "\n".join(lines))) == {**values, "max_failures": "3"}


def test_both_spellings_are_refused(tmp_path: Path) -> None:
    """One setting in two spellings is an error that names both, whatever their values."""
    name = toml(
        tmp_path, "batch-size = 8\nbatch_size = 8\ndecode_timeout = 1\ndecode-timeout = 2\n"
    )
    words = (
        "gives batch_size and batch-size, decode_timeout and decode-timeout, which are one setting"
    )
    with pytest.raises(UsageError, match=words):
        load_config(name)


def test_each_unknown_key_is_answered(tmp_path: Path) -> None:
    """What was probably meant is said of every unknown key, however it is spelt."""
    name = toml(tmp_path, "batch-sise = 8\nchekpoint_seconds = 2\n")
    with pytest.raises(UsageError, match=r"did you mean batch_size, checkpoint_seconds\?"):
        load_config(name)


@pytest.mark.parametrize(
    ("command", "out"),
    [("extract", "a.h5"), ("stats", "a.toml"), ("adapt", "a.safetensors"), ("plot", "a.png")],
)
def test_every_command_takes_both_spellings(command: str, out: str, tmp_path: Path) -> None:
    """Commands with --config know a key with a hyphen, and refuse it together with its twin."""
    (tmp_path / "two.toml").write_text("max-pixels = 1000000\nmax_pixels = 1000000\n")
    image = write_images(tmp_path / "images" / "a", 1) / "00.png"
    source = str(image if command == "plot" else tmp_path / "images")
    done = vggfeat(command, source, "--config", "two.toml", "--out", out, cwd=tmp_path)
    assert_one_line(done, 2, "'two.toml' gives max_pixels and max-pixels")


@pytest.mark.parametrize("text", ["layers = ", "layers fc7", 'layers = "fc7"\nlayers = "fc6"'])
def test_broken_toml_is_a_usage_error(tmp_path: Path, text: str) -> None:
    """What is not TOML is refused with the parser's own words and the file's name."""
    name = toml(tmp_path, text)
    with pytest.raises(UsageError, match=re.escape(f"config {name!r} cannot be read as TOML: ")):
        load_config(name)


def test_bytes_that_are_no_text_are_a_usage_error(tmp_path: Path) -> None:
    """A binary file given as a config is refused like broken TOML."""
    path = tmp_path / "mine.toml"
    path.write_bytes(b"layers = '\xff'")
    with pytest.raises(UsageError, match="cannot be read as TOML"):
        load_config(str(path))


def test_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    """A path that is not there is named with the system's reason, not taken for a preset."""
    with pytest.raises(UsageError, match=r"absent\.toml.*No such file or directory"):
        load_config(str(tmp_path / "absent.toml"))


def test_folder_is_a_usage_error(tmp_path: Path) -> None:
    """A folder given as a config is refused and not read."""
    with pytest.raises(UsageError, match=r"cannot be read: Is a directory"):
        load_config(f"{tmp_path}/")


@pytest.mark.parametrize("name", ["overal", "", "toml"])
def test_unknown_preset_lists_the_presets(name: str) -> None:
    """A name that is no preset and no path is answered by all presets."""
    with pytest.raises(UsageError, match=f"unknown config {name!r}; .*{', '.join(PRESETS)}"):
        load_config(name)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("meaning", ["conv5_4:gem"]),
        ("overall", ["fc7"]),
        ("pyramid", ["conv1_2", "conv4_4", "conv5_4", "fc7"]),
        ("same-picture", ["conv3_4:ssr", "conv4_4:ssr", "conv5_4:ssr"]),
        ("similar-colour", ["conv1_1:ssr"]),
        (
            "similar-style",
            [
                f"{layer}{pool}:ssr"
                for layer in ("conv1_2", "conv2_2", "conv3_4", "conv4_4")
                for pool in ("", ":std")
            ],
        ),
    ],
)
def test_presets_ask_for_what_they_promise(name: str, layers: list[str]) -> None:
    """Each preset makes settings with its layers, whole and in order."""
    assert [str(spec) for spec in Settings(**load_config(name)).specs] == layers


@pytest.mark.parametrize("model", VARIANTS)
@pytest.mark.parametrize("name", PRESETS)
def test_presets_fit_every_variant(name: str, model: str) -> None:
    """A preset asks for the outputs of the same blocks, the last convolution before each pool.

    That of colour asks for the first convolution.
    """
    blocks = {
        "meaning": [5], "overall": [], "pyramid": [1, 4, 5], "same-picture": [3, 4, 5],
        "similar-colour": [], "similar-style": [1, 1, 2, 2, 3, 3, 4, 4],
    }  # fmt: skip
    names = [layer.name for layer in layer_table(model)]
    expected = [names[names.index(f"pool{block}") - 1] for block in blocks[name]]
    expected += ["conv1_1"] if name == "similar-colour" else []
    expected += ["fc7"] if name in ("overall", "pyramid") else []
    specs = Settings(**{**load_config(name), "model": model}).specs
    assert [spec.layer.name for spec in specs] == expected


def test_every_preset_file_is_a_listed_preset(pytestconfig: pytest.Config) -> None:
    """The presets that the error message lists are the files there are."""
    files = (pytestconfig.rootpath / "configs").glob("*.toml")
    assert sorted(path.stem for path in files) == list(PRESETS)


def identity(made: Settings, **changes: Any) -> Identity:
    return Identity(
        **{
            "model": made.model,
            "weights": "IMAGENET1K_V1",
            "weights_sha256": "ab" * 32,
            "precision": "float32",
            "dtype": made.dtype,
            "preprocess": made.preprocess(),
            "layers": tuple(sorted(str(spec) for spec in made.specs)),
            **changes,
        }
    )


def test_the_same_in_other_words_is_the_same() -> None:
    """Aliases, order, spelled-out defaults and the weights' name change no fingerprint."""
    plain = identity(settings(layers="conv5_3,fc7"))
    wordy = identity(
        settings(
            layers="relu7, conv5_3:avg:none", size=224, resize=256, crop="center", workers=3,
            transform="imagenet", batch_size=7, device="cpu", checkpoint_seconds=1,
        ),
        weights="a copy of it.pth",
    )  # fmt: skip
    assert plain.fingerprint() == wordy.fingerprint()
    assert plain.differences(wordy) == []


def test_fingerprint_is_the_same_for_ever() -> None:
    """The fingerprint of given settings never changes: files of years ago are resumed by it."""
    made = identity(settings(layers="conv5_3:max,fc7", model="vgg16", size=320))
    assert made.fingerprint() == (
        "60a37d03019db30c001f90ef48f5c6e7a7caf9cc2df5b7b9238e4991e2eb4c05"
    )


def test_exact_decoding_is_not_recorded() -> None:
    """What a file records of exact decoding is what it did before there was another; fast is."""
    exact, fast = (settings(layers="fc7", decode=how).preprocess() for how in ("exact", "fast"))
    assert "decode" not in exact.recorded()
    assert all(Preprocess(**made.recorded()) == made for made in (exact, fast))


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "model": ({"model": "vgg16"}, "model: file vgg19, requested vgg16"),
    "precision": ({"precision": "bfloat16"}, "precision: file float32, requested bfloat16"),
    "dtype": ({"dtype": "float32"}, "dtype: file float16, requested float32"),
    "weights": (
        {"weights": "mine.pth", "weights_sha256": "cd" * 32},
        "weights: file IMAGENET1K_V1 (abababab), requested mine.pth (cdcdcdcd)",
    ),
    "layers": (
        {"layers": ("conv5_3", "fc6", "fc7")},
        "layers: file conv5_3,fc7, requested also fc6",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_each_changed_field_is_named(name: str) -> None:
    """A field that differs changes the fingerprint and is one line with both values."""
    changes, line = CHANGES[name]
    had = identity(settings(layers="conv5_3,fc7"))
    asked = dataclasses.replace(had, **changes)
    assert had.differences(asked) == [line]
    assert had.fingerprint() != asked.fingerprint()


PREPROCESS_CHANGES: dict[str, Any] = {
    "size": 256,
    "resize": 300,
    "crop": "squash",
    "exif": "ignore",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "interpolation": "bicubic",
    "background": "black",
    "decode": "fast",
    "augment": ("crop", "mirror"),
    "channels": 1,
    "depth": 16,
    "window": (40.0, 400.0),
    "clip": (0.5, 99.5),
    "clahe": (2.0, 8),
    "icc": "convert",
}


def test_every_field_of_the_preprocessing_is_tried() -> None:
    """No field of the record is left out of the next test."""
    assert list(PREPROCESS_CHANGES) == [item.name for item in dataclasses.fields(Preprocess)]


@pytest.mark.parametrize("name", PREPROCESS_CHANGES)
def test_each_changed_field_of_the_preprocessing_is_named(name: str) -> None:
    """A field of the preprocessing that differs is named with both values."""
    had = identity(settings())
    value = PREPROCESS_CHANGES[name]
    asked = dataclasses.replace(had, preprocess=dataclasses.replace(Preprocess(), **{name: value}))
    before = getattr(Preprocess(), name)
    assert had.differences(asked) == [f"preprocess.{name}: file {before}, requested {value}"]
    assert had.fingerprint() != asked.fingerprint()


def test_all_differences_come_at_once() -> None:
    """Several fields that differ are several lines."""
    had = identity(settings())
    asked = identity(settings(model="vgg16", dtype="float32", crop="squash", layers="fc6"))
    assert [line.split(":")[0] for line in had.differences(asked)] == [
        "model",
        "dtype",
        "preprocess.resize",
        "preprocess.crop",
        "layers",
    ]


def test_fewer_layers_are_no_difference() -> None:
    """Asking a file for some of its layers is no difference; the reverse is."""
    many, few = identity(settings(layers="conv5_3,fc7")), identity(settings(layers="fc7"))
    assert many.differences(few) == []
    assert few.differences(many) == ["layers: file fc7, requested also conv5_3"]
