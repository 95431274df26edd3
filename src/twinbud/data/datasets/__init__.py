"""Public image sets by name: what each one is, where a copy is found, and how its files become rows."""
