"""How a step's tokens are laid out one after another."""

from __future__ import annotations

from workers.engine.runner.step import DecodeToken, KVSpan, PrefillChunk, pack_tokens


def chunk(*token_ids: int, image: int = 0, shared: bool = False) -> PrefillChunk:
    return PrefillChunk(list(token_ids), 100, KVSpan(image, 30), None, 0, shared=shared)


def test_logits_come_in_the_order_given_though_tokens_lie_by_what_they_see() -> None:
    decode = [DecodeToken(7, 50, 3, KVSpan(0, 30), None)]
    packed = pack_tokens(decode, [chunk(1, 2, image=1), chunk(3, 4, shared=True), chunk(5, 6, 8, image=0)])
    assert packed.token_ids.tolist() == [7, 5, 6, 8, 1, 2, 3, 4]
    assert packed.positions.tolist() == [50, 100, 101, 102, 100, 101, 100, 101]
    assert packed.token_ids[packed.logits_indices].tolist() == [7, 2, 8]
    assert [each.token_ids for each in packed.chunks] == [[5, 6, 8], [1, 2], [3, 4]]


def test_a_step_of_shared_prefixes_alone_has_no_logits() -> None:
    assert pack_tokens([], [chunk(1, 2, shared=True)]).logits_indices.tolist() == []
