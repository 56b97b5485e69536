"""What a run is set up with, and which policies can run so."""
