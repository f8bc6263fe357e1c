"""The engine: pictures and prompts in, descriptions out. Needs only torch, transformers, pillow, numpy."""
