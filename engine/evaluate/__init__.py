"""What features and classifiers are worth."""
