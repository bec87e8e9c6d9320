"""`python -m experiments` is the `prefdro` command."""

from experiments.cli import main

main()
