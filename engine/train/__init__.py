"""The loop and what it is made of: runs, steps, optimizers, ranks, checkpoints."""
