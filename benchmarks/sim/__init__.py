"""Benchmarks of the simulator and of its policies."""
