"""Measuring the quality of features and classifiers."""
