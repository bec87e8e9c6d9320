"""Benchmarks of the solvers and of training steps."""
