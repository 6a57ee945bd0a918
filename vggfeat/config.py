"""Settings: frozen, checked once, each default in one place."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import sys
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from vggfeat.errors import UsageError
from vggfeat.preprocess import (
    CROPS,
    DECODES,
    EXIFS,
    NORMALISATIONS,
    TRANSFORMS,
    Crop,
    Decode,
    Exif,
    Preprocess,
    Transform,
    check_alterations,
)
from vggfeat.recipes import Recipe, parse_fuse
from vggfeat.specs import LayerSpec, parse_specs

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Mapping

OnError = Literal["skip", "stop"]
Dtype = Literal["float16", "float32", "int8"]
Precision = Literal["auto", "float32", "bfloat16", "float16", "int8"]

ON_ERRORS: tuple[OnError, ...] = get_args(OnError)
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

SMALLEST_SIZE = 32
"""Five poolings halve 32 pixels to one; with fewer there is no pool5."""

LARGEST_SIZE = 4096


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run is asked to do. Text as on the command line; checked on construction.

    Attributes:
        layers: layer specs separated by commas.
        fuse: `concat`, `weighted(2,1,1)` or `sum`: one vector of all layers is stored instead of
            them. Empty: each layer by itself.
        model: VGG variant.
        weights: `imagenet`, `features`, `random[:SEED]`, or a `.pth` or `.safetensors` file.
        transform: whose mean and deviation to use: `imagenet`, `features`, or `auto`, the
            weights' own.
        pool: for maps that name none.
        norm: for layers that name none.
        size: see `Preprocess`; None is the weights' own.
        resize: see `Preprocess`; None is the weights' own, in proportion to `size`.
        crop: see `Preprocess`.
        exif: see `Preprocess`.
        decode: see `Preprocess`.
        augment: alterations separated by commas, see `Preprocess`; empty for none.
        dtype: of the stored features.
        precision: of the network; `auto` is half on CUDA, bfloat16 on a CPU with it, else float32;
            `int8` is for CPUs with VNNI, calibrated on some of the images.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`, several separated by commas, or `all` CUDA.
        batch_size: images a pass, or `auto`.
        workers: decoding processes, 0 for none, or `auto`.
        max_pixels: larger images fail instead of filling the memory.
        decode_timeout: seconds after which an image fails that is still not decoded; not with 0
            workers.
        max_failures: `N` or `P%`: more failed images than that end in exit 4. None: no limit.
        max_removed: `N` or `P%`: an update that finds more images gone changes nothing and ends in
            exit 3: a folder that is not mounted looks like that. None: no limit.
        on_error: `skip` marks an image that fails and goes on; `stop` ends the run at the first.
        time_limit: `55m`, `2h`, `90s`: stop cleanly within that time of the start. None: no limit.
        checkpoint_seconds: how much work a crash may cost at most.
    """

    layers: str = ""
    fuse: str = ""
    model: str = "vgg19"
    weights: str = "imagenet"
    transform: Transform = "auto"
    pool: str = "avg"
    norm: str = "none"
    size: int | None = None
    resize: int | None = None
    crop: Crop = "center"
    exif: Exif = "apply"
    decode: Decode = "exact"
    augment: str = ""
    dtype: Dtype = "float16"
    precision: Precision = "auto"
    device: str = "auto"
    batch_size: int | Literal["auto"] = "auto"
    workers: int | Literal["auto"] = "auto"
    max_pixels: int = 178_956_970  # twice Pillow's own warning level: its error level
    decode_timeout: float = 60.0
    max_failures: str | None = None
    max_removed: str | None = None
    on_error: OnError = "skip"
    time_limit: str | None = None
    checkpoint_seconds: float = 5.0
    specs: tuple[LayerSpec, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        texts = _wrong_texts(self)
        wrong = [*texts, *_wrong_choices(self), *_wrong_numbers(self), *_wrong_augment(self)]
        if not texts:
            try:
                specs = parse_specs(self.layers, self.model, pool=self.pool, norm=self.norm)
                object.__setattr__(self, "specs", specs)
            except UsageError as error:
                wrong.append(str(error))
        if not wrong:
            wrong = _wrong_combinations(self)
        if wrong:
            raise UsageError("; ".join(wrong))

    def preprocess(self) -> Preprocess:
        """The preprocessing these settings come to."""
        own = NORMALISATIONS[self._transform_name()]
        size = self.size or own.size
        resize = self.resize or round(size * own.resize / own.size)
        return Preprocess(
            size=size,
            resize=resize if self.crop == "center" else None,
            crop=self.crop,
            exif=self.exif,
            decode=self.decode,
            augment=check_alterations(self.augment),
            mean=own.mean,
            std=own.std,
        )

    def _transform_name(self) -> str:
        if self.transform != "auto":
            return self.transform
        return "features" if self.weights == "features" else "imagenet"

    @property
    def recipe(self) -> Recipe | None:
        """How the layers become one vector; None where each is stored by itself."""
        if not self.fuse:
            return None
        method, weights = parse_fuse(self.fuse)
        return Recipe(method, tuple(map(str, self.specs)), weights=weights)

    @property
    def stored(self) -> tuple[str, ...]:
        """Names of what is stored: the layers' canonical specs, or the one fused vector's."""
        recipe = self.recipe
        return (recipe.method,) if recipe else tuple(map(str, self.specs))

    def failures_allowed(self, images: int) -> int:
        """How many of `images` may fail before the run counts as failed."""
        return _allowed(self.max_failures, images)

    def removals_allowed(self, images: int) -> int:
        """How many of `images` may be gone before an update is refused."""
        return _allowed(self.max_removed, images)

    @property
    def seconds_allowed(self) -> float | None:
        """`time_limit` in seconds."""
        return _seconds(self.time_limit)

    def as_dict(self) -> dict[str, Any]:
        """All settings by name, ready for JSON."""
        return {name: getattr(self, name) for name in SETTING_NAMES}


SETTING_NAMES = tuple(item.name for item in dataclasses.fields(Settings) if item.init)

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "transform": TRANSFORMS,
    "crop": CROPS,
    "exif": EXIFS,
    "decode": DECODES,
    "on_error": ON_ERRORS,
    "dtype": DTYPES,
    "precision": PRECISIONS,
}


