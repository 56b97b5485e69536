"""Experts of one layer: finding them in a model of transformers, and computing them from slots.

Read in this order: `layers`, `eager`, `gated_mlp`, `triton_kernels`, `triton_grouped`, `backend`.
"""
