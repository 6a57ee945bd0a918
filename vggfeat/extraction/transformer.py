"""`vggfeat.VggFeatures`: a transformer of scikit-learn's kind, with caches beneath."""

from __future__ import annotations

import inspect
import os
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vggfeat.core.choices import choose
from vggfeat.core.resources import user_cache
from vggfeat.core.settings import Settings
from vggfeat.errors import DecodeError, UsageError
from vggfeat.extraction.feature_store import FeatureStore, failures_text, images_to_store

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from typing_extensions import Self

_CLASSES = 1000
_FOREIGN = {"fuse", "on_error", "time_limit"}


class VggFeatures:
    """Turn images into VGG features in a scikit-learn pipeline; each image is computed once.

        features = vggfeat.VggFeatures(layers="conv5_3")
        model = make_pipeline(features, StandardScaler(), LogisticRegression())
        cross_val_score(model, paths, labels)

    Features are kept in caches of vggfeat below `cache_dir`, in a folder for each network, weights,
    layers and preprocessing. An image that is there, by path, size and time of the file, or by the
    pixels of an image in memory, costs no pass of the network, whichever others it comes with; so
    the folds of a cross-validation share their features. A call that was killed goes on where it
    was. Processes may share the folder: those that want the same images wait for one another. Call
    `transform` once on all images before a search with `n_jobs`, or its processes may compute some
    images twice. Nothing is ever deleted: remove the folder to free its space.

    Nothing is learnt from the images, so `fit` only checks the settings. scikit-learn is not
    needed, and not imported.

    Args:
        layers: as for `Settings`, of one network: several are joined side by side. Layers differ
            in range: give `conv5_3:l2,fc7:l2`, or scale behind.
        model: `vgg11` to `vgg19_bn`.
        weights: `imagenet`, `features`, a file, `random[:SEED]`, or a state dict.
        size: side of the network's input; None for that of the weights.
        dtype: of the stored features, `float16` or `float32`.
        device: for the network.
        workers: number of decoding processes, or `auto`.
        settings: further fields of `Settings` by name, such as `{"crop": "pad", "batch_size": 64}`.
        cache_dir: folder of the caches; None for `vggfeat/features` in the user's cache folder
            (`$XDG_CACHE_HOME` or `~/.cache`).
        on_error: of an image that cannot be decoded: `raise`, or `nan` for a row of NaN.
        progress: show a progress bar while images are computed.
    """

    def __init__(
        self,
        layers: str = "conv5_3",
        *,
        model: str = "vgg19",
        weights: Any = "imagenet",
        size: int | None = None,
        dtype: str = "float16",
        device: str = "auto",
        workers: int | str = "auto",
        settings: Mapping[str, Any] | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        on_error: Literal["raise", "nan"] = "raise",
        progress: bool = False,
    ) -> None:
        # As given: `clone` of scikit-learn compares them by identity; `fit` checks them.
        self.layers = layers
        self.model = model
        self.weights = weights
        self.size = size
        self.dtype = dtype
        self.device = device
        self.workers = workers
        self.settings = settings
        self.cache_dir = cache_dir
        self.on_error = on_error
        self.progress = progress

    def fit(self, X: Any = None, y: Any = None) -> Self:  # noqa: ARG002, N803 scikit-learn's names
        """Check the settings; images and labels change nothing.

        Raises:
            UsageError: a setting that makes no sense.
        """
        self._made_settings()
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:  # noqa: N803 scikit-learn's name
        """Return the features of images.

        Args:
            X: a sequence of paths, PIL images or arrays (H, W, C) of pixels, also an array or
                column of paths; or one path of a folder, whose images come sorted.

        Returns:
            float32 (N, D); of several layers side by side. Maps are flattened.

        Raises:
            UsageError: a setting that makes no sense, or an item that is no image.
            InputError: a file is missing.
            DecodeError: with `on_error="raise"`, images that cannot be decoded; all others are
                kept.
            WeightsError, CacheError, SpaceError, DeviceError: as `vggfeat.extract` raises them.
        """
        settings = self._made_settings()
        images = images_to_store(X, settings.preprocess(), settings.max_pixels)
        if not images:
            return np.empty((0, len(self.get_feature_names_out())), np.float32)
        store = FeatureStore(self._folder(), settings)
        layers, failed = store.features(images, progress=self.progress)
        if failed and self.on_error == "raise":
            raise DecodeError(f"{failures_text(failed, len(images))}; on_error='nan' keeps its row")
        return np.concatenate([values.reshape(len(images), -1) for values in layers.values()], 1)

    def fit_transform(self, X: Any, y: Any = None) -> NDArray[np.float32]:  # noqa: N803 as above
        """Return the features of images; see `transform`."""
        return self.fit(X, y).transform(X)

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:  # noqa: ARG002 scikit-learn's name
        """Return the names of the columns, `conv5_3_0` and so on, object (D,)."""
        settings = self._made_settings()
        size = settings.preprocess().size
        names = [
            f"{spec}_{number}"
            for spec in settings.specs
            for number in range(int(np.prod(spec.output_shape(size, size, _CLASSES))))
        ]
        return np.array(names, dtype=object)

    def get_params(self, deep: bool = True) -> dict[str, Any]:  # noqa: ARG002 scikit-learn's signature
        """Return the arguments by name."""
        return {name: getattr(self, name) for name in _parameters()}

    def set_params(self, **params: Any) -> Self:
        """Set arguments by name.

        Raises:
            ValueError: no argument has that name.
        """
        unknown = sorted(params.keys() - set(_parameters()))
        if unknown:
            raise ValueError(
                f"Invalid parameter {unknown[0]!r} for VggFeatures; it has "
                f"{', '.join(_parameters())}"
            )
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self)).parameters
        given = [
            f"{name}={value!r}"
            for name, value in self.get_params().items()
            if value is not defaults[name].default
        ]
        return f"VggFeatures({', '.join(given)})"

    def __sklearn_is_fitted__(self) -> bool:
        """There is nothing to fit."""
        return True

    def __sklearn_tags__(self) -> Any:
        """Return what scikit-learn, which asks for it, is to know of this transformer."""
        from sklearn.utils import InputTags, Tags, TargetTags, TransformerTags

        return Tags(
            estimator_type=None,
            target_tags=TargetTags(required=False),
            transformer_tags=TransformerTags(preserves_dtype=[]),
            input_tags=InputTags(two_d_array=False, string=True, allow_nan=False),
            requires_fit=False,
            no_validation=True,
        )

    def _made_settings(self) -> Settings:
        choose("on_error", ("raise", "nan"), self.on_error)
        named: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("layers", "model", "weights", "size", "dtype", "device", "workers")
        }
        further = dict(self.settings or {})
        twice = sorted(named.keys() & further.keys())
        if twice:
            raise UsageError(f"{', '.join(twice)} in settings; give it as an argument of its own")
        foreign = sorted(_FOREIGN & further.keys())
        if foreign:
            raise UsageError(f"{', '.join(foreign)} in settings, which VggFeatures has no use for")
        return Settings(**named, **further)

    def _folder(self) -> str:
        if self.cache_dir is None:
            return os.path.join(user_cache(), "vggfeat", "features")
        return os.path.abspath(os.fspath(self.cache_dir))


def _parameters() -> list[str]:
    return list(inspect.signature(VggFeatures).parameters)