def _wrong_choices(settings: Settings) -> list[str]:
    return [
        f"{name} {getattr(settings, name)!r} is not known; expected one of {', '.join(known)}"
        for name, known in _CHOICES.items()
        if getattr(settings, name) not in known
    ]


_DEVICE = r"(cpu|mps|cuda(:\d+)?)"
_TEXTS = ("layers", "fuse", "model", "weights", "pool", "norm", "augment", "device")

# Name, least, most, and what it may be besides a number.
_NUMBERS: tuple[tuple[str, int, int, tuple[str | None, ...]], ...] = (
    ("size", SMALLEST_SIZE, LARGEST_SIZE, (None,)),
    ("resize", SMALLEST_SIZE, 2 * LARGEST_SIZE, (None,)),
    ("batch_size", 1, 65_536, ("auto",)),
    ("workers", 0, 1024, ("auto",)),
    ("max_pixels", 1, 2**40, ()),
)
_LONGEST_SECONDS = 3600


def _wrong_texts(settings: Settings) -> list[str]:
    return [
        f"{name} is {getattr(settings, name)!r}; expected text"
        for name in _TEXTS
        if not isinstance(getattr(settings, name), str)
    ]


def _wrong_augment(settings: Settings) -> list[str]:
    text: object = settings.augment  # a TOML file may hold anything; see `_wrong_texts`
    try:
        check_alterations(text if isinstance(text, str) else "")
    except UsageError as error:
        return [str(error)]
    return []


def _wrong_numbers(settings: Settings) -> list[str]:
    wrong = []
    for name, least, most, others in _NUMBERS:
        value = getattr(settings, name)
        if value not in others and not (type(value) is int and least <= value <= most):
            other = ", or auto" if "auto" in others else ""
            wrong.append(
                f"{name} is {value!r}; expected a whole number from {least} to {most}{other}"
            )
    for name, begin in (("checkpoint_seconds", "from 0"), ("decode_timeout", "above 0, up")):
        seconds = getattr(settings, name)
        if not _is_seconds(seconds) or (seconds == 0 and name == "decode_timeout"):
            wrong.append(f"{name} is {seconds!r}; expected a number {begin} to {_LONGEST_SECONDS}")
    if settings.time_limit is not None and _seconds(settings.time_limit) is None:
        wrong.append(f"time_limit is {settings.time_limit!r}; expected for example 55m, 2h or 90s")
    wrong += [
        f"{name} is {getattr(settings, name)!r}; expected for example 100 or 1%"
        for name in ("max_failures", "max_removed")
        if not _is_allowance(getattr(settings, name))
    ]
    if not re.fullmatch(rf"auto|all|{_DEVICE}(,{_DEVICE})*", str(settings.device)):
        wrong.append(
            f"device {settings.device!r} is not known; expected auto, cpu, cuda[:N], mps, several "
            "of them separated by commas, or all"
        )
    return wrong


