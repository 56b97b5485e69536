"""The scheduler: events in, commands out; its configuration and its log."""
