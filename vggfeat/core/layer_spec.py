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
from typing import Literal, get_args

from vggfeat.core.vgg_layers import GRID, Layer, find_layer, layer_table
from vggfeat.errors import UsageError

PoolName = Literal["avg", "max", "gem", "rmac", "spp", "flatten", "map"]
Norm = Literal["none", "l2", "ssr"]

POOLS: tuple[PoolName, ...] = get_args(PoolName)
NORMS: tuple[Norm, ...] = get_args(Norm)

GEM_P = 3.0
"""Exponent of GeM before any learning, in Radenović et al. 2018."""

GEM_SMALLEST_P = 0.1
"""Below it the root 1/p magnifies the rounding of float32 into the result."""

RMAC_LEVELS = 3
"""Scales of R-MAC in Tolias et al. 2016."""

SPP_LEVELS = (1, 2, 3, 6)
"""Pyramid of He et al. 2014 for ImageNet: 50 bins."""


@dataclass(frozen=True, slots=True)
class Pool:
    """How a map becomes one row of features.

    Attributes:
        name: one of `POOLS`.
        p: exponent of `gem`.
        levels: of `spp` the bins a side at each level; of `rmac` one number, its scales.
    """

    name: PoolName = "avg"
    p: float = GEM_P
    levels: tuple[int, ...] = ()

    def __str__(self) -> str:
        if self.name == "gem" and self.p != GEM_P:
            short = f"{self.p:g}"  # six digits, unless they would name another exponent
            return f"gem(p={short if float(short) == self.p else self.p})"
        if self.name == "spp" and self.levels != SPP_LEVELS:
            return f"spp({','.join(map(str, self.levels))})"
        if self.name == "rmac" and self.levels != (RMAC_LEVELS,):
            return f"rmac(levels={self.levels[0]})"
        return self.name

    def output_shape(self, channels: int, height: int, width: int) -> tuple[int, ...]:
        """Shape of one row for a (channels, height, width) map."""
        if self.name == "map":
            return (channels, height, width)
        if self.name == "flatten":
            return (channels * height * width,)
        if self.name == "spp":
            return (channels * sum(side * side for side in self.levels),)
        return (channels,)

    @property
    def keeps_positions(self) -> bool:
        """Whether the row's size depends on the image's size."""
        return self.name in ("map", "flatten")


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One layer asked for: which, before or behind its ReLU, how pooled, how normalised."""

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
        """Shape of one row for an input of that size and a classifier of that many classes."""
        channels = classes if self.layer.name in ("fc8", "prob") else self.layer.channels
        if self.pool is None:
            return (channels,)
        return self.pool.output_shape(channels, *self.layer.grid(height, width))


def parse_specs(
    text: str, model: str, *, pool: str = "avg", norm: str = "none"
) -> tuple[LayerSpec, ...]:
    """The specs that `text` names, in its order, each once.

    Args:
        text: specs separated by commas; a comma inside brackets separates nothing.
        model: the VGG variant whose layers they are.
        pool: for maps that name none.
        norm: for specs that name none.

    Raises:
        UsageError: names every spec and default that is wrong, and why; or the unknown model.
    """
    layer_table(model)  # or each of the specs would report the same unknown model
    default_pool, default_norm, wrong = _parse_defaults(pool, norm)
    specs: dict[str, LayerSpec] = {}
    for part in split_specs(text):
        try:
            spec = _parse_spec(part, model, default_pool, default_norm)
        except UsageError as error:
            wrong.append(str(error))
        else:
            specs.setdefault(str(spec), spec)
    if not split_specs(text):
        wrong.append(
            "no layers asked for; expected for example `--layers conv5_3,fc7`, or a preset such as "
            "`--config overall`"
        )
    if wrong:
        raise UsageError("; ".join(wrong))
    return tuple(specs.values())


def split_specs(text: str) -> list[str]:
    """The parts between commas that stand outside brackets, blanks around them dropped."""
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
        default_norm = _parse_norm(norm)
    except UsageError as error:
        wrong.append(str(error))
    return default_pool, default_norm, wrong


def _parse_spec(text: str, model: str, default_pool: Pool, default_norm: Norm) -> LayerSpec:
    name, *modifiers = (part.strip() for part in text.split(":"))
    pre = name.endswith(".pre")
    layer = find_layer(model, name.removesuffix(".pre"))
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
            norm = _parse_norm(word)
        elif pool is None and norm is None and word not in NORMS:
            pool = _parse_pool(word, f"layer spec {text!r}")
        else:
            raise UsageError(
                f"layer spec {text!r}: {word!r} is one too many or out of place; expected "
                "NAME[.pre][:POOL][:NORM]"
            )
    return pool, norm


def _parse_norm(word: str) -> Norm:
    for norm in NORMS:
        if norm == word:
            return norm
    raise UsageError(f"norm {word!r} is not known; expected one of {', '.join(NORMS)}")


def _parse_pool(word: str, where: str) -> Pool:
    match = re.fullmatch(r"(\w+)(?:\(([^()]*)\))?", word)
    name = match.group(1) if match else word
    arguments = match.group(2) if match else None
    for known in POOLS:
        if known == name:
            return _pool_with(known, arguments, where)
    raise UsageError(
        f"{where}: {word!r} is no pool; expected one of {', '.join(POOLS)} "
        f"(norms are {', '.join(NORMS)})"
    )


def _pool_with(name: PoolName, arguments: str | None, where: str) -> Pool:
    if name == "gem":
        return Pool("gem", p=_gem_exponent(arguments, where))
    if name == "spp":
        levels = SPP_LEVELS if arguments is None else _integers(arguments, where, "spp(1,2,4)")
        return Pool("spp", levels=levels)
    if name == "rmac":
        words = str(RMAC_LEVELS) if arguments is None else arguments
        levels = _integers(words.strip().removeprefix("levels="), where, "rmac(levels=3)")
        if len(levels) != 1:
            raise UsageError(f"{where}: rmac takes one number, as in rmac(levels=3)")
        return Pool("rmac", levels=levels)
    if arguments is not None:
        raise UsageError(f"{where}: {name} takes nothing in brackets; write {name}")
    return Pool(name)


def _gem_exponent(arguments: str | None, where: str) -> float:
    if arguments is None:
        return GEM_P
    try:
        p = float(arguments.strip().removeprefix("p="))
    except ValueError:
        p = math.nan
    if not GEM_SMALLEST_P <= p < math.inf:
        raise UsageError(
            f"{where}: gem({arguments}) has no exponent of {GEM_SMALLEST_P} or more; expected for "
            "example gem(p=4)"
        )
    return p


def _integers(arguments: str, where: str, example: str) -> tuple[int, ...]:
    words = [word.strip() for word in arguments.split(",")]
    most = 2 * GRID
    if not all(word.isdecimal() and 0 < int(word) <= most for word in words):
        raise UsageError(
            f"{where}: ({arguments}) must be whole numbers from 1 to {most}, as in {example}"
        )
    return tuple(int(word) for word in words)
