"""Carrying out what the scheduler decides: the driver, its clock, and the CPU as a worker."""
