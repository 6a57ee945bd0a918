"""Vocabulary that every other part of the package shares: no torch, no input or output.

Begin with `text`.
"""
