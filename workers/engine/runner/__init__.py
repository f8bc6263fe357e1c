"""All that touches tensors: a step of the model, the KV cache, the backends of attention."""
