"""One-off programs: the small model and what builds it."""
