"""Settings of fitting a zero-shot model, each declared once; without NumPy, for the options."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from vggfeat.core.option import LEARNING, SPEED, problems_of, setting
from vggfeat.errors import UsageError

ZeroShotMethod = Literal["auto", "eszsl", "ridge", "nearest", "devise"]
InputNorm = Literal["standard", "l2", "ssr"]


@dataclass(frozen=True, slots=True)
class ZeroShotSettings:
    """How to fit a model; texts are those of the command line.

    Attributes:
        layers: of the cache, separated by commas; None for all that are vectors.
        method: `eszsl` or `ridge`, in closed form; `nearest`, words of the nearest seen classes;
            `devise`, trained with a ranking loss; or `auto`, that of the first three which is best
            on seen classes held out. With `gamma` or `lambda_` given, `auto` is `eszsl`.
        labels: a CSV file of path,label; without it folders name the classes.
        seen: classes to learn from: a file with one a line, or names separated by commas.
        unseen: classes to leave out, likewise; without both all classes are learnt from.
        attention: learn per-image weights of the layers.
        norm: of each layer: `standard`, `l2` or `ssr`. ESZSL's map has no constant term, so
            features that are not centred do badly with many classes.
        center: subtract the mean of the seen classes' vectors from all class vectors.
        gamma: regulariser of the feature side, of ESZSL or ridge; None chooses it by
            cross-validation.
        lambda_: of the class-vector side of ESZSL; likewise.
        neighbors: of `nearest`: how many seen classes' words are averaged; likewise.
        margin: of DeViSE's loss.
        tree: a CSV file of child,parent, so that worse mistakes cost more.
        beta: how fast cost grows with the height in the tree: see `TreeDistances.costs`.
        held_out: share of each seen class's images kept for `evaluate`.
        seed: of all random choices.
        device: for training: see `Settings.device`.
    """

    layers: str | None = setting(
        None,
        "Layers of the cache, joined into one vector.",
        "NAME,...",
        unset="all that are vectors",
        also=("--layer",),
    )
    method: ZeroShotMethod = setting(
        "auto",
        "eszsl and ridge (regression) map images to class vectors in closed form; nearest averages "
        "the vectors of the nearest seen classes; devise is trained with a ranking loss; auto "
        "takes whichever of the first three is best on held-out seen classes.",
        "METHOD",
        choices=get_args(ZeroShotMethod),
    )
    labels: str | None = setting(
        None,
        "Classes of the images: a CSV file of path,label.",
        "FILE.csv",
        unset="the folder that an image lies in",
    )
    seen: str | None = setting(
        None,
        "Classes to learn from: a file with one a line, or names separated by commas; all others "
        "are unseen.",
        "FILE|NAME,...",
        unset="all, without --unseen",
    )
    unseen: str | None = setting(
        None,
        "Classes not to learn from, in the same form; they need no images.",
        "FILE|NAME,...",
        unset="none, without --seen",
    )
    attention: bool = setting(
        False,
        "Learn weights of the layers, which differ from image to image.",
        kind=bool,
        group=LEARNING,
    )
    norm: InputNorm = setting(
        "standard",
        "Normalization of each layer: to mean 0 and deviation 1, to unit length, or to unit "
        "length after a signed square root.",
        "NORM",
        choices=get_args(InputNorm),
        group=LEARNING,
    )
    center: bool = setting(
        True,
        "Subtract the mean of the seen classes' vectors from class vectors.",
        kind=bool,
        flag="--center/--no-center",
        group=LEARNING,
    )
    gamma: float | None = setting(
        None,
        "Regularization of the features by eszsl or ridge.",
        "X",
        unset="chosen by cross-validation over classes",
        kind=float,
        within=(0, math.inf),
        above=True,
        group=LEARNING,
    )
    lambda_: float | None = setting(
        None,
        "Regularization of the class vectors by eszsl.",
        "X",
        unset="chosen by cross-validation over classes",
        kind=float,
        within=(0, math.inf),
        above=True,
        group=LEARNING,
    )
    neighbors: int | None = setting(
        None,
        "Nearest seen classes whose words are averaged by nearest.",
        "K",
        group=LEARNING,
        unset="chosen by cross-validation over classes",
        kind=int,
        within=(1, 1_000_000),
    )
    margin: float = setting(
        0.1,
        "Margin of the ranking loss of devise.",
        "X",
        kind=float,
        within=(0, math.inf),
        above=True,
        group=LEARNING,
    )
    tree: str | None = setting(
        None,
        "Class tree, by which worse mistakes cost more: a CSV file of child,parent.",
        "FILE.csv",
        group=LEARNING,
    )
    beta: float = setting(
        4.0,
        "With --tree: how fast the cost of a mistake grows with the height of the lowest common "
        "ancestor of both classes; with a large value all mistakes cost the same.",
        "X",
        kind=float,
        within=(0, math.inf),
        above=True,
        group=LEARNING,
    )
    held_out: float = setting(
        0.2,
        "Share of the images of each seen class that is kept for evaluate.",
        "SHARE",
        kind=float,
        group=LEARNING,
    )
    seed: int = setting(
        0, "Seed of all random choices.", "N", kind=int, within=(0, math.inf), group=LEARNING
    )
    device: str = setting(
        "auto", "Device to compute on: auto, cpu, cuda or cuda:N.", "NAME", group=SPEED
    )

    def check(self) -> None:
        """Refuse invalid settings and those that exclude each other, all in one error.

        Raises:
            UsageError: names all that is wrong.
        """
        wrong = problems_of(self)
        if not 0 <= self.held_out < 1:
            wrong.append(f"held-out {self.held_out:g}: expected a share of 0 or more, below 1")
        if self.seen is not None and self.unseen is not None:
            wrong.append("--seen and --unseen name the same split; give one of them")
        wrong += self._misplaced()
        if wrong:
            raise UsageError("; ".join(wrong))

    @property
    def fitted_method(self) -> ZeroShotMethod:
        """The method; `eszsl` for `auto` with regularisers, which are those of that method."""
        if self.method == "auto" and (self.gamma is not None or self.lambda_ is not None):
            return "eszsl"
        return self.method

    def _misplaced(self) -> list[str]:
        """Name settings of another method than the chosen one."""
        wrong, method = [], self.method
        if method == "devise" and (self.gamma is not None or self.lambda_ is not None):
            wrong.append("--gamma and --lambda belong to the method eszsl, not devise")
        elif method == "nearest" and (self.gamma is not None or self.lambda_ is not None):
            wrong.append("--gamma and --lambda belong to the method eszsl, not nearest")
        elif method == "ridge" and self.lambda_ is not None:
            wrong.append("--lambda belongs to the method eszsl, not ridge")
        if self.neighbors is not None and method != "nearest":
            wrong.append(f"--neighbors belongs to the method nearest, not {method}")
        return wrong
