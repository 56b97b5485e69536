"""Fixtures of the engine's tests that these need, too."""

from tests.engine.conftest import no_network

__all__ = ["no_network"]
