"""Hardware and models in numbers: units, geometry, profiles, memory budget and the cost model.

Read in this order: `units`, `bits`, `geometry`, `hardware`, `timings`, `roofline`, `cost`, `budget`.
"""
