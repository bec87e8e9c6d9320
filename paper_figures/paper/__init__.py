"""Figures and tables of the two papers."""
