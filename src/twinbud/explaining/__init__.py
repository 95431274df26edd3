"""Maps that show which part of an image a prediction depends on, and the checks that a map has to pass."""
