"""Adapting a network to other images: parts of it are fine-tuned on images of known classes.

`adapt` is in `vggfeat.finetuning.adapt`: the command line reads the defaults from here, and
`--help` must not load what reads images.
"""

from __future__ import annotations

from vggfeat.finetuning.report import Adapted
from vggfeat.finetuning.settings import AdaptSettings

__all__ = ["AdaptSettings", "Adapted"]
