"""Shared by producer and workers: settings, pairs, prompts, the database, the broker, the results."""
