"""Settings of `fuse` and `reduce`: each declared once, for options, checks and help."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from vggfeat.core.fusion_spec import (
    FINAL_NORMS,
    METHODS,
    ROW_NORMS,
    FinalNorm,
    Method,
    RowNorm,
    parse_weights,
)
from vggfeat.core.layer_spec import NORMS, Norm
from vggfeat.core.option import LEARNING, problems_of, setting
from vggfeat.errors import UsageError

ReduceMethod = Literal["pca", "standard", "keep"]
REDUCE_METHODS: tuple[ReduceMethod, ...] = get_args(ReduceMethod)

_LAYERS = "Layers of the cache, comma separated."
_MOST = 10**9  # dimensions, more than any layer has


def parse_dims(text: str) -> int | float:
    """Parse `128` as a number of dimensions, `95%` as a share of the variance."""
    try:
        if text.endswith("%"):
            share = float(text[:-1]) / 100
            if 0 < share < 1:
                return share
        elif int(text) >= 1:
            return int(text)
    except ValueError:
        pass
    raise UsageError(f"dims {text!r}: expected a whole number such as 128, or a share such as 95%")


@dataclass(frozen=True, slots=True)
class FuseSettings:
    """Settings of a fusion; `vggfeat fuse --help` describes each of them.

    Attributes:
        layers: layers of the cache, separated by commas, in the order they are joined in; None for
            all that are vectors.
        method, norm, final_norm, weights: see `vggfeat.core.fusion_spec.Recipe`.
        width: for `sum`, the width that layers are projected to by PCA before they are added.
        name: of the new layer; the method's by default.
        labels: learn the weights from a CSV file of labels, or from `folders`.
        pairs: learn the weights from caches of altered versions of the same images.
        device: where to learn: see `Settings.device`.
    """

    layers: str | None = setting(
        None, _LAYERS, "NAME,...", unset="all that are vectors", also=("--layer",)
    )
    method: Method = setting(
        "concat",
        "concat joins the layers end to end, weighted does so with weights, sum adds them, and "
        "attention joins them with weights for each image.",
        "METHOD",
        choices=METHODS,
    )
    norm: RowNorm = setting("l2", "Norm of each layer before fusing.", "NORM", choices=ROW_NORMS)
    final_norm: FinalNorm = setting("l2", "Norm of the fused vector.", "NORM", choices=FINAL_NORMS)
    weights: tuple[float, ...] = setting(
        (),
        "Weight of each layer, such as 2,1,1.",
        "N,...",
        unset="equal",
        parse=parse_weights,
        flag="--layer-weights",
        also=("--weights",),
    )
    width: int | None = setting(
        None,
        "With sum: project layers to this width by PCA first.",
        "N",
        kind=int,
        within=(1, _MOST),
    )
    name: str | None = setting(None, "Name of the new layer.", "NAME", unset="the method")
    labels: str | None = setting(
        None,
        "Learn the weights from labels: a CSV file of path,label, or `folders`.",
        "FILE.csv|folders",
        group=LEARNING,
    )
    pairs: tuple[str, ...] = setting(
        (),
        "Learn the weights from altered versions of the same images (extract --augment); may be "
        "given several times.",
        "FILE.h5",
        kind=list[str],
        parse=tuple,
        group=LEARNING,
    )
    device: str = setting(
        "auto", "Where to learn: auto, cpu, cuda or cuda:N.", "NAME", group=LEARNING
    )

    @property
    def learns(self) -> bool:
        """Whether the weights are learnt."""
        return self.labels is not None or bool(self.pairs)

    @property
    def fits(self) -> bool:
        """Whether anything is fitted, which a model file then keeps."""
        return self.learns or self.norm == "standard" or self.width is not None

    def check(self) -> None:
        """Raise UsageError for settings that are wrong or do not go together."""
        wrong = problems_of(self)
        if self.labels is not None and self.pairs:
            wrong.append("--labels and --pairs are two ways to learn; give one of them")
        if self.method == "attention" and not self.learns:
            wrong.append(
                "the method attention is learnt: give --labels FILE.csv, --labels folders, or "
                "--pairs with caches of altered versions (vggfeat extract --augment)"
            )
        if self.method == "concat" and self.learns:
            wrong.append("concat has no weights to learn; the methods weighted and attention do")
        if self.weights and self.learns:
            wrong.append(
                "weights are given or learnt; leave out --layer-weights, or --labels and --pairs"
            )
        if self.name is not None and not re.fullmatch(r"[0-9A-Za-z][0-9A-Za-z._:+-]*", self.name):
            wrong.append(f"name {self.name!r} must be of letters, digits, and . _ : + - in between")
        if wrong:
            raise UsageError("; ".join(wrong))


@dataclass(frozen=True, slots=True)
class ReduceSettings:
    """Settings of a reduction; `vggfeat reduce --help` describes each of them.

    Attributes:
        layers: layers of the cache, separated by commas; None for all that are vectors.
        method: `pca`, fewer dimensions; `standard`, each dimension to mean 0 and deviation 1;
            `keep`, as they are, for another dtype or norm alone.
        dims: dimensions that PCA leaves, or as a number below 1 the share of the variance.
        whiten: bring the dimensions PCA leaves to equal variance.
        norm: of each vector before: `none`, `l2` or `ssr`.
        final_norm: of each vector afterwards: `none`, `l2`, or None, which is `l2` with whitening,
            as Jégou & Chum (ECCV 2012) do, else `none`.
    """

    layers: str | None = setting(
        None, _LAYERS, "NAME,...", unset="all that are vectors", also=("--layer",)
    )
    method: ReduceMethod = setting(
        "pca",
        "pca leaves fewer dimensions, standard brings each to mean 0 and deviation 1, keep leaves "
        "them as they are, to change the dtype or the norm alone.",
        "METHOD",
        choices=REDUCE_METHODS,
    )
    dims: int | float = setting(
        128,
        "Dimensions to keep, or the share of the variance, as 95%.",
        "N|P%",
        parse=parse_dims,
    )
    whiten: bool = setting(False, "Bring the dimensions kept to equal variance.", kind=bool)
    norm: Norm = setting("none", "Norm of each vector, applied first.", "NORM", choices=NORMS)
    final_norm: FinalNorm | None = setting(
        None,
        "Norm of each vector, applied last.",
        "NORM",
        choices=FINAL_NORMS,
        unset="l2 with --whiten, else none",
    )

    @property
    def final(self) -> FinalNorm:
        """`final_norm` resolved."""
        return self.final_norm or ("l2" if self.whiten else "none")

    def check(self) -> None:
        """Raise UsageError for settings that are wrong or do not go together."""
        wrong = problems_of(self)
        if self.whiten and self.method != "pca":
            wrong.append(
                f"whitening belongs to the method pca; {self.method} does not turn the axes"
            )
        if wrong:
            raise UsageError("; ".join(wrong))
