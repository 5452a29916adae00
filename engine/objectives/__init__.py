"""The losses of the methods."""
