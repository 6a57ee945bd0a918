"""How to fit a zero-shot model: every choice, with its default, in one place."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from vggfeat.errors import UsageError
from vggfeat.zeroshot.features import INPUT_NORMS, InputNorm

ZeroShotMethod = Literal["eszsl", "devise"]
ZERO_SHOT_METHODS: tuple[ZeroShotMethod, ...] = get_args(ZeroShotMethod)


@dataclass(frozen=True, slots=True)
class ZeroShotSettings:
    """How to fit. Text as on the command line.

    Attributes:
        layers: layers of the cache, separated by commas; None is all that are vectors.
        method: `eszsl`, in closed form; or `devise`, trained with a ranking loss.
        labels: a CSV file of path,label; without it folders name the classes.
        seen: classes to learn from: a file with one a line, or names separated by commas.
        unseen: classes to leave out, likewise; with neither all classes are learnt from.
        attention: learn weights of the layers that each image decides itself.
        norm: of each layer: `standard`, `l2` or `ssr`. ESZSL's map has no constant term, so that
            features that are not centred serve it badly where classes are many.
        gamma: ESZSL's regulariser of the features' side; None chooses it.
        lambda_: of the class vectors' side; likewise.
        margin: of DeViSE's loss.
        tree: a CSV file of child,parent: worse mistakes cost more.
        beta: how sharply cost grows with the height in the tree: see `tree.TreeDistances.costs`.
        held_out: share of each seen class's images that is kept for `evaluate`.
        seed: of all that is drawn.
        device: where to learn: see `Settings.device`.
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
        """Refuses what does not go together.

        Raises:
            UsageError: says what and why, all at once.
        """
        wrong = [*self._wrong_choices(), *self._wrong_numbers()]
        if self.seen is not None and self.unseen is not None:
            wrong.append("--seen and --unseen name the same split; give one of them")
        if self.method == "devise" and (self.gamma is not None or self.lambda_ is not None):
            wrong.append("--gamma and --lambda belong to the method eszsl, not devise")
        if wrong:
            raise UsageError("; ".join(wrong))

    def _wrong_choices(self) -> list[str]:
        known = {"method": ZERO_SHOT_METHODS, "norm": INPUT_NORMS}
        return [
            f"{name} {getattr(self, name)!r} is not known; expected one of {', '.join(choices)}"
            for name, choices in known.items()
            if getattr(self, name) not in choices
        ]

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
