"""Checkpoints on disk: which tensors they hold, and how a model is loaded with its experts in the host store.

Read in this order: `checkpoint`, `checksums`, `refusing`, `trusted_config`, `generation_fields`, `weight_map`,
`loader`, `tokenizer_files`, `model_pair`, `hub_cache`, `bundled`.
"""
