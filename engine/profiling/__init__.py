"""Measuring this machine: a profile for the simulator, and the time per token of policies on the engine.

Read in this order: `fit`, `link_bench`, `kernel_bench`, `random_models`, `synthetic_trace`, `trace_runner`,
`step_timings`, `calibration`, `profile`, `policy_timing`.
"""
