"""Search and compare: nearest rows, exact or by faiss, duplicates, and which layer finds best.

Begin with `search.py`, the command; `exact_search.py` scans the memory map, `similarity.py` scores
blocks of rows and bounds the error, `compare.py` ranks layers. `image_similarity.py` is for a few
images that need no cache.

Public: `vggfeat.search`, `vggfeat.SearchResult`, `vggfeat.compare`, `vggfeat.Comparison`,
`vggfeat.duplicates`, `vggfeat.Duplicates`, `vggfeat.similarity`, `vggfeat.similarity_matrix`,
`vggfeat.SimilarityMatrix`, `vggfeat.measure_loss`.
"""
