"""Training on batches, and what is measured and reported of it."""
