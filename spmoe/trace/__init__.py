"""Routing traces: their format, reading and writing, importing other formats, and synthetic ones.

Read in this order: `schema`, `header`, `lines`, `reader`, `writer`, `windows`, `summary`; then `importers`, `draws` (of
what a recording lacks) and `synthetic`.
"""
