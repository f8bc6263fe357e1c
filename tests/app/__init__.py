"""Tests of what producer and workers share."""
