"""What other systems predict and evict by."""
