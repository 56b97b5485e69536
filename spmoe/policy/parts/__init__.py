"""The parts of a recipe."""
