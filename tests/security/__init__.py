"""Tests of what is defended: wires, passwords, messages, paths, images, code."""
