"""The labels that a run learns from: matched to classes, chosen to be given, and kept apart from tests."""
