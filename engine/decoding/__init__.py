"""Speculative decoding: requests, forward passes of target and draft, and the session that joins them.

Read `decoder` first, then `passes`, `target_model` and `drafter`; `request` has the two sources of outcomes.
"""
