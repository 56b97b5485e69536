"""What came of a run: metrics, the bound that no schedule beats, and the timeline.

All of it is folded from the events and commands that pass the scheduler, so both drivers share it.
"""
