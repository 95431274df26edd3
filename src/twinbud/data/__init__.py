"""Pictures come in here: catalog, decode, pixels, split, augment, and the embedded phantom set."""
