"""Bounds of the papers and ours, with their constants."""
