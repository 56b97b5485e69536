"""The command line of `python -m sim`."""
