"""transformers' own ``generate``: any image-text model, and the reference."""
