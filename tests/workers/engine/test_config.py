"""Settings of the engine that make no sense are named."""

from __future__ import annotations

import pytest

from workers.engine.config import EngineConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", ""),
        ("engine", "quick"),
        ("dtype", "int8"),
        ("batch_size", 0),
        ("memory_fraction", 1.5),
        ("max_pixels", 0),
    ],
)
def test_a_wrong_setting_is_named(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        EngineConfig(**({"model": "somewhere"} | {field: value}))  # type: ignore[arg-type]
