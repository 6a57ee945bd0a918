"""Cache → cache: layers fused into one vector, fewer dimensions by PCA, standardization.

Begin with `derive.py`, the resumable run of any transform from one cache into another; `fuse.py`
and `reduce.py` are the two commands, `replay.py` repeats their steps on a query's features.

Public: `vggfeat.fuse`, `vggfeat.FuseSettings`, `vggfeat.reduce`, `vggfeat.ReduceSettings`,
`vggfeat.TransformReport`.
"""
