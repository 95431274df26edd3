"""Image file formats: one reader per format behind one interface (``base``); ``decoding`` chooses the reader."""
