"""Features of any layers of a VGG network, from folders of images into one memory-mapped file.

    import vggfeat

    settings = vggfeat.Settings(layers="conv5_3,fc7")
    vggfeat.extract("./images", "feats.h5", settings)
    cache = vggfeat.open("feats.h5")
    cache["fc7"]     # (N, 4096) float16, memory-mapped

Names are looked up when first used, so that reading a cache never loads torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vggfeat._version import __version__

if TYPE_CHECKING:
    from vggfeat.benchmark import Bench, bench
    from vggfeat.calibration import calibrate
    from vggfeat.config import Settings, load_config
    from vggfeat.errors import VggfeatError
    from vggfeat.extractor import Extractor
    from vggfeat.merging import Merged, merge
    from vggfeat.reader import FeatureCache
    from vggfeat.reader import open_cache as open  # noqa: A004 `vggfeat.open`, as in gzip.open
    from vggfeat.records import Progress, Summary
    from vggfeat.run import extract
    from vggfeat.tensors import FeatureDataset, as_tensor
    from vggfeat.update import Wish
    from vggfeat.verification import Verification, verify

_HOMES = {
    "Bench": ("vggfeat.benchmark", "Bench"),
    "Extractor": ("vggfeat.extractor", "Extractor"),
    "FeatureCache": ("vggfeat.reader", "FeatureCache"),
    "FeatureDataset": ("vggfeat.tensors", "FeatureDataset"),
    "Merged": ("vggfeat.merging", "Merged"),
    "Progress": ("vggfeat.records", "Progress"),
    "Settings": ("vggfeat.config", "Settings"),
    "Summary": ("vggfeat.records", "Summary"),
    "Verification": ("vggfeat.verification", "Verification"),
    "Wish": ("vggfeat.update", "Wish"),
    "VggfeatError": ("vggfeat.errors", "VggfeatError"),
    "as_tensor": ("vggfeat.tensors", "as_tensor"),
    "bench": ("vggfeat.benchmark", "bench"),
    "calibrate": ("vggfeat.calibration", "calibrate"),
    "extract": ("vggfeat.run", "extract"),
    "load_config": ("vggfeat.config", "load_config"),
    "merge": ("vggfeat.merging", "merge"),
    "open": ("vggfeat.reader", "open_cache"),
    "verify": ("vggfeat.verification", "verify"),
}

__all__ = [
    "Bench",
    "Extractor",
    "FeatureCache",
    "FeatureDataset",
    "Merged",
    "Progress",
    "Settings",
    "Summary",
    "Verification",
    "VggfeatError",
    "Wish",
    "__version__",
    "as_tensor",
    "bench",
    "calibrate",
    "extract",
    "load_config",
    "merge",
    "open",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vggfeat' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return __all__
