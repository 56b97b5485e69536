"""The command line of `python -m engine`."""
