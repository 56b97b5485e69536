"""Policies and bounds that know the future."""
