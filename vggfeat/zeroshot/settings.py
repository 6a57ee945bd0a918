"""Settings of fitting a zero-shot model, with their defaults and checks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from vggfeat.core.choices import unknown_choices
from vggfeat.errors import UsageError
from vggfeat.zeroshot.features import INPUT_NORMS, InputNorm

ZeroShotMethod = Literal["eszsl", "devise"]
ZERO_SHOT_METHODS: tuple[ZeroShotMethod, ...] = get_args(ZeroShotMethod)


@dataclass(frozen=True, slots=True)
class ZeroShotSettings:
    """How to fit a model; texts are those of the command line.

    Attributes:
        layers: of the cache, separated by commas; None for all that are vectors.
        method: `eszsl`, in closed form; or `devise`, trained with a ranking loss.
        labels: a CSV file of path,label; without it folders name the classes.
        seen: classes to learn from: a file with one a line, or names separated by commas.
        unseen: classes to leave out, likewise; without both all classes are learnt from.
        attention: learn per-image weights of the layers.
        norm: of each layer: `standard`, `l2` or `ssr`. ESZSL's map has no constant term, so
            features that are not centred do badly with many classes.
        gamma: ESZSL's regulariser of the feature side; None chooses it by cross-validation.
        lambda_: of the class-vector side; likewise.
        margin: of DeViSE's loss.
        tree: a CSV file of child,parent, so that worse mistakes cost more.
        beta: how fast cost grows with the height in the tree: see `TreeDistances.costs`.
        held_out: share of each seen class's images kept for `evaluate`.
        seed: of all random choices.
        device: for training: see `Settings.device`.
    """

    layers: str | None = None
    method: ZeroShotMethod = "eszsl"
    labels: str | None = None
    seen: str | None = None
    unseen: str | None = None
    attention: bool = False
    norm: InputNorm = "standard"
    gamma: float | None = None
    lambda_: float | None = None
    margin: float = 0.1
    tree: str | None = None
    beta: float = 4.0
    held_out: float = 0.2
    seed: int = 0
    device: str = "auto"

    def check(self) -> None:
        """Refuse invalid settings and those that exclude each other, all in one error.

        Raises:
            UsageError: names all that is wrong.
        """
        known = {"method": ZERO_SHOT_METHODS, "norm": INPUT_NORMS}
        wrong = [*unknown_choices(self, known), *self._wrong_numbers()]
        if self.seen is not None and self.unseen is not None:
            wrong.append("--seen and --unseen name the same split; give one of them")
        if self.method == "devise" and (self.gamma is not None or self.lambda_ is not None):
            wrong.append("--gamma and --lambda belong to the method eszsl, not devise")
        if wrong:
            raise UsageError("; ".join(wrong))

    def _wrong_numbers(self) -> list[str]:
        above = {
            "gamma": self.gamma,
            "lambda": self.lambda_,
            "margin": self.margin,
            "beta": self.beta,
        }
        wrong = [
            f"{name} {value:g}: expected a number above 0"
            for name, value in above.items()
            if value is not None and not 0 < value < math.inf
        ]
        if not 0 <= self.held_out < 1:
            wrong.append(f"held-out {self.held_out:g}: expected a share of 0 or more, below 1")
        if self.seed < 0:
            wrong.append(f"seed {self.seed}: expected 0 or more")
        return wrong
