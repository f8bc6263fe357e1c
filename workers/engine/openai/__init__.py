"""Any OpenAI-compatible chat server behind the engine's interface. Needs no torch: a worker without a GPU is small."""
