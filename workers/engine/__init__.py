"""The engine: images and prompts in, descriptions out. Needs only torch, transformers, pillow, numpy."""
