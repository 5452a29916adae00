"""The labels that a run learns from: matched, chosen, bought, and kept apart from its test images."""
