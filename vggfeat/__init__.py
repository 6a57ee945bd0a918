"""Features of any layers of a VGG network, from folders of images into one memory-mapped file.

    import vggfeat

    settings = vggfeat.Settings(layers="conv5_3,fc7")
    vggfeat.extract("./images", "feats.h5", settings)
    cache = vggfeat.open("feats.h5")
    cache["fc7"]     # (N, 4096) float16, memory-mapped

Begin with `extraction/api.py`, the path of every image through the package; docs/ARCHITECTURE.md
shows the rooms. Names are loaded when they are first used: reading a cache never loads torch.
"""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

from vggfeat._version import __version__ as __version__

if TYPE_CHECKING:
    from vggfeat.cache.merge import MergeReport as MergeReport
    from vggfeat.cache.merge import merge as merge
    from vggfeat.cache.reader import FeatureCache as FeatureCache
    from vggfeat.cache.sharded import ShardedCache as ShardedCache
    from vggfeat.cache.sharded import open_cache
    from vggfeat.cache.sharding import Sharding as Sharding
    from vggfeat.cache.torch_dataset import FeatureDataset as FeatureDataset
    from vggfeat.cache.torch_dataset import as_tensor as as_tensor
    from vggfeat.cache.verify import VerifyReport as VerifyReport
    from vggfeat.cache.verify import verify as verify
    from vggfeat.config import load_config as load_config
    from vggfeat.core.records import Progress as Progress
    from vggfeat.core.records import Summary as Summary
    from vggfeat.core.settings import Settings as Settings
    from vggfeat.errors import CacheError as CacheError
    from vggfeat.errors import CacheMismatchError as CacheMismatchError
    from vggfeat.errors import DecodeError as DecodeError
    from vggfeat.errors import DeviceError as DeviceError
    from vggfeat.errors import InputError as InputError
    from vggfeat.errors import InterruptedRunError as InterruptedRunError
    from vggfeat.errors import LockedError as LockedError
    from vggfeat.errors import MissingFileError as MissingFileError
    from vggfeat.errors import ResourceError as ResourceError
    from vggfeat.errors import ShardsHeldError as ShardsHeldError
    from vggfeat.errors import SpaceError as SpaceError
    from vggfeat.errors import TooManyFailuresError as TooManyFailuresError
    from vggfeat.errors import UnknownLayerError as UnknownLayerError
    from vggfeat.errors import UsageError as UsageError
    from vggfeat.errors import VggfeatError as VggfeatError
    from vggfeat.errors import WeightsError as WeightsError
    from vggfeat.exporters.export import ExportReport as ExportReport
    from vggfeat.exporters.export import export as export
    from vggfeat.extraction.api import extract as extract
    from vggfeat.extraction.benchmark import Bench as Bench
    from vggfeat.extraction.benchmark import bench as bench
    from vggfeat.extraction.extractor import Extractor as Extractor
    from vggfeat.extraction.ray_cluster import RayCluster as RayCluster
    from vggfeat.extraction.trace import trace as trace
    from vggfeat.extraction.transformer import VggFeatures as VggFeatures
    from vggfeat.extraction.update import UpdatePolicy as UpdatePolicy
    from vggfeat.finetuning.adapt import adapt as adapt
    from vggfeat.finetuning.report import FinetuneReport as FinetuneReport
    from vggfeat.finetuning.settings import AdaptSettings as AdaptSettings
    from vggfeat.images.dataset import ImageDataset as ImageDataset
    from vggfeat.images.dataset import ImageItem as ImageItem
    from vggfeat.images.statistics import PixelStats as PixelStats
    from vggfeat.images.statistics import stats as stats
    from vggfeat.images.transform import ImageTransform as ImageTransform
    from vggfeat.network.calibration import calibrate as calibrate
    from vggfeat.retrieval.compare import Comparison as Comparison
    from vggfeat.retrieval.compare import compare as compare
    from vggfeat.retrieval.duplicates import Duplicates as Duplicates
    from vggfeat.retrieval.duplicates import duplicates as duplicates
    from vggfeat.retrieval.image_similarity import SimilarityMatrix as SimilarityMatrix
    from vggfeat.retrieval.image_similarity import similarity as similarity
    from vggfeat.retrieval.image_similarity import similarity_matrix as similarity_matrix
    from vggfeat.retrieval.quantization_loss import measure_loss as measure_loss
    from vggfeat.retrieval.search import SearchResult as SearchResult
    from vggfeat.retrieval.search import search as search
    from vggfeat.transforms.derive import TransformReport as TransformReport
    from vggfeat.transforms.fuse import fuse as fuse
    from vggfeat.transforms.reduce import reduce as reduce
    from vggfeat.transforms.settings import FuseSettings as FuseSettings
    from vggfeat.transforms.settings import ReduceSettings as ReduceSettings
    from vggfeat.visualization.explorer import ExplorerReport as ExplorerReport
    from vggfeat.visualization.explorer import explore as explore
    from vggfeat.zeroshot.class_vectors import class_vectors as class_vectors
    from vggfeat.zeroshot.evaluate import Evaluation as Evaluation
    from vggfeat.zeroshot.evaluate import evaluate_zeroshot as evaluate_zeroshot
    from vggfeat.zeroshot.fit import ZeroShotFitReport as ZeroShotFitReport
    from vggfeat.zeroshot.fit import fit_zeroshot as fit_zeroshot
    from vggfeat.zeroshot.model import ZeroShotModel as ZeroShotModel
    from vggfeat.zeroshot.predict import Predictions as Predictions
    from vggfeat.zeroshot.predict import predict_zeroshot as predict_zeroshot
    from vggfeat.zeroshot.settings import ZeroShotSettings as ZeroShotSettings

    open = open_cache  # noqa: A001 as in gzip.open

