"""The continuous-batching engine: policy, no torch."""
