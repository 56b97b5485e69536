"""Sweeps: a grid of replays, its journal, and its table of results."""
