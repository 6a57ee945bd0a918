"""Settings of an extraction: frozen, checked on construction, each declared once.

The command line makes its options from the fields here, `validation` checks their choices and
ranges, and a configuration file has their names as keys.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from vggfeat.core.fusion_spec import Recipe, parse_fuse
from vggfeat.core.layer_spec import POOLS, LayerSpec, parse_specs
from vggfeat.core.option import (
    FAILURES,
    MEDICAL,
    PREPARATION,
    RESUMING,
    SPEED,
    options_of,
    setting,
)
from vggfeat.core.preprocessing import (
    CORRUPTIONS,
    CROPS,
    DECODES,
    EXIFS,
    ICCS,
    MOST_CHANNELS,
    NORMALISATIONS,
    TRANSFORMS,
    Crop,
    Decode,
    DecodeName,
    Depth,
    Exif,
    Icc,
    Preprocess,
    TransformName,
    parse_clahe,
    parse_clip,
    parse_corruptions,
    parse_mean,
    parse_std,
    parse_window,
)
from vggfeat.core.setting_values import plain_value
from vggfeat.core.validation import (
    are_texts,
    seconds_of,
    share_of,
    wrong_combinations,
    wrong_values,
)
from vggfeat.core.vgg_layers import FIRST_LAYERS, Entry, FirstLayer
from vggfeat.errors import UsageError

if TYPE_CHECKING:
    import os

OnError = Literal["skip", "stop"]
Dtype = Literal["float16", "float32", "int8"]
Precision = Literal["auto", "float32", "bfloat16", "float16", "int8"]

ON_ERRORS: tuple[OnError, ...] = get_args(OnError)
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

SMALLEST_SIZE = 32
"""Five poolings halve 32 pixels to one; with fewer there is no pool5."""

LARGEST_SIZE = 4096
_LONGEST_SECONDS = 3600


@dataclass(frozen=True, slots=True)
class Settings:
    """What to extract, and how. Values are text as on the command line, or numbers.

    What Python has is taken too, and becomes that text: lists and tuples for comma separated text
    (`layers=["conv5_3", "fc7"]`, `mean=(0.5, 0.5, 0.5)`, `window=(40, 400)`), paths, types and
    devices of torch and NumPy (`dtype=np.float16`). `weights` takes a state dict or a module:
    weights in memory are recorded by the SHA-256 of their tensors.

    Weights may be a file of torchvision's, timm's or Keras's VGG in any format that
    `network.checkpoint_reader` reads. With transform `auto`, a network whose weights surely want
    another one is refused; `for_weights` puts in what a file wants. With more than `max_failures`
    failed images a run ends in `TooManyFailuresError`; an update that finds more than `max_removed`
    images gone is refused, since a folder that is not mounted looks like that.

    Attributes:
        specs: `layers`, parsed.
    """

    layers: str = setting(
        "",
        "Layers, comma separated, each NAME[.pre][:POOL][:NORM]: conv5_3,fc7 or "
        "conv3_4:gem,conv5_4:rmac:l2. `vggfeat layers` lists the names.",
        "SPEC,...",
        items=str,
        also=("--layer",),
    )
    fuse: str = setting(
        "",
        "Store one vector of all layers instead of them: concat, weighted(2,1,1) or sum; each "
        "layer is brought to unit length first. `vggfeat fuse` can do more.",
        "METHOD",
    )
    model: str = setting("vgg19", "vgg11, 13, 16 or 19, each also with _bn.", "NAME")
    weights: str = setting(
        "imagenet",
        "imagenet (downloaded once), features (vgg16's convolutions as Caffe had them), a .pth "
        "or .safetensors file, or random[:SEED].",
        "NAME|FILE",
    )
    transform: TransformName = setting(
        "auto",
        "Whose mean and deviation normalise the images. auto: those of weights features, those "
        "that a file says it was trained with or is known to want (Keras's; Caffe's VGG16), and "
        "ImageNet's for all others. caffe: pixels of 0 to 255 less Caffe's mean.",
        "NAME",
        choices=TRANSFORMS,
        group=PREPARATION,
    )
    pool: str = setting("avg", f"Pool of maps whose spec names none: {', '.join(POOLS)}.", "POOL")
    norm: str = setting("none", "Norm of layers whose spec names none.", "NORM")
    size: int | None = setting(
        None,
        "Side of the network's input in pixels.",
        "PX",
        unset="the weights', 224",
        kind=int,
        within=(SMALLEST_SIZE, LARGEST_SIZE),
        group=PREPARATION,
    )
    resize: int | None = setting(
        None,
        "Shorter side before a center crop.",
        "PX",
        unset="the weights', 256 to a size of 224",
        kind=int,
        within=(SMALLEST_SIZE, 2 * LARGEST_SIZE),
        group=PREPARATION,
    )
    crop: Crop = setting(
        "center",
        "center cuts a square from the middle, pad fits the whole image in, squash ignores "
        "the aspect ratio, none keeps it and the whole image.",
        "HOW",
        choices=CROPS,
        group=PREPARATION,
    )
    exif: Exif = setting(
        "apply", "Apply or ignore the EXIF orientation.", "HOW", choices=EXIFS, group=PREPARATION
    )
    icc: Icc = setting(
        "ignore",
        "Ignore ICC colour profiles, or convert colours to sRGB by them.",
        "HOW",
        choices=ICCS,
        group=PREPARATION,
    )
    decode: DecodeName = setting(
        "auto",
        "pillow, or exact, decodes every pixel as Pillow does; torchvision decodes and resizes "
        "JPEGs as torchvision does with tensors, which is faster; gpu decodes and resizes JPEGs on "
        "a CUDA device by nvJPEG; fast decodes JPEGs far larger than needed at 1/2, 1/4 or 1/8 of "
        "their sides. auto: as the cache was begun; for a new one torchvision on CUDA, where it "
        "can, else pillow.",
        "HOW",
        choices=DECODES,
        group=SPEED,
    )
    augment: str = setting(
        "",
        f"Apply corruptions to every image before it is resized: {', '.join(CORRUPTIONS)}; several "
        "are applied in the order given.",
        "NAME,...",
        items=str,
        group=PREPARATION,
    )
    channels: int = setting(
        3,
        "Channels of the network's input: 3 is RGB, 1 is grey (the luma of colours), any other "
        "number is that of every file: bands, pages of a TIFF, the last axis of an .npy array.",
        "N",
        kind=int,
        within=(1, MOST_CHANNELS),
        also=("--in-channels",),
        group=MEDICAL,
    )
    depth: Depth = setting(
        8,
        "Bits of a channel: with 16, pixels of 16-bit files keep them from the file to the "
        "network.",
        "8|16",
        kind=int,
        group=MEDICAL,
    )
    window: str = setting(
        "",
        "Level and width in the file's own units (HU, grey levels), such as 40,400: what becomes "
        "black and white.",
        "LEVEL,WIDTH",
        unset="the full scale; of a DICOM file its own window",
        items=float,
        group=MEDICAL,
    )
    clip: str = setting(
        "",
        "Percentiles of each image that become black and white, such as 0.5,99.5.",
        "LOW,HIGH",
        items=float,
        group=MEDICAL,
    )
    clahe: str = setting(
        "",
        "Contrast-limited adaptive histogram equalisation: the clip limit, and the tiles along a "
        "side if not 8, such as 2 or 2,8. For colours, the luma is equalised.",
        "LIMIT[,TILES]",
        items=float,
        group=MEDICAL,
    )
    mean: str = setting(
        "",
        "Mean of pixels in [0, 1]: one number, or one for each channel; `vggfeat stats` measures "
        "it.",
        "M[,...]",
        unset="the weights' own; their average if --channels is not 3",
        items=float,
        group=PREPARATION,
    )
    std: str = setting(
        "",
        "Standard deviation of pixels, in the same form.",
        "S[,...]",
        items=float,
        group=PREPARATION,
    )
    first_layer: FirstLayer = setting(
        "sum",
        "How the first convolution of RGB weights is adapted if --channels is not 3: sum rebuilds "
        "it from their filters; kaiming initialises it at random, with 3 channels too.",
        "HOW",
        choices=FIRST_LAYERS,
        group=MEDICAL,
    )
    dtype: Dtype = setting(
        "float16",
        "Type of the stored features; int8 with a scale for each dimension, found on some of "
        "the images.",
        "TYPE",
        choices=DTYPES,
        group=SPEED,
    )
    precision: Precision = setting(
        "auto",
        "Type the network computes in. auto: float16 on CUDA, with float32 where it "
        "overflows; bfloat16 on a CPU that has it; else float32. int8, on a CPU with VNNI, is "
        "faster and less exact.",
        "TYPE",
        choices=PRECISIONS,
        group=SPEED,
    )
    device: str = setting(
        "auto",
        "auto (CUDA if there is a device, else the CPU), cpu, cuda or cuda:N; several as "
        "cuda:0,cuda:1; all.",
        "NAME,...",
        items=str,
        group=SPEED,
    )
    batch_size: int | Literal["auto"] = setting(
        "auto",
        "Batch size; with --crop none, of images of one shape.",
        "N|auto",
        kind=int,
        words=("auto",),
        within=(1, 65_536),
        group=SPEED,
    )
    workers: int | Literal["auto"] = setting(
        "auto",
        "Decoding processes; 0 decodes in this one.",
        "N|auto",
        kind=int,
        words=("auto",),
        within=(0, 1024),
        group=SPEED,
    )
    max_pixels: int = setting(
        178_956_970,  # twice Pillow's own warning level: its error level
        "Larger images fail as decompression bombs.",
        "N",
        kind=int,
        within=(1, 2**40),
        group=FAILURES,
    )
    decode_timeout: float = setting(
        60.0,
        "An image that takes longer to decode fails; no limit with 0 workers.",
        "SECONDS",
        kind=float,
        within=(0, _LONGEST_SECONDS),
        above=True,
        group=FAILURES,
    )
    max_failures: str | None = setting(
        None,
        "If more images fail, end with exit code 4, once all others are done.",
        "N|P%",
        unset="any number, but not all",
        group=FAILURES,
    )
    max_removed: str | None = setting(
        None,
        "With --update: if more images are gone, change nothing and end with exit code 3.",
        "N|P%",
        unset="any number",
        group=RESUMING,
    )
    on_error: OnError = setting(
        "skip",
        "An image that fails: skip marks it and goes on, stop ends the run with exit code 4.",
        "HOW",
        choices=ON_ERRORS,
        group=FAILURES,
    )
    time_limit: str | None = setting(
        None,
        "Stop cleanly within this time, such as 55m, with exit code 0; the same command resumes "
        "the run.",
        "TIME",
        group=RESUMING,
    )
    checkpoint_seconds: float = setting(
        5.0,
        "Save progress this often: what a crash costs at most.",
        "SECONDS",
        kind=float,
        within=(0, _LONGEST_SECONDS),
        group=RESUMING,
    )
    specs: tuple[LayerSpec, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name, option in SETTINGS.items():
            object.__setattr__(self, name, plain_value(name, option, getattr(self, name)))
        wrong = wrong_values(self)
        if are_texts(self):
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
        """Return the preprocessing that these settings amount to."""
        own = NORMALISATIONS[self.transform_name]
        size = self.size or own.size
        resize = self.resize or round(size * own.resize / own.size)
        named_pillow = self.decode in ("auto", "pillow")
        return Preprocess(
            size=size,
            resize=resize if self.crop == "center" else None,
            crop=self.crop,
            exif=self.exif,
            icc=self.icc,
            decode=cast("Decode", "exact" if named_pillow else self.decode),
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
    def for_weights(cls, weights: str | os.PathLike[str], **given: Any) -> Settings:
        """Return settings as given, and for those not given what a weight file was trained with.

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
        """Return how many of `images` may fail before the run counts as failed."""
        return share_of(self.max_failures, images)

    def removals_allowed(self, images: int) -> int:
        """Return how many of `images` may be gone before an update is refused."""
        return share_of(self.max_removed, images)

    @property
    def seconds_allowed(self) -> float | None:
        """`time_limit` in seconds."""
        return seconds_of(self.time_limit)

    def as_dict(self) -> dict[str, Any]:
        """Return all settings by name, ready for JSON."""
        return {name: getattr(self, name) for name in SETTING_NAMES}


SETTINGS = options_of(Settings)
"""Every setting by name, as it is declared."""

SETTING_NAMES = tuple(SETTINGS)

if Settings.__doc__:  # not with python -OO
    _before, _specs, _after = Settings.__doc__.partition("specs:")
    _indent = _before[_before.rindex("\n") :]  # Python 3.13 has less of it
    _described = [f"{name}: {one.full_help}" for name, one in SETTINGS.items()]
    Settings.__doc__ = _before + _indent.join([*_described, _specs]) + _after
