"""What is sent, and what a reply stands for."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from email.utils import formatdate
from typing import Any

import pytest

from tests.support.engine_cases import image, request
from workers.engine.api import CandidatesAlike, ControlTokens, ImageUnreadable, PromptTooLong, SamplingUnknown, Segment
from workers.engine.openai.chat_messages import (
    LONGEST_HOLD_S,
    Busy,
    Refused,
    Trouble,
    body_of,
    completion_of,
    error_of,
    plain_text,
    probabilities_of,
    retry_after,
)
from workers.engine.openai.http_client import Reply


def test_control_tokens_of_the_template_are_meant_and_sent() -> None:
    prompt: tuple[Segment, ...] = (
        ("<|object_ref_start|>", False),
        ("red car", True),
        ("<|object_ref_end|> a < b", False),
    )
    assert plain_text(prompt) == "<|object_ref_start|>red car<|object_ref_end|> a < b"


@pytest.mark.parametrize(
    "name", ["<|im_end|>", "x<|vision_start|>", "<think>", "</s>", "[INST]", "<｜end▁of▁sentence｜>", "<image>"]
)
def test_a_control_token_in_a_name_is_refused(name: str) -> None:
    with pytest.raises(ControlTokens):
        plain_text((("over ", False), (name, True), (" and more", False)))


def test_a_name_that_becomes_a_control_token_with_its_neighbours_is_refused() -> None:
    with pytest.raises(ControlTokens):
        plain_text((("<|im_", False), ("end", True), ("|>", False)))


@pytest.mark.parametrize("name", ["man & woman", "t-shirt (red)", "a < b > c", "50%", "窗户", "I <3 you", "[a] b"])
def test_ordinary_names_are_ordinary(name: str) -> None:
    assert plain_text(((name, True), (".", False))) == f"{name}."


@pytest.mark.parametrize(("header", "seconds"), [(None, 0), ("", 0), ("7", 7), ("1.5", 1.5), ("-3", 0), ("nan", 0),
                                                ("soon", 0), ("999999", LONGEST_HOLD_S)])  # fmt: skip
def test_retry_after_in_seconds(header: str | None, seconds: float) -> None:
    assert retry_after(header) == seconds


def test_retry_after_as_a_date() -> None:
    assert 50 < retry_after(formatdate(time.time() + 60, usegmt=True)) <= 61
    assert retry_after(formatdate(time.time() - 60, usegmt=True)) == 0


def reply(status: int, content: Any, **headers: str) -> Reply:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return Reply(status, {name.replace("_", "-"): value for name, value in headers.items()}, body)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (reply(429, {}), Busy),
        (reply(503, {}, retry_after="3"), Busy),
        (reply(503, {}), Trouble),
        (reply(500, b"oops"), Trouble),
        (reply(404, {}), Trouble),
        (reply(400, {"detail": "prompt is too long"}), PromptTooLong),
        (reply(400, {"error": "cannot decode image"}), ImageUnreadable),
        (reply(400, {"error": {"message": "no"}}), Refused),
        (reply(400, b"\xff\xfe"), Refused),
        (reply(413, b""), ImageUnreadable),
    ],
)
def test_each_error_is_of_its_kind(given: Reply, error: type[Exception]) -> None:
    assert type(error_of(given)) is error


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"choices": null}',
        {"choices": [{}]},
        {"choices": [{"message": "text", "finish_reason": "stop"}]},
        {"choices": [{"message": {"content": "a"}, "finish_reason": None}]},
        {"choices": [{"message": {"content": "a"}, "finish_reason": "abort"}]},
        {"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}], "usage": {"completion_tokens": "many"}},
    ],
)
def test_what_is_no_completion_is_trouble(content: Any) -> None:
    with pytest.raises(Trouble):
        completion_of(reply(200, content), ())


def test_an_empty_text_is_a_text() -> None:
    content = {"choices": [{"message": {"content": None}, "finish_reason": "stop"}]}
    assert completion_of(reply(200, content), ()).text == ""


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"content": "A text."}, ("A text.", None, True)),
        ({"content": "Hm.</think>A text."}, ("A text.", "Hm.", True)),
        ({"content": "A text.", "reasoning_content": "Hm."}, ("A text.", "Hm.", True)),
        ({"content": "A text.", "reasoning": "Hm."}, ("A text.", "Hm.", True)),
        ({"content": None, "reasoning_content": "Hm, and"}, ("", "Hm, and", False)),
        ({"content": "<think>Hm, and"}, ("", "Hm, and", False)),
    ],
)
def test_reasoning_is_parted_whether_the_server_does_it_or_not(
    message: dict[str, Any], expected: tuple[str, str | None, bool]
) -> None:
    content = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": {"completion_tokens": 9}}
    found = completion_of(reply(200, content), ())
    assert (found.text, found.reasoning, found.closed) == expected


def test_a_way_of_sampling_that_the_server_does_not_know_is_refused_by_its_name() -> None:
    one = request(image(), temperature=0.5)
    assert "top_k" not in json.loads(body_of(one, "m", "url", ("top_k", "min_p")))
    wishes: dict[str, Any] = {"top_k": 5, "repetition_penalty": 1.1}
    for name, value in wishes.items():
        wishing = replace(one, sampling=replace(one.sampling, **{name: value}))
        assert json.loads(body_of(wishing, "m", "url"))[name] == value
        with pytest.raises(SamplingUnknown, match=name):
            body_of(wishing, "m", "url", (name,))


def choice(**chances: float) -> dict[str, Any]:
    likely = [{"token": token.replace("_", " "), "logprob": chance} for token, chance in chances.items()]
    return {"logprobs": {"content": [{"top_logprobs": likely}]}}


def test_a_candidate_is_known_by_the_longest_likely_token_that_it_begins_with() -> None:
    found = probabilities_of(choice(T=-3.0, The=0.0, _the=-1.0), ("There", " the", "Yes"))
    assert found == pytest.approx((1.0, 0.36788, 0.0), abs=1e-4)


def test_candidates_of_one_token_are_refused_and_so_is_a_server_without_probabilities() -> None:
    with pytest.raises(CandidatesAlike):
        probabilities_of(choice(The=0.0), ("The star", "The ring"))
    with pytest.raises(Refused):
        probabilities_of({"logprobs": None}, ("yes",))
    assert probabilities_of({}, ()) == ()
