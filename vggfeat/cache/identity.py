"""The settings that two runs must share for their rows to belong in one file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vggfeat.core.preprocessing import Preprocess

if TYPE_CHECKING:
    from vggfeat.core.steps import Step


@dataclass(frozen=True, slots=True)
class Identity:
    """What two runs must agree in for their rows to belong in one file.

    Attributes:
        model: VGG variant.
        weights: name of the weights, for people.
        weights_sha256: digest of the weights, for the fingerprint.
        precision: the network's, resolved.
        dtype: of the stored features.
        preprocess: recorded whole.
        layers: canonical specs, sorted.
        first_layer: `kaiming` if the first convolution was drawn anew; else empty, and the channels
            in `preprocess` say whether it was rebuilt.
        activations: for 8-bit integers, each conv layer's name and its largest value behind the
            ReLU, in the order of the network; else empty.
        scales: for features stored as int8, digest of their scales; else empty.
        steps: how the features came from those of the network, first step first; empty where they
            are the network's own.
    """

    model: str
    weights: str
    weights_sha256: str
    precision: str
    dtype: str
    preprocess: Preprocess
    layers: tuple[str, ...]
    first_layer: str = ""
    activations: tuple[tuple[str, float], ...] = ()
    scales: str = ""
    steps: tuple[Step, ...] = ()

    def fingerprint(self) -> str:
        """SHA-256 over everything but the weights' name, as hexadecimal digits."""
        parts = {
            **dataclasses.asdict(self),
            "preprocess": self.preprocess.recorded(),
            "steps": [step.text() for step in self.steps],
        }
        del parts["weights"]
        for name in ("first_layer", "activations", "scales", "steps"):
            if not parts[name]:  # so that files from before it was there stay what they are
                del parts[name]
        text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def differences(self, requested: Identity) -> list[str]:
        """Return how `requested` differs from this, a line each; fewer layers are no difference."""
        rows = [
            (name, getattr(self, name), getattr(requested, name))
            for name in ("model", "precision", "dtype")
        ]
        rows += [
            (f"preprocess.{item.name}", getattr(self.preprocess, item.name), wanted)
            for item in dataclasses.fields(Preprocess)
            for wanted in [getattr(requested.preprocess, item.name)]
        ]
        lines = [
            f"{name}: file {existing}, requested {wanted}"
            for name, existing, wanted in rows
            if existing != wanted
        ]
        if self.first_layer != requested.first_layer:
            one, other = (layer or "sum" for layer in (self.first_layer, requested.first_layer))
            lines.append(f"first layer: file {one}, requested {other}")
        if self.weights_sha256 != requested.weights_sha256:
            lines.append(
                f"weights: file {self.weights} ({self.weights_sha256[:8]}), "
                f"requested {requested.weights} ({requested.weights_sha256[:8]})"
            )
        if self.activations != requested.activations and self.precision == requested.precision:
            lines.append("activations: calibrated on other images")
        if self.scales != requested.scales and self.dtype == requested.dtype:
            lines.append("scales: int8 scaled to other images")
        lines += _unlike_steps(self.steps, requested.steps)
        missing = [layer for layer in requested.layers if layer not in self.layers]
        if missing:
            more = ",".join(missing)
            lines.append(f"layers: file {','.join(self.layers)}, requested also {more}")
        return lines


def _unlike_steps(one: tuple[Step, ...], other: tuple[Step, ...]) -> list[str]:
    """Return how two lists of transform steps differ, a line each."""
    names = [" then ".join(step.name for step in steps) for steps in (one, other)]
    if names[0] != names[1]:
        alone = "the network alone"
        return [f"made by: file {names[0] or alone}, requested {names[1] or alone}"]
    return [
        f"{before.name} {name}: file {before.record.get(name)}, requested {after.record.get(name)}"
        for before, after in zip(one, other, strict=True)
        for name in sorted({*before.record, *after.record})
        if before.record.get(name) != after.record.get(name)
    ]
