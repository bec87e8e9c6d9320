"""From files and data sets to tokens: rows, chat templates, checks."""