_HOMES = {
    "_version": ("__version__",),
    "cache.merge": ("MergeReport", "merge"),
    "cache.reader": ("FeatureCache",),
    "cache.sharded": ("ShardedCache", "open"),
    "cache.sharding": ("Sharding",),
    "cache.torch_dataset": ("FeatureDataset", "as_tensor"),
    "cache.verify": ("VerifyReport", "verify"),
    "config": ("load_config",),
    "core.records": ("Progress", "Summary"),
    "core.settings": ("Settings",),
    "errors": (
        "CacheError",
        "CacheMismatchError",
        "DecodeError",
        "DeviceError",
        "InputError",
        "InterruptedRunError",
        "LockedError",
        "MissingFileError",
        "ResourceError",
        "ShardsHeldError",
        "SpaceError",
        "TooManyFailuresError",
        "UnknownLayerError",
        "UsageError",
        "VggfeatError",
        "WeightsError",
    ),
    "exporters.export": ("ExportReport", "export"),
    "extraction.api": ("extract",),
    "extraction.benchmark": ("Bench", "bench"),
    "extraction.extractor": ("Extractor",),
    "extraction.ray_cluster": ("RayCluster",),
    "extraction.trace": ("trace",),
    "extraction.transformer": ("VggFeatures",),
    "extraction.update": ("UpdatePolicy",),
    "finetuning.adapt": ("adapt",),
    "finetuning.report": ("FinetuneReport",),
    "finetuning.settings": ("AdaptSettings",),
    "images.dataset": ("ImageDataset", "ImageItem"),
    "images.statistics": ("PixelStats", "stats"),
    "images.transform": ("ImageTransform",),
    "network.calibration": ("calibrate",),
    "retrieval.compare": ("Comparison", "compare"),
    "retrieval.duplicates": ("Duplicates", "duplicates"),
    "retrieval.image_similarity": ("SimilarityMatrix", "similarity", "similarity_matrix"),
    "retrieval.quantization_loss": ("measure_loss",),
    "retrieval.search": ("SearchResult", "search"),
    "transforms.derive": ("TransformReport",),
    "transforms.fuse": ("fuse",),
    "transforms.reduce": ("reduce",),
    "transforms.settings": ("FuseSettings", "ReduceSettings"),
    "visualization.explorer": ("ExplorerReport", "explore"),
    "zeroshot.class_vectors": ("class_vectors",),
    "zeroshot.evaluate": ("Evaluation", "evaluate_zeroshot"),
    "zeroshot.fit": ("ZeroShotFitReport", "fit_zeroshot"),
    "zeroshot.model": ("ZeroShotModel",),
    "zeroshot.predict": ("Predictions", "predict_zeroshot"),
    "zeroshot.settings": ("ZeroShotSettings",),
}
"""Public names by the module that defines them."""

_MODULES = {name: module for module, names in _HOMES.items() for name in names}

_RENAMED = {
    "Adapted": "FinetuneReport",
    "Derived": "TransformReport",
    "Exported": "ExportReport",
    "Findings": "SearchResult",
    "Fitting": "ZeroShotFitReport",
    "Merged": "MergeReport",
    "Verification": "VerifyReport",
    "Wish": "UpdatePolicy",
}
"""Names of before the rooms, which stay for one release."""

__all__ = sorted(_MODULES)  # noqa: PLE0605 the names above are named once


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        now = _RENAMED[name]
        warnings.warn(
            f"vggfeat.{name} is now vggfeat.{now}; the old name goes with the next release",
            DeprecationWarning,
            stacklevel=2,
        )
        name = now
    if name not in _MODULES:
        raise AttributeError(f"module 'vggfeat' has no attribute {name!r}")
    from vggfeat.core.platform_problem import PLATFORM_PROBLEM

    if PLATFORM_PROBLEM:
        raise ImportError(f"vggfeat {PLATFORM_PROBLEM}")
    home = importlib.import_module(f"vggfeat.{_MODULES[name]}")
    return getattr(home, "open_cache" if name == "open" else name)


def __dir__() -> list[str]:
    return __all__
