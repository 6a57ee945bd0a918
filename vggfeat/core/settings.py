"""Settings: frozen, checked once, each default in one place."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from vggfeat.core.fusion_spec import Recipe, parse_fuse
from vggfeat.core.layer_spec import LayerSpec, parse_specs
from vggfeat.core.preprocessing import (
    NORMALISATIONS,
    Crop,
    Decode,
    Depth,
    Exif,
    Preprocess,
    TransformName,
    parse_clahe,
    parse_clip,
    parse_corruptions,
    parse_mean,
    parse_std,
    parse_window,
)
from vggfeat.core.validation import (
    DTYPES,
    LARGEST_SIZE,
    ON_ERRORS,
    PRECISIONS,
    SMALLEST_SIZE,
    Dtype,
    OnError,
    Precision,
    seconds_of,
    share_of,
    wrong_combinations,
    wrong_texts,
    wrong_values,
)
from vggfeat.core.vgg_layers import Entry, FirstLayer
from vggfeat.errors import UsageError

__all__ = [
    "DTYPES",
    "LARGEST_SIZE",
    "ON_ERRORS",
    "PRECISIONS",
    "SETTING_NAMES",
    "SMALLEST_SIZE",
    "Dtype",
    "OnError",
    "Precision",
    "Settings",
]


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run is asked to do. Text as on the command line; checked on construction.

    Attributes:
        layers: layer specs separated by commas.
        fuse: `concat`, `weighted(2,1,1)` or `sum`: one vector of all layers is stored instead of
            them. Empty: each layer by itself.
        model: VGG variant.
        weights: `imagenet`, `features`, `random[:SEED]`, or a file of torchvision's, timm's or
            Keras's VGG in any of the formats of `checkpoints`.
        transform: whose mean and deviation to use: `imagenet`, `features`, `caffe`, or `auto`: of
            weights `features` their own, of others ImageNet's. `for_weights` puts in what a file
            wants, and a network whose weights surely want another than `auto` is refused.
        pool: for maps that name none.
        norm: for layers that name none.
        size: see `Preprocess`; None is the weights' own.
        resize: see `Preprocess`; None is the weights' own, in proportion to `size`.
        crop: see `Preprocess`.
        exif: see `Preprocess`.
        decode: see `Preprocess`.
        augment: alterations separated by commas, see `Preprocess`; empty for none.
        channels: of the network's input: 3 for RGB, 1 for grey, or as many as every file has.
        depth: 8, or 16 for pixels that stay in 16 bits from the file to the network.
        window: `LEVEL,WIDTH` in the file's own units, such as `40,400`: what lies below it becomes
            black, above it white. Empty: the full scale; of a DICOM file its own window.
        clip: `LOW,HIGH` percentiles of each image that become black and white, such as `0.5,99.5`.
        clahe: `LIMIT[,TILES]` of contrast-limited adaptive histogram equalisation.
        first_layer: `sum` rebuilds the first convolution of the weights for other channels than
            three; `kaiming` draws it anew, of seed 0, whatever they are.
        mean: of pixels in [0, 1], one number or one a channel. Empty: see `transform`; where
            channels are not 3, the average of its three.
        std: likewise.
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
    transform: TransformName = "auto"
    pool: str = "avg"
    norm: str = "none"
    size: int | None = None
    resize: int | None = None
    crop: Crop = "center"
    exif: Exif = "apply"
    decode: Decode = "exact"
    augment: str = ""
    channels: int = 3
    depth: Depth = 8
    window: str = ""
    clip: str = ""
    clahe: str = ""
    mean: str = ""
    std: str = ""
    first_layer: FirstLayer = "sum"
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
        wrong = wrong_values(self)
        if not wrong_texts(self):
            try:
                specs = parse_specs(self.layers, self.model, pool=self.pool, norm=self.norm)
                object.__setattr__(self, "specs", specs)
            except UsageError as error:
                wrong.append(str(error))
        if not wrong:
            wrong = wrong_combinations(self)
        if wrong:
            raise UsageError("; ".join(wrong))

    def preprocess(self) -> Preprocess:
        """The preprocessing these settings come to."""
        own = NORMALISATIONS[self.transform_name]
        size = self.size or own.size
        resize = self.resize or round(size * own.resize / own.size)
        return Preprocess(
            size=size,
            resize=resize if self.crop == "center" else None,
            crop=self.crop,
            exif=self.exif,
            decode=self.decode,
            augment=parse_corruptions(self.augment),
            mean=parse_mean(self.mean, self.channels) or own.mean_of(self.channels),
            std=parse_std(self.std, self.channels) or own.std_of(self.channels),
            channels=self.channels,
            depth=self.depth,
            window=parse_window(self.window),
            clip=parse_clip(self.clip),
            clahe=parse_clahe(self.clahe),
        )

    @classmethod
    def for_weights(cls, weights: str, **given: Any) -> Settings:
        """Settings as given, and for those not given what a weight file was trained with.

        What `vggfeat.adapt` writes says so; other weights leave the usual defaults.
        """
        from vggfeat.config import make_settings  # above us: it looks into the file

        return make_settings(None, {"weights": weights, **given})

    @property
    def entry(self) -> Entry:
        """What comes into the network."""
        return Entry(self.channels, self.first_layer)

    @property
    def transform_name(self) -> str:
        """Whose mean and deviation `transform` means: `imagenet`, `features` or `caffe`."""
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
        return share_of(self.max_failures, images)

    def removals_allowed(self, images: int) -> int:
        """How many of `images` may be gone before an update is refused."""
        return share_of(self.max_removed, images)

    @property
    def seconds_allowed(self) -> float | None:
        """`time_limit` in seconds."""
        return seconds_of(self.time_limit)

    def as_dict(self) -> dict[str, Any]:
        """All settings by name, ready for JSON."""
        return {name: getattr(self, name) for name in SETTING_NAMES}


SETTING_NAMES = tuple(item.name for item in dataclasses.fields(Settings) if item.init)
