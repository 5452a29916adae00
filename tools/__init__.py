"""Tools for packing, verifying, measuring and reporting; each is a script of its own."""
