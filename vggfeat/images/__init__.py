"""Files → pixels: find images in folders, archives, lists and buckets, and decode them.

Begin with `sources.py`, which lists what the user names, and `decode.py`, which makes one image's
bytes uint8 or uint16 pixels (H, W, C). `worker_pool.py` does that in processes which may crash;
`transform.py` does it for images in memory.

Public: `vggfeat.ImageDataset`, `vggfeat.ImageItem`, `vggfeat.ImageTransform`, `vggfeat.stats`,
`vggfeat.PixelStats`.
"""
