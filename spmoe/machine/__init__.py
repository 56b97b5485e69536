"""What runs on what, and how long it takes: model geometries, hardware profiles, the cost model, the memory budget."""
