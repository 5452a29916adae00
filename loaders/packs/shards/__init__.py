"""The files that hold a pack's images."""
