"""Zero-shot learning: recognise classes without training images by vectors of their names.

Begin with `fit.py`, `predict.py` and `evaluate.py`, the three commands; `eszsl.py` and `devise.py`
are the methods, `word_vectors.py` and `attribute_files.py` read the vectors of classes.

Public: `vggfeat.fit_zeroshot`, `vggfeat.predict_zeroshot`, `vggfeat.evaluate_zeroshot`,
`vggfeat.class_vectors`, `vggfeat.ZeroShotModel`, `vggfeat.ZeroShotSettings`, and their reports.
"""
