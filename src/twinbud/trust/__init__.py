"""What makes a model's answers trustworthy: calibrated probabilities, prediction sets, operating points, novelty."""
