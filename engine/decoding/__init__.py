"""Speculative decoding: the draft and target models, the sampler, and the session that joins them."""
