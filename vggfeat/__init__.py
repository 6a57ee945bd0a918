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
    from vggfeat.cache.merge import Merged, merge
    from vggfeat.cache.reader import FeatureCache
    from vggfeat.cache.sharded import ShardedCache
    from vggfeat.cache.sharded import open_cache as open  # noqa: A004 `vggfeat.open`, as in gzip.open
    from vggfeat.cache.sharding import Sharding
    from vggfeat.cache.torch_dataset import FeatureDataset, as_tensor
    from vggfeat.cache.verify import Verification, verify
    from vggfeat.core.records import Progress, Summary
    from vggfeat.core.settings import Settings, load_config
    from vggfeat.errors import VggfeatError
    from vggfeat.exporters import Exported, export
    from vggfeat.extraction.api import extract
    from vggfeat.extraction.benchmark import Bench, bench
    from vggfeat.extraction.calibration import calibrate
    from vggfeat.extraction.ray_cluster import RayCluster
    from vggfeat.extraction.trace import trace
    from vggfeat.extraction.update import Wish
    from vggfeat.finetuning import Adapted, AdaptSettings
    from vggfeat.finetuning.adapt import adapt
    from vggfeat.images.statistics import PixelStats, stats
    from vggfeat.network.extractor import Extractor
    from vggfeat.retrieval.compare import Comparison, compare
    from vggfeat.retrieval.duplicates import Duplicates, duplicates
    from vggfeat.retrieval.quantization_loss import measure_loss
    from vggfeat.retrieval.search import Findings, search
    from vggfeat.transforms.derive import Derived
    from vggfeat.transforms.fuse import FuseSettings, fuse
    from vggfeat.transforms.reduce import ReduceSettings, reduce
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
    "AdaptSettings": ("vggfeat.finetuning", "AdaptSettings"),
    "Adapted": ("vggfeat.finetuning", "Adapted"),
    "Bench": ("vggfeat.extraction.benchmark", "Bench"),
    "Comparison": ("vggfeat.retrieval.compare", "Comparison"),
    "Derived": ("vggfeat.transforms.derive", "Derived"),
    "Duplicates": ("vggfeat.retrieval.duplicates", "Duplicates"),
    "Evaluation": ("vggfeat.zeroshot", "Evaluation"),
    "Exported": ("vggfeat.exporters", "Exported"),
    "Extractor": ("vggfeat.network.extractor", "Extractor"),
    "FeatureCache": ("vggfeat.cache.reader", "FeatureCache"),
    "FeatureDataset": ("vggfeat.cache.torch_dataset", "FeatureDataset"),
    "Findings": ("vggfeat.retrieval.search", "Findings"),
    "Fitting": ("vggfeat.zeroshot", "Fitting"),
    "FuseSettings": ("vggfeat.transforms.fuse", "FuseSettings"),
    "Merged": ("vggfeat.cache.merge", "Merged"),
    "PixelStats": ("vggfeat.images.statistics", "PixelStats"),
    "Predictions": ("vggfeat.zeroshot", "Predictions"),
    "Progress": ("vggfeat.core.records", "Progress"),
    "RayCluster": ("vggfeat.extraction.ray_cluster", "RayCluster"),
    "ReduceSettings": ("vggfeat.transforms.reduce", "ReduceSettings"),
    "Settings": ("vggfeat.core.settings", "Settings"),
    "ShardedCache": ("vggfeat.cache.sharded", "ShardedCache"),
    "Sharding": ("vggfeat.cache.sharding", "Sharding"),
    "Summary": ("vggfeat.core.records", "Summary"),
    "Verification": ("vggfeat.cache.verify", "Verification"),
    "VggfeatError": ("vggfeat.errors", "VggfeatError"),
    "Wish": ("vggfeat.extraction.update", "Wish"),
    "ZeroShotModel": ("vggfeat.zeroshot", "ZeroShotModel"),
    "ZeroShotSettings": ("vggfeat.zeroshot", "ZeroShotSettings"),
    "adapt": ("vggfeat.finetuning.adapt", "adapt"),
    "as_tensor": ("vggfeat.cache.torch_dataset", "as_tensor"),
    "bench": ("vggfeat.extraction.benchmark", "bench"),
    "calibrate": ("vggfeat.extraction.calibration", "calibrate"),
    "class_vectors": ("vggfeat.zeroshot", "class_vectors"),
    "compare": ("vggfeat.retrieval.compare", "compare"),
    "duplicates": ("vggfeat.retrieval.duplicates", "duplicates"),
    "evaluate_zeroshot": ("vggfeat.zeroshot", "evaluate_zeroshot"),
    "export": ("vggfeat.exporters", "export"),
    "extract": ("vggfeat.extraction.api", "extract"),
    "fit_zeroshot": ("vggfeat.zeroshot", "fit_zeroshot"),
    "fuse": ("vggfeat.transforms.fuse", "fuse"),
    "load_config": ("vggfeat.core.settings", "load_config"),
    "measure_loss": ("vggfeat.retrieval.quantization_loss", "measure_loss"),
    "merge": ("vggfeat.cache.merge", "merge"),
    "open": ("vggfeat.cache.sharded", "open_cache"),
    "predict_zeroshot": ("vggfeat.zeroshot", "predict_zeroshot"),
    "reduce": ("vggfeat.transforms.reduce", "reduce"),
    "search": ("vggfeat.retrieval.search", "search"),
    "stats": ("vggfeat.images.statistics", "stats"),
    "trace": ("vggfeat.extraction.trace", "trace"),
    "verify": ("vggfeat.cache.verify", "verify"),
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
