"""Policies as recipes of frozen parts, and the registry that names them."""
