"""The pipeline that joins images, network and cache: `vggfeat.extract` and what belongs to it.

Begin with `api.py`, the one entry, then `pipeline.py`, the loop: decode, compute, write.
`resume.py` decides what there is to do, `update.py` finds what has changed, `sharded.py` does a
folder of shards. `extractor.py` is for images in memory,
`transformer.py` for scikit-learn, with the caches of `feature_store.py`.

Public: `vggfeat.extract`, `vggfeat.Extractor`, `vggfeat.UpdatePolicy`, `vggfeat.RayCluster`,
`vggfeat.bench`, `vggfeat.trace`, `vggfeat.VggFeatures`.
"""
