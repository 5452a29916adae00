"""The labels and classes of a pack."""
