"""Experiments: what is computed, where, and what it leaves on disk."""
