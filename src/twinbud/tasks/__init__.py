"""What is asked of an image: outputs, losses, probabilities and predictions of each task."""
