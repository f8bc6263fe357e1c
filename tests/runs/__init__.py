"""The life of runs: inputs that change, images that are replaced, what is reused, who steers."""
