"""Measured claims: every figure of the README comes from a script here that prints it."""
