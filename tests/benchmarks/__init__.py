"""The benchmarks, in their short forms."""
