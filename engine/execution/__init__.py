"""The driver that carries out the step program, its clocks, coroutines for forward passes, and the CPU as a worker.

Read `driver` first; `coroutine` and `clock` are what it needs.
"""
