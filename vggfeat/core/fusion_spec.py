"""How several layers become one vector: the method, the layers, their normalisation and weights."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from vggfeat.core.choices import unknown_choices, unknown_value
from vggfeat.core.steps import Step
from vggfeat.core.text import counted
from vggfeat.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Method = Literal["concat", "weighted", "sum", "attention"]
RowNorm = Literal["none", "l2", "ssr", "standard"]
FinalNorm = Literal["none", "l2"]

METHODS: tuple[Method, ...] = get_args(Method)
ROW_NORMS: tuple[RowNorm, ...] = get_args(RowNorm)
FINAL_NORMS: tuple[FinalNorm, ...] = get_args(FinalNorm)

ON_THE_FLY: tuple[Method, ...] = ("concat", "weighted", "sum")
"""Methods that need nothing fitted, so that `extract` can use them."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How several layers become one vector.

    Each layer is normalised by itself, so that its range does not decide, then multiplied by its
    factor, then all are joined or added, then the result is normalised.

    Attributes:
        method: `concat` joins the layers end to end; `weighted` does so with weights; `sum` adds
            them with weights; `attention` joins them with weights of each image's own.
        layers: canonical specs, two or more.
        norm: of each layer before fusing: `l2`, unit length; `ssr`, signed square root and then
            unit length; `standard`, each dimension to mean 0 and deviation 1 over the images,
            divided by the root of the width so that wide layers do not decide; `none`.
        final_norm: of the fused vector: `l2` or `none`.
        weights: one a layer, not negative, not all 0; empty where all are equal or learnt.
    """

    method: Method
    layers: tuple[str, ...]
    norm: RowNorm = "l2"
    final_norm: FinalNorm = "l2"
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        known = {"method": METHODS, "norm": ROW_NORMS, "final_norm": FINAL_NORMS}
        wrong = unknown_choices(self, known)
        if len(self.layers) < 2:  # noqa: PLR2004 one layer is fused with nothing
            found = ", ".join(self.layers) or "none"
            wrong.append(f"fusing takes two layers or more, found {found}; name them with --layers")
        wrong += _wrong_weights(self)
        if wrong:
            raise UsageError("; ".join(wrong))

    @property
    def factors(self) -> tuple[float, ...]:
        """The factor of each layer.

        Of `weighted`, the root of its share of the weights: then the cosine of two fused vectors
        is the mean of their layers' cosines with these weights. Of `sum` the share itself.
        """
        if self.method == "concat":
            return (1.0,) * len(self.layers)
        weights = self.weights or (1.0,) * len(self.layers)
        shares = [weight / sum(weights) for weight in weights]
        return tuple(map(math.sqrt, shares) if self.method == "weighted" else shares)

    def width(self, widths: Mapping[str, int]) -> int:
        """Return the length of the fused vector for layers of these widths."""
        found = [widths[layer] for layer in self.layers]
        if self.method != "sum":
            return sum(found)
        if len(set(found)) > 1:
            each = ", ".join(f"{layer} {widths[layer]}" for layer in self.layers)
            raise UsageError(
                f"layers of unequal width cannot be added: {each}; give a common --width to "
                "project them to (vggfeat fuse), or use concat or weighted"
            )
        return found[0]

    def step(self) -> Step:
        """Return the step of a cache that is fused so."""
        return Step(
            {
                "step": "fuse",
                "method": self.method,
                "layers": list(self.layers),
                "norm": self.norm,
                "final_norm": self.final_norm,
                "weights": list(self.weights),
            }
        )


def _wrong_weights(recipe: Recipe) -> list[str]:
    weights = recipe.weights
    if not weights:
        return []
    if recipe.method in ("concat", "attention"):
        other = "weighted" if recipe.method == "concat" else "weighted or sum"
        return [f"{recipe.method} takes no weights; the method {other} does"]
    if len(weights) != len(recipe.layers):
        named = ", ".join(recipe.layers)
        given, layers = counted(len(weights), "weight"), counted(len(recipe.layers), "layer")
        return [f"{given} for {layers} ({named}); give one each"]
    if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
        given = ", ".join(f"{weight:g}" for weight in weights)
        return [f"weights {given} must be numbers of 0 or more, and not all 0"]
    return []


def parse_fuse(text: str) -> tuple[Method, tuple[float, ...]]:
    """Return method and weights of `concat`, `weighted(2,1,1)`, `sum`: what `extract` can fuse."""
    match = re.fullmatch(r"\s*(\w+)\s*(?:\((.*)\))?\s*", text)
    for method in ON_THE_FLY:
        if match and match[1] == method:
            return method, parse_weights(match[2] or "")
    if match and match[1] == "attention":
        raise UsageError(
            "attention is learnt from existing features: extract the layers, then use "
            "`vggfeat fuse --method attention`"
        )
    raise UsageError(
        f"{unknown_value('fuse', ON_THE_FLY, text)}; the last two also take weights, as in "
        "weighted(2,1,1)"
    )


def parse_weights(text: str) -> tuple[float, ...]:
    """Return the numbers of `2,1,0.5`; () for empty text."""
    try:
        return tuple(float(word) for word in text.split(",")) if text.strip() else ()
    except ValueError:
        raise UsageError(f"weights {text!r} are no numbers; expected for example 2,1,0.5") from None


def recipe_of(steps: Sequence[Step]) -> Recipe | None:
    """Return the recipe with which `extract` itself made a cache; None where it fused nothing."""
    if len(steps) != 1 or steps[0].name != "fuse" or "source" in steps[0].record:
        return None
    return recipe_from(steps[0].record)


def recipe_from(step: Mapping[str, Any]) -> Recipe:
    """Return the recipe that `Recipe.step` recorded."""
    return Recipe(
        step["method"],
        tuple(step["layers"]),
        step["norm"],
        step["final_norm"],
        tuple(step["weights"]),
    )
