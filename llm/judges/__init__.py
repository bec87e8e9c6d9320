"""What judges a policy: reward models and distances to the reference."""
