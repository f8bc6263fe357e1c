"""The backend in plain torch, for any device."""
