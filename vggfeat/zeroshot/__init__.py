"""Zero-shot learning: classes of which there is no image, known by a vector for their name.

Begin with `fit.py`, `predict.py` and `evaluate.py`, the three commands; `eszsl.py` and `devise.py`
are the methods, `word_vectors.py` and `attribute_table.py` read what stands for a class.

Public: `vggfeat.fit_zeroshot`, `vggfeat.predict_zeroshot`, `vggfeat.evaluate_zeroshot`,
`vggfeat.class_vectors`, `vggfeat.ZeroShotModel`, `vggfeat.ZeroShotSettings`, and their reports.
"""
