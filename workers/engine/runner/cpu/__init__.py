"""The backend of compiled kernels for CPUs."""
