"""The training loop and its parts: runs, steps, optimizers, ranks, checkpoints."""
