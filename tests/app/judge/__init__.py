"""Tests of ``app.judge``."""
