"""The labels that a run learns from: matching classes by name, choosing images to label, finding leaks."""
