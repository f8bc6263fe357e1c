"""vLLM behind the engine's interface, where it is installed: the ecosystem's own answer to the same question."""
