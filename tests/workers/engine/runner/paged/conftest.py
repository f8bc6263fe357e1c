"""Kernels are interpreted: nothing has imported Triton yet when this is read."""

from __future__ import annotations

from tests.support.interpreter import choose_interpreter

choose_interpreter()
