"""The two inputs to pairs: read, validated, grouped, each drop counted under its reason."""
