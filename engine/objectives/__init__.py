"""The losses of the methods, one paper a file."""
