"""Files as this package writes and reads them: published whole, locked, decoded with care.

Begin with `atomic`.
"""
