"""Files and buckets: atomic writes, locks, checked reads, formats of others, object stores.

Begin with `atomic.py`, by which every output appears whole or not at all, and `locks.py`, by which
one run at a time writes an output. Nothing here knows what an image or a feature is.
"""
