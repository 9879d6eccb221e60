"""For tests, ours and those of whoever adds a model."""
