"""From a table of comparisons to a table of results."""
