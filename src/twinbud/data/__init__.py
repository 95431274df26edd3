"""Images: index, formats, decoding, split, augmentation, and the embedded phantom set."""
