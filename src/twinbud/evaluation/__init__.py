"""From class probabilities and labels to numbers: predictions on disk, metrics, intervals."""
