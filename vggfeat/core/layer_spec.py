"""The layer grammar: `NAME[.pre][:POOL][:NORM]`, comma separated.

    conv5_3              after its ReLU, averaged over the map
    conv3_4:gem(p=4)     generalised mean with p = 4
    conv5_4:rmac:l2      regional maxima, then unit length
    conv4_4.pre:map      before the ReLU, the whole map

A spec's canonical form, with aliases resolved and defaults left out, names its dataset in the file.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Literal, get_args

from vggfeat.core.choices import choose, unknown_value
from vggfeat.core.vgg_layers import GRID, Layer, find_layer, layer_table
from vggfeat.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

Norm = Literal["none", "l2", "ssr"]

NORMS: tuple[Norm, ...] = get_args(Norm)

GEM_P = 3.0
"""Exponent of GeM before any learning, in Radenović et al. 2018."""

GEM_SMALLEST_P = 0.1
"""Below it the root 1/p magnifies the rounding of float32 into the result."""

RMAC_LEVELS = 3
"""Scales of R-MAC in Tolias et al. 2016."""

_RMAC_OVERLAP = Fraction(2, 5)

SPP_LEVELS = (1, 2, 3, 6)
"""Pyramid of He et al. 2014 for ImageNet: 50 bins."""


MOST_SPECS = 256
"""Layer specs of one request."""

LONGEST_TEXT = 8192
"""Characters of a text of layer specs."""

_SHOWN = 20  # specs that an error names
_DIGITS = 3  # of a number in brackets


@dataclass(frozen=True, slots=True)
class Pool:
    """How a map becomes one row of features.

    Attributes:
        name: one of `POOLS`.
        p: exponent of `gem`.
        levels: of `spp` the bins a side at each level; of `rmac` and `regions` one number, the
            scales.
    """

    name: str = "avg"
    p: float = GEM_P
    levels: tuple[int, ...] = ()

    def __str__(self) -> str:
        return self.name + POOLS[self.name].arguments(self)

    def output_shape(self, channels: int, height: int, width: int) -> tuple[int, ...]:
        """Return the shape of one row for a (channels, height, width) map."""
        return POOLS[self.name].row_shape(self, channels, height, width)

    @property
    def keeps_positions(self) -> bool:
        """Whether the row's size depends on the image's size."""
        return POOLS[self.name].keeps_positions


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """A requested layer: which, before or behind its ReLU, how pooled, how normalised."""

    layer: Layer
    pre: bool = False
    pool: Pool | None = None
    norm: Norm = "none"

    def __str__(self) -> str:
        parts = [self.layer.name + (".pre" if self.pre else "")]
        if self.pool is not None and str(self.pool) != "avg":
            parts.append(str(self.pool))
        if self.norm != "none":
            parts.append(self.norm)
        return ":".join(parts)

    def output_shape(self, height: int, width: int, classes: int) -> tuple[int, ...]:
        """Return the shape of one row for an input of that size and so many classes."""
        channels = classes if self.layer.name in ("fc8", "prob") else self.layer.channels
        if self.pool is None:
            return (channels,)
        return self.pool.output_shape(channels, *self.layer.grid(height, width))


def parse_specs(
    text: str, model: str, *, pool: str = "avg", norm: str = "none"
) -> tuple[LayerSpec, ...]:
    """Return the specs that `text` names, in its order, each once.

    Args:
        text: specs separated by commas; a comma inside brackets separates nothing.
        model: the VGG variant whose layers they are.
        pool: for maps that name none.
        norm: for specs that name none.

    Every spec and default that is wrong is named in one UsageError.
    """
    layer_table(model)  # or each of the specs would report the same unknown model
    parts = split_specs(text)
    if len(parts) > MOST_SPECS:
        raise UsageError(f"{len(parts)} layers are requested; at most {MOST_SPECS} are computed")
    default_pool, default_norm, wrong = _parse_defaults(pool, norm)
    specs: dict[str, LayerSpec] = {}
    for part in parts:
        try:
            spec = _parse_spec(part, model, default_pool, default_norm)
        except UsageError as error:
            wrong.append(str(error))
        else:
            specs.setdefault(str(spec), spec)
    if not parts:
        wrong.append(
            "no layers requested; expected for example `--layers conv5_3,fc7`, or a preset such as "
            "`--config overall`"
        )
    if len(wrong) > _SHOWN:
        wrong = [*wrong[:_SHOWN], f"and {len(wrong) - _SHOWN} more"]
    if wrong:
        raise UsageError("; ".join(wrong))
    return tuple(specs.values())


def split_specs(text: str) -> list[str]:
    """Split at commas outside brackets; drop blanks around the parts, and empty parts.

    Raises UsageError for a text of more than `LONGEST_TEXT` characters.
    """
    if len(text) > LONGEST_TEXT:
        raise UsageError(
            f"layers: a text of {len(text)} characters, beginning {text[:40]!r}; at most "
            f"{LONGEST_TEXT} are read"
        )
    parts = re.split(r",(?![^(]*\))", text)
    return [part.strip() for part in parts if part.strip()]


def _parse_defaults(pool: str, norm: str) -> tuple[Pool, Norm, list[str]]:
    default_pool, default_norm = Pool(), NORMS[0]
    wrong: list[str] = []
    try:
        default_pool = _parse_pool(pool, f"default pool {pool!r}")
    except UsageError as error:
        wrong.append(str(error))
    try:
        default_norm = choose("norm", NORMS, norm)
    except UsageError as error:
        wrong.append(str(error))
    return default_pool, default_norm, wrong


def _parse_spec(text: str, model: str, default_pool: Pool, default_norm: Norm) -> LayerSpec:
    name, *modifiers = (part.strip() for part in text.split(":"))
    pre = name.lower().endswith(".pre")
    layer = find_layer(model, name[: -len(".pre")] if pre else name)
    if pre and layer.relu_index is None:
        raise UsageError(
            f"layer spec {text!r}: {layer.name} has no ReLU, so nothing is in front of it; "
            f"write {layer.name}"
        )
    pool, norm = _parse_modifiers(text, modifiers)
    if not layer.is_map:
        if pool is not None:
            raise UsageError(
                f"layer spec {text!r}: {layer.name} is a vector and takes no pool; "
                f"write {layer.name}"
            )
        return LayerSpec(layer, pre, None, norm or default_norm)
    return LayerSpec(layer, pre, pool or default_pool, norm or default_norm)


def _parse_modifiers(text: str, modifiers: list[str]) -> tuple[Pool | None, Norm | None]:
    pool: Pool | None = None
    norm: Norm | None = None
    for word in modifiers:
        if norm is None and word in NORMS:
            norm = choose("norm", NORMS, word)
        elif pool is None and norm is None and word not in NORMS:
            pool = _parse_pool(word, f"layer spec {text!r}")
        else:
            raise UsageError(
                f"layer spec {text!r}: {word!r} is one too many or out of place; expected "
                "NAME[.pre][:POOL][:NORM]"
            )
    return pool, norm


def _parse_pool(word: str, where: str) -> Pool:
    match = re.fullmatch(r"(\w+)(?:\(([^()]*)\))?", word)
    name = match.group(1) if match else word
    arguments = match.group(2) if match else None
    if name not in POOLS:
        norms = ", ".join(NORMS)
        raise UsageError(f"{where}: {unknown_value('pool', POOLS, word)}; norms are {norms}")
    parse = POOLS[name].parse
    if parse is not None:
        return parse(arguments, where)
    if arguments is not None:
        raise UsageError(f"{where}: {name} takes nothing in brackets; write {name}")
    return Pool(name)


def _parse_gem(arguments: str | None, where: str) -> Pool:
    if arguments is None:
        return Pool("gem")
    try:
        p = float(arguments.strip().removeprefix("p="))
    except ValueError:
        p = math.nan
    if not GEM_SMALLEST_P <= p < math.inf:
        raise UsageError(
            f"{where}: gem({arguments}) has no exponent of {GEM_SMALLEST_P} or more; expected for "
            "example gem(p=4)"
        )
    return Pool("gem", p=p)


def _gem_arguments(pool: Pool) -> str:
    short = f"{pool.p:g}"  # six digits, unless they would name another exponent
    return "" if pool.p == GEM_P else f"(p={short if float(short) == pool.p else pool.p})"


def _parse_spp(arguments: str | None, where: str) -> Pool:
    levels = SPP_LEVELS if arguments is None else _integers(arguments, where, "spp(1,2,4)")
    return Pool("spp", levels=levels)


def _parse_rmac(arguments: str | None, where: str) -> Pool:
    words = str(RMAC_LEVELS) if arguments is None else arguments
    levels = _integers(words.strip().removeprefix("levels="), where, "rmac(levels=3)")
    if len(levels) != 1:
        raise UsageError(f"{where}: rmac takes one number, as in rmac(levels=3)")
    return Pool("rmac", levels=levels)


def _parse_regions(arguments: str | None, where: str) -> Pool:
    return Pool("regions", levels=_parse_rmac(arguments, where).levels)


def _rmac_arguments(pool: Pool) -> str:
    return "" if pool.levels == (RMAC_LEVELS,) else f"(levels={pool.levels[0]})"


def regions_a_side(scale: int, height: int, width: int) -> tuple[int, int]:
    """Return how many regions of a scale R-MAC has along the height and the width of a map."""
    extra = _extra_regions(min(height, width), max(height, width))
    return scale + (extra if height > width else 0), scale + (extra if width > height else 0)


def _extra_regions(short: int, long: int) -> int:
    """Return the paper's m - 1: how many more regions the longer side has than the shorter.

    Chosen so that neighbours at scale 1, squares of side `short`, overlap as nearly as possible by
    40 %; of two equally near, the fewer. A square map has one such region and none to overlap.
    """
    if short == long:
        return 0
    # With g gaps along the longer side neighbours overlap by 1 - (long - short) / (g * short). It
    # grows with g, so the best g is next to the one that would make it exactly 40 %.
    gap = Fraction(long - short, short)
    below = int(gap / (1 - _RMAC_OVERLAP))
    candidates = range(max(1, below), below + 2)
    return min(candidates, key=lambda g: abs(1 - gap / g - _RMAC_OVERLAP))


def _regions_shape(pool: Pool, channels: int, height: int, width: int) -> tuple[int, ...]:
    scales = range(1, pool.levels[0] + 1)
    return (channels * sum(math.prod(regions_a_side(scale, height, width)) for scale in scales),)


def region_width(layer: str, model: str) -> int | None:
    """Return the length of one region's vector of a layer with the pool `regions`, else None.

    Args:
        layer: the canonical spec of a layer that an extraction stored, or any other name.
        model: the network.
    """
    try:
        spec, *others = parse_specs(layer, model)
    except UsageError:  # a derived layer
        return None
    alone = not others and spec.pool is not None and spec.pool.name == "regions"
    return spec.layer.channels if alone else None


def _integers(arguments: str, where: str, example: str) -> tuple[int, ...]:
    words = [word.strip() for word in arguments.split(",")]
    most = 2 * GRID
    if not all(
        word.isdecimal() and len(word) <= _DIGITS and 0 < int(word) <= most for word in words
    ):
        raise UsageError(
            f"{where}: ({arguments}) must be whole numbers from 1 to {most}, as in {example}"
        )
    return tuple(int(word) for word in words)


@dataclass(frozen=True, slots=True)
class PoolKind:
    """One pool of the grammar: how it is written, and the shape of its rows.

    Attributes:
        function: name of the function in `vggfeat.network.pooling` that computes it: the map
            (N, C, H, W) and the `Pool` → float32 (N, *row). A name, since nothing here loads torch.
        row_shape: the `Pool` and channels, height and width of the map → shape of one row.
        keeps_positions: whether the row's size depends on the image's size.
        parse: the text in brackets, None without any, and where it stands, for errors → the `Pool`;
            None for a pool that takes nothing in brackets.
        arguments: the `Pool` → its canonical brackets; empty where all parameters are the defaults.
    """

    function: str
    row_shape: Callable[[Pool, int, int, int], tuple[int, ...]] = (
        lambda _pool, channels, _height, _width: (channels,)
    )
    keeps_positions: bool = False
    parse: Callable[[str | None, str], Pool] | None = None
    arguments: Callable[[Pool], str] = lambda _pool: ""


POOLS: dict[str, PoolKind] = {
    "avg": PoolKind("average_pool"),
    "max": PoolKind("max_pool"),
    "gem": PoolKind("gem_pool", parse=_parse_gem, arguments=_gem_arguments),
    "rmac": PoolKind(
        "rmac_pool",
        parse=_parse_rmac,
        arguments=_rmac_arguments,
    ),
    "regions": PoolKind(
        "regions_pool",
        _regions_shape,
        keeps_positions=True,
        parse=_parse_regions,
        arguments=_rmac_arguments,
    ),
    "spp": PoolKind(
        "spp_pool",
        lambda pool, channels, *_: (channels * sum(side * side for side in pool.levels),),
        parse=_parse_spp,
        arguments=lambda p: "" if p.levels == SPP_LEVELS else f"({','.join(map(str, p.levels))})",
    ),
    "std": PoolKind("deviation_pool"),
    "flatten": PoolKind("flatten_pool", lambda _, *chw: (math.prod(chw),), keeps_positions=True),
    "map": PoolKind("keep_map", lambda _, *chw: chw, keeps_positions=True),
}
"""The pools by name; a new one is a function in `vggfeat.network.pooling` and a line here."""
