"""Files that hold named tensors: what lies where in each format, without reading a value.

Begin with `registry`: a format is one file here and one line there. What the names mean is the
business of `vggfeat.network.dialects`.
"""

from vggfeat.network.containers.records import Contents, RefusedError, StoredTensor
from vggfeat.network.containers.registry import read_contents

__all__ = ["Contents", "RefusedError", "StoredTensor", "read_contents"]
