"""Teach a network the features of another one, on images without labels."""
