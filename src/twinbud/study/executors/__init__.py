"""Executors: where and how the runs of a study are executed."""
