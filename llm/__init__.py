"""Training of language models with the losses of `theory.functionals`."""
