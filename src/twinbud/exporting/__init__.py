"""A trained classifier as one file for another runtime, and the checks that it must pass before it is written."""
