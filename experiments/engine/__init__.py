"""What runs an experiment: cells, stages, the store, and where results come from."""
