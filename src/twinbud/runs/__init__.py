"""One run: pipeline, run folder, resume, inference, demo."""
