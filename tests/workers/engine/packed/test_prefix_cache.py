"""Which image gives way to another, and which does not."""

from __future__ import annotations

from workers.engine.packed.prefix_cache import CachedPrefix, PrefixCache


def test_a_cached_image_that_is_in_use_is_never_given_away() -> None:
    prefixes = PrefixCache(2)
    for key in ("a", "b"):
        reserved = prefixes.reserve(())
        assert reserved is not None
        prefixes.fill(key, CachedPrefix(reserved[0], 1, 1, 1))
    assert prefixes.reserve({"a", "b"}) is None
    prefixes.use("a")
    assert prefixes.reserve(()) is not None
    assert "a" in prefixes
    assert "b" not in prefixes
