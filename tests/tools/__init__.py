"""The tools, and the small model that they made."""
