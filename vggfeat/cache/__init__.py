"""Features ↔ disk: the HDF5 cache, its writer, its readers, shards, merging, verification.

Begin with `format.py`, which is docs/FORMAT.md in code; `writer.py` keeps every done row whole at
every instant, `reader.py` maps rows without a copy.

Public: `vggfeat.open`, `vggfeat.FeatureCache`, `vggfeat.ShardedCache`, `vggfeat.Sharding`,
`vggfeat.merge`, `vggfeat.verify`, `vggfeat.FeatureDataset`, `vggfeat.as_tensor`.
"""
