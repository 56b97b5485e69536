"""Checks the simulator against published figures (docs/validation.md)."""
