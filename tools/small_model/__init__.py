"""The shipped small Qwen3-VL: the scenes it sees, its training, its evaluation."""
