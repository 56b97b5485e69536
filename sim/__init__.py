"""A SimPy interpreter of the policy core: what would a policy cost on this trace and machine?"""

from sim.replay import replay
from sim.studies.forecasts import forecasts
from sim.sweeps.sweep import sweep

__all__ = ["forecasts", "replay", "sweep"]
