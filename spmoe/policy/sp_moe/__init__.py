"""SP-MoE (arXiv 2510.10302): prefetching by gates, and the cutoff layer."""
