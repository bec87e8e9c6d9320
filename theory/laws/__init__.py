"""Limit laws: the distribution of an estimator's error, predicted."""
