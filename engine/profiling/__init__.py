"""What a machine takes: its profile, and policies timed on a trace."""
