"""Adapt the network to other images: a linear probe, then fine-tuning on known classes.

Begin with `adapt.py`, the command, then `trainer.py`, the loop; `settings.py` has every choice.

Public: `vggfeat.adapt`, `vggfeat.AdaptSettings`, `vggfeat.FinetuneReport`.
"""
