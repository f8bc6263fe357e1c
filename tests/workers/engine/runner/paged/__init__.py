"""The backend of a paged KV cache."""
