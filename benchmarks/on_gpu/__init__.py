"""The parts of `python -m benchmarks.gpu`: stages, the process that works them off, and what they do."""
