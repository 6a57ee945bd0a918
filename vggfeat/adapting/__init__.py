"""Adapting a network to other images: parts of it are fine-tuned on images of known classes.

`adapt` is in `vggfeat.adapting.command`: the command line reads the defaults from here, and
`--help` must not load what reads images.
"""

from __future__ import annotations

from vggfeat.adapting.report import Adapted
from vggfeat.adapting.settings import AdaptSettings

__all__ = ["AdaptSettings", "Adapted"]
