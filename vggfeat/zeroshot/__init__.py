"""Zero-shot learning: classes of which there is no image, known by a vector for their name."""

from __future__ import annotations

from vggfeat.zeroshot.class_vectors import ClassVectors, class_vectors
from vggfeat.zeroshot.evaluate import Evaluation, evaluate_zeroshot
from vggfeat.zeroshot.fit import Fitting, fit_zeroshot
from vggfeat.zeroshot.model import ZeroShotModel
from vggfeat.zeroshot.predict import Predictions, predict_zeroshot
from vggfeat.zeroshot.settings import ZeroShotSettings

__all__ = [
    "ClassVectors",
    "Evaluation",
    "Fitting",
    "Predictions",
    "ZeroShotModel",
    "ZeroShotSettings",
    "class_vectors",
    "evaluate_zeroshot",
    "fit_zeroshot",
    "predict_zeroshot",
]
