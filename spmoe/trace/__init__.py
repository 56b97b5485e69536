"""Routing traces: what the experts, the draft and the gates did, token by token, and where that was learned."""
