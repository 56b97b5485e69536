"""What is where, what is on its way, and what is known: the mutable parts under the scheduler."""
