"""The losses of the methods, one file per paper."""
