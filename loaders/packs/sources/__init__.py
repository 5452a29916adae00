"""Image sources: one adapter per kind, all giving the same stream of items."""
