"""Translate the names and layouts of tensors in weight files to torchvision's.

Begin with `registry`: a dialect is one file here and one line there.
"""

from vggfeat.network.dialects.records import Dialect, Reading, TensorSource
from vggfeat.network.dialects.registry import DIALECTS, translate

__all__ = ["DIALECTS", "Dialect", "Reading", "TensorSource", "translate"]
