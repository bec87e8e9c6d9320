"""Robust preference alignment in a log-linear world: losses, exact solvers, worst cases and
bounds."""
