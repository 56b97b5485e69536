"""Checkpoints on disk: which tensors they hold, and how a model is loaded with its experts in the host store.

Read in this order: `checkpoint`, `checksums`, `weight_map`, `loader`, `model_pair`, `bundled`.
"""
