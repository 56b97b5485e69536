"""A SimPy interpreter of the policy core: what would a policy cost on this trace and machine?"""

from sim.replay import replay

__all__ = ["replay"]
