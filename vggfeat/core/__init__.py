"""Vocabulary that every room shares: settings, layer specs, VGG's tables, records, small helpers.

No torch and no files of the user. Begin with `settings.py`, every option of an extraction, and
`layer_spec.py`, the grammar of `conv5_3:gem:l2`.

Public: `vggfeat.Settings`, `vggfeat.Progress`, `vggfeat.Summary`.
"""
