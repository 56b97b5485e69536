"""Eviction rules, and the orders that they share."""
