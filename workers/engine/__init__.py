"""The engine: pictures and prompts in, descriptions out. Imports torch, transformers, pillow and numpy alone."""
