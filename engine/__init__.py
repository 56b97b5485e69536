"""The PyTorch interpreter of the policy core.  It comes with the next release; the simulator works without it."""
