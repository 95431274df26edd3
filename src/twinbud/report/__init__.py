"""What a run leaves for people to read: figures, one offline page, a model card."""
