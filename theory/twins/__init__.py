"""The same problems once more, as cvxpy and linear programs that share no code with the solvers."""
