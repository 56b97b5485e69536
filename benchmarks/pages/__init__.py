"""Writers of the tables and figures in README and docs."""
