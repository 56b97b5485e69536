"""A SimPy interpreter of the policy core: what would a policy cost on this trace and machine?"""

from sim.forecasts import forecasts
from sim.replay import replay
from sim.sweep import sweep

__all__ = ["forecasts", "replay", "sweep"]