def _is_seconds(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 <= value <= _LONGEST_SECONDS


_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def _seconds(text: object) -> float | None:
    """Seconds of `90s`, `55m`, `1.5h`, `1h30m`; None if it is no time above 0."""
    if not isinstance(text, str) or not re.fullmatch(r"(\d+(\.\d+)?[smhd])+", text):
        return None
    parts = re.findall(r"([\d.]+)([smhd])", text)
    return sum(float(number) * _UNITS[unit] for number, unit in parts) or None


def _allowed(text: str | None, images: int) -> int:
    """How many of `images` `N` or `P%` are; all where there is no limit."""
    if text is None:
        return images
    if text.endswith("%"):
        # Exactly: in floating point, 0.57% of 10,000 would be 56.
        return int(Fraction(text[:-1]) * images / 100)
    return int(text)


def _is_allowance(value: object) -> bool:
    if value is None:
        return True
    return isinstance(value, str) and re.fullmatch(r"\d+|\d+(\.\d+)?%", value) is not None


def _wrong_combinations(settings: Settings) -> list[str]:
    wrong = []
    if settings.crop != "center" and settings.resize is not None:
        wrong.append(
            f"resize {settings.resize} belongs to crop center; crop {settings.crop} goes by size"
        )
    size = settings.preprocess().size
    if settings.crop == "center" and settings.resize is not None and settings.resize < size:
        wrong.append(f"resize {settings.resize} is below size {size}; the crop would show borders")
    kept = [str(spec) for spec in settings.specs if spec.pool and spec.pool.keeps_positions]
    if settings.crop == "none" and kept:
        wrong.append(
            f"{', '.join(kept)} has a row size that varies with the image under crop none; "
            "use another pool, or crop center, pad or squash"
        )
    wrong += _wrong_fusion(settings)
    if settings.crop == "none" and settings.batch_size not in ("auto", 1):
        wrong.append("crop none leaves images of unequal shapes, which only batch size 1 takes")
    if settings.weights == "features" and settings.model != "vgg16":
        wrong.append(
            f"weights features exist for vgg16 only, not for {settings.model}; use model vgg16, "
            "or weights imagenet"
        )
    return wrong


def _wrong_fusion(settings: Settings) -> list[str]:
    if not settings.fuse:
        return []
    maps = [str(spec) for spec in settings.specs if spec.pool and spec.pool.name == "map"]
    if maps:
        return [f"{', '.join(maps)} keep maps, and vectors are fused; use another pool or flatten"]
    try:
        _ = settings.recipe
    except UsageError as error:
        return [str(error)]
    return []


PRESETS = ("overall", "pyramid", "same-picture", "similar-colour", "similar-style")


def load_config(name: str) -> dict[str, Any]:
    """Settings by name from a TOML file, or from the preset of that name.

    Raises:
        UsageError: no such file or preset, not TOML, or a key that is no setting.
    """
    path = _config_path(name)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"config {name!r} cannot be read as TOML: {error}") from error
    unknown = [key for key in values if key not in SETTING_NAMES]
    if unknown:
        near = difflib.get_close_matches(unknown[0], SETTING_NAMES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(
            f"config {name!r} has unknown settings {', '.join(unknown)}{hint}; expected any of "
            f"{', '.join(SETTING_NAMES)}"
        )
    return {key: _as_text(key, value) for key, value in values.items()}


def _as_text(key: str, value: Any) -> Any:
    """What TOML writes more naturally, a list of names or a number of failures, as on the CLI."""
    if key in ("layers", "augment") and isinstance(value, list):
        return ",".join(value) if all(isinstance(item, str) for item in value) else value
    return str(value) if key == "max_failures" and type(value) is int else value


def make_settings(config: str | None, flags: Mapping[str, Any]) -> Settings:
    """Settings from a configuration file or preset, with the flags that were given over it.

    Args:
        config: see `load_config`; None for defaults alone.
        flags: setting names to values; None stands for not given.
    """
    values = load_config(config) if config is not None else {}
    given = {name: value for name, value in flags.items() if value is not None}
    return Settings(**{**values, **given})


def _config_path(name: str) -> Path:
    if os.sep in name or name.endswith(".toml"):
        return Path(name)
    package = Path(__file__).parent
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / f"{name}.toml").is_file():
            return folder / f"{name}.toml"
    raise UsageError(
        f"config {name!r} is not a preset; expected one of {', '.join(PRESETS)}, "
        "or the path of a .toml file"
    )
