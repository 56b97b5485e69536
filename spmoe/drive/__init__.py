"""What all drivers share: the step program, and when link and CPU are busy."""
