"""Figures and tables of the paper, drawn from the tables of finished experiments."""
