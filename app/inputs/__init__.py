"""The two input files to pairs: read, validated, grouped, every drop counted under its reason."""
