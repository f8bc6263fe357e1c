"""The queue in Redis: its names, its messages, who drains what, and the embedded server."""
