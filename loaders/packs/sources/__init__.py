"""Image sources: one adapter for each kind, all with the interface `Source`."""
