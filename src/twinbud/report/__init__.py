"""Summary, figures, page and model card of a run, and its training history."""
