"""The pipeline that joins images, network and cache: `vggfeat.extract` and what belongs to it.

Begin with `api.py`, the one entry, then `pipeline.py`, the loop: decode, compute, write.
`resume.py` decides what there is to do, `update.py` finds what has changed, `sharded.py` does a
folder of shards.

Public: `vggfeat.extract`, `vggfeat.UpdatePolicy`, `vggfeat.RayCluster`, `vggfeat.bench`,
`vggfeat.trace`.
"""
