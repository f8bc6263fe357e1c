"""Tests of the workers, their launcher and the whole farm."""
