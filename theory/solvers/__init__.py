"""Solvers: how each objective is minimised, and what certifies the result."""
