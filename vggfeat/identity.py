"""What two runs must agree in for their rows to belong in one file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass

from vggfeat.preprocess import Preprocess


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
        activations: for 8-bit integers, each conv layer's name and its largest value behind the
            ReLU, in the order of the network; else empty.
        scales: for features stored as int8, digest of their scales; else empty.
        steps: how the features came from those of the network, first step first, each as JSON with
            sorted keys; empty where they are the network's own.
    """

    model: str
    weights: str
    weights_sha256: str
    precision: str
    dtype: str
    preprocess: Preprocess
    layers: tuple[str, ...]
    activations: tuple[tuple[str, float], ...] = ()
    scales: str = ""
    steps: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """SHA-256 over everything but the weights' name, as hexadecimal digits."""
        parts = {**dataclasses.asdict(self), "preprocess": self.preprocess.recorded()}
        del parts["weights"]
        for name in ("activations", "scales", "steps"):
            if not parts[name]:  # so that files from before it was there stay what they are
                del parts[name]
        text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def differences(self, asked: Identity) -> list[str]:
        """What `asked` wants otherwise than this has, a line each; fewer layers are none."""
        rows = [
            (name, getattr(self, name), getattr(asked, name))
            for name in ("model", "precision", "dtype")
        ]
        rows += [
            (f"preprocess.{item.name}", getattr(self.preprocess, item.name), wanted)
            for item in dataclasses.fields(Preprocess)
            for wanted in [getattr(asked.preprocess, item.name)]
        ]
        lines = [f"{name}: file {had}, asked {want}" for name, had, want in rows if had != want]
        if self.weights_sha256 != asked.weights_sha256:
            lines.append(
                f"weights: file {self.weights} ({self.weights_sha256[:8]}), "
                f"asked {asked.weights} ({asked.weights_sha256[:8]})"
            )
        if self.activations != asked.activations and self.precision == asked.precision:
            lines.append("activations: calibrated on other images")
        if self.scales != asked.scales and self.dtype == asked.dtype:
            lines.append("scales: int8 scaled to other images")
        if self.steps != asked.steps:
            lines.append(f"made by: file {_steps_text(self)}, asked {_steps_text(asked)}")
        missing = [layer for layer in asked.layers if layer not in self.layers]
        if missing:
            lines.append(f"layers: file {','.join(self.layers)}, asked also {','.join(missing)}")
        return lines


def _steps_text(identity: Identity) -> str:
    return " then ".join(identity.steps) or "the network alone"
