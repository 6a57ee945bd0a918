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
    from vggfeat.adapting import Adapted, AdaptSettings
    from vggfeat.adapting.command import adapt
    from vggfeat.answers import Findings, search
    from vggfeat.benchmark import Bench, bench
    from vggfeat.calibration import calibrate
    from vggfeat.cluster import RayCluster
    from vggfeat.comparison import Comparison, compare
    from vggfeat.config import Settings, load_config
    from vggfeat.deriving import Derived
    from vggfeat.engines import extract
    from vggfeat.errors import VggfeatError
    from vggfeat.exporting import Exported, export
    from vggfeat.extractor import Extractor
    from vggfeat.fusing import FuseSettings, fuse
    from vggfeat.loss import measure_loss
    from vggfeat.measuring import PixelStats, stats
    from vggfeat.merging import Merged, merge
    from vggfeat.near import Duplicates, duplicates
    from vggfeat.reader import FeatureCache
    from vggfeat.records import Progress, Summary
    from vggfeat.reducing import ReduceSettings, reduce
    from vggfeat.shardreader import ShardedCache
    from vggfeat.shardreader import open_cache as open  # noqa: A004 `vggfeat.open`, as in gzip.open
    from vggfeat.splitting import Sharding
    from vggfeat.tensors import FeatureDataset, as_tensor
    from vggfeat.tracing import trace
    from vggfeat.update import Wish
    from vggfeat.verification import Verification, verify
    from vggfeat.zeroshot import (
        Evaluation,
        Fitting,
        Predictions,
        ZeroShotModel,
        ZeroShotSettings,
        class_vectors,
        evaluate_zeroshot,
        fit_zeroshot,
        predict_zeroshot,
    )

_HOMES = {
    "AdaptSettings": ("vggfeat.adapting", "AdaptSettings"),
    "Adapted": ("vggfeat.adapting", "Adapted"),
    "Bench": ("vggfeat.benchmark", "Bench"),
    "Comparison": ("vggfeat.comparison", "Comparison"),
    "Derived": ("vggfeat.deriving", "Derived"),
    "Duplicates": ("vggfeat.near", "Duplicates"),
    "Evaluation": ("vggfeat.zeroshot", "Evaluation"),
    "Exported": ("vggfeat.exporting", "Exported"),
    "Extractor": ("vggfeat.extractor", "Extractor"),
    "FeatureCache": ("vggfeat.reader", "FeatureCache"),
    "FeatureDataset": ("vggfeat.tensors", "FeatureDataset"),
    "Findings": ("vggfeat.answers", "Findings"),
    "Fitting": ("vggfeat.zeroshot", "Fitting"),
    "FuseSettings": ("vggfeat.fusing", "FuseSettings"),
    "Merged": ("vggfeat.merging", "Merged"),
    "PixelStats": ("vggfeat.measuring", "PixelStats"),
    "Predictions": ("vggfeat.zeroshot", "Predictions"),
    "Progress": ("vggfeat.records", "Progress"),
    "RayCluster": ("vggfeat.cluster", "RayCluster"),
    "ReduceSettings": ("vggfeat.reducing", "ReduceSettings"),
    "Settings": ("vggfeat.config", "Settings"),
    "ShardedCache": ("vggfeat.shardreader", "ShardedCache"),
    "Sharding": ("vggfeat.splitting", "Sharding"),
    "Summary": ("vggfeat.records", "Summary"),
    "Verification": ("vggfeat.verification", "Verification"),
    "VggfeatError": ("vggfeat.errors", "VggfeatError"),
    "Wish": ("vggfeat.update", "Wish"),
    "ZeroShotModel": ("vggfeat.zeroshot", "ZeroShotModel"),
    "ZeroShotSettings": ("vggfeat.zeroshot", "ZeroShotSettings"),
    "adapt": ("vggfeat.adapting.command", "adapt"),
    "as_tensor": ("vggfeat.tensors", "as_tensor"),
    "bench": ("vggfeat.benchmark", "bench"),
    "calibrate": ("vggfeat.calibration", "calibrate"),
    "class_vectors": ("vggfeat.zeroshot", "class_vectors"),
    "compare": ("vggfeat.comparison", "compare"),
    "duplicates": ("vggfeat.near", "duplicates"),
    "evaluate_zeroshot": ("vggfeat.zeroshot", "evaluate_zeroshot"),
    "export": ("vggfeat.exporting", "export"),
    "extract": ("vggfeat.engines", "extract"),
    "fit_zeroshot": ("vggfeat.zeroshot", "fit_zeroshot"),
    "fuse": ("vggfeat.fusing", "fuse"),
    "load_config": ("vggfeat.config", "load_config"),
    "measure_loss": ("vggfeat.loss", "measure_loss"),
    "merge": ("vggfeat.merging", "merge"),
    "open": ("vggfeat.shardreader", "open_cache"),
    "predict_zeroshot": ("vggfeat.zeroshot", "predict_zeroshot"),
    "reduce": ("vggfeat.reducing", "reduce"),
    "search": ("vggfeat.answers", "search"),
    "stats": ("vggfeat.measuring", "stats"),
    "trace": ("vggfeat.tracing", "trace"),
    "verify": ("vggfeat.verification", "verify"),
}

__all__ = [
    "AdaptSettings",
    "Adapted",
    "Bench",
    "Comparison",
    "Derived",
    "Duplicates",
    "Evaluation",
    "Exported",
    "Extractor",
    "FeatureCache",
    "FeatureDataset",
    "Findings",
    "Fitting",
    "FuseSettings",
    "Merged",
    "PixelStats",
    "Predictions",
    "Progress",
    "RayCluster",
    "ReduceSettings",
    "Settings",
    "ShardedCache",
    "Sharding",
    "Summary",
    "Verification",
    "VggfeatError",
    "Wish",
    "ZeroShotModel",
    "ZeroShotSettings",
    "__version__",
    "adapt",
    "as_tensor",
    "bench",
    "calibrate",
    "class_vectors",
    "compare",
    "duplicates",
    "evaluate_zeroshot",
    "export",
    "extract",
    "fit_zeroshot",
    "fuse",
    "load_config",
    "measure_loss",
    "merge",
    "open",
    "predict_zeroshot",
    "reduce",
    "search",
    "stats",
    "trace",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vggfeat' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return __all__
