"""Studies of a trace: the cutoff layer, forecasts, and fidelity to the engine."""
