"""The backend of a paged KV cache: one attention operator for all steps, fused by Triton on a GPU."""
