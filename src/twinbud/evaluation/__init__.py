"""Predictions, metrics with intervals, and the check that no training image is evaluated."""
