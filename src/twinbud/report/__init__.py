"""Figures, the offline page and the model card of a run."""
