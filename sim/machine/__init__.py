"""The simulated machine: driver, link, CPU, and forward passes by a trace."""
