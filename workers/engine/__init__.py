"""The engine: images and prompts in, completions out. Needs only torch, transformers, pillow, numpy."""
