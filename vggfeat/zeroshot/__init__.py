"""Zero-shot learning: classes of which there is no image, known by a vector for their name."""

from __future__ import annotations

from vggfeat.zeroshot.evaluating import Evaluation, evaluate_zeroshot
from vggfeat.zeroshot.fitting import Fitting, fit_zeroshot
from vggfeat.zeroshot.model import ZeroShotModel
from vggfeat.zeroshot.predicting import Predictions, predict_zeroshot
from vggfeat.zeroshot.settings import ZeroShotSettings
from vggfeat.zeroshot.vectors import ClassVectors, class_vectors

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
