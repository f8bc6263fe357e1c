"""The engine over a chat server that misbehaves: nothing is lost, nobody else suffers, no key is seen."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from threading import Thread
from typing import Any

import pytest
from PIL import Image

from tests.support import chat_server
from tests.support.chat_server import MODEL, ChatServer, Exchange, first, image_of, text_of
from tests.support.engine_cases import image, request
from tests.support.fake_engine import FakeEngine
from tests.support.fake_engine import text_of as prompt_of
from tests.support.waits import wait_for
from workers.engine.api import EngineError, EngineStopped, ImageUnreadable, PromptTooLong, Request
from workers.engine.openai.chat_messages import Refused
from workers.engine.openai.engine import TRIES, OpenAIEngine, ServerConfig
from workers.engine.openai.server_watch import ServerRefuses

KEY = "sk-very-secret-0123456789"
WAIT_S = 60
Connect = Callable[..., OpenAIEngine]


@pytest.fixture
def behind() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def server(behind: FakeEngine) -> Iterator[ChatServer]:
    running = ChatServer(behind)
    yield running
    behind.close()
    running.stop()


@pytest.fixture
def connect(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connect]:
    """Makes an engine over the server, whose back-off is short."""
    for module in ("engine", "server_watch"):
        monkeypatch.setattr(f"workers.engine.openai.{module}._FIRST_PAUSE_S", 0.02)
        monkeypatch.setattr(f"workers.engine.openai.{module}._LONGEST_PAUSE_S", 0.1)
    made: list[OpenAIEngine] = []

    def make(**values: Any) -> OpenAIEngine:
        usual: dict[str, Any] = {"base_url": server.url, "model": MODEL, "timeout_s": 30.0}
        made.append(OpenAIEngine(ServerConfig(**{**usual, **values})))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def several(count: int = 6) -> list[Request]:
    return [request(image(number % 2), ("man", f"verb {number}", "horse")) for number in range(count)]


def texts(engine: OpenAIEngine, requests: list[Request]) -> list[str]:
    return [future.result(WAIT_S).text for future in engine.submit(requests)]


def test_the_model_gets_the_same_chat_message_and_every_sampling_value(server: ChatServer, connect: Connect) -> None:
    one = request(image(), temperature=0.25, tokens=17, seed=2**63 + 5)
    assert texts(connect(), [one]) == [prompt_of(one)]
    [body] = server.asked
    assert text_of(body) == prompt_of(one)
    assert [part["type"] for part in body["messages"][0]["content"]] == ["image_url", "text"]
    del body["messages"]
    assert body == {
        "model": MODEL, "temperature": 0.25, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "presence_penalty": 0.0,
        "frequency_penalty": 0.0, "repetition_penalty": 1.0, "min_tokens": 0, "max_tokens": 17, "seed": 5, "n": 1,
        "stream": False,
    }  # fmt: skip


def test_the_image_arrives_pixel_for_pixel_and_is_made_once(server: ChatServer, connect: Connect) -> None:
    engine = connect()
    texts(engine, several(6))
    sent = image_of(server.asked[0])
    assert sent.format == "PNG"
    assert {image_of(body).tobytes() for body in server.asked} == {image(0).load().tobytes(), image(1).load().tobytes()}
    assert engine.stats()["images"] == 2


def test_an_image_beyond_the_runs_limits_is_scaled_here(server: ChatServer, connect: Connect) -> None:
    large = replace(image(0, (1600, 1200)), max_pixels=640 * 480)
    texts(connect(), [request(large)])
    assert image_of(server.asked[0]).size == (640, 480)


TROUBLES = {
    "500": chat_server.broken(),
    "502": chat_server.broken(502),
    "cut": chat_server.cut,
    "cut midway": chat_server.cut_midway,
    "no JSON": chat_server.garbage,
    "empty choices": chat_server.empty_choices,
    "429": chat_server.busy(),
    "429 with Retry-After": chat_server.busy("0.05"),
    "429 with a date": chat_server.busy("Wed, 21 Oct 2015 07:28:00 GMT"),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_trouble_costs_nobody_a_text(server: ChatServer, connect: Connect, trouble: str) -> None:
    engine = connect()
    requests = several(8)
    server.plan = first(5, TROUBLES[trouble])
    assert texts(engine, requests) == [prompt_of(one) for one in requests]
    assert len(server.asked) == 13
    assert engine.stats()["retries"] > 0


def test_a_time_out_is_trouble_like_any_other(server: ChatServer, connect: Connect) -> None:
    engine = connect(timeout_s=0.3)
    server.plan = first(1, chat_server.slow(5))
    requests = several(2)
    assert texts(engine, requests) == [prompt_of(one) for one in requests]
    assert engine.stats()["retries"] == 1


def for_verb(number: int, fault: chat_server.Fault) -> chat_server.Plan:
    return lambda body: fault if f"verb {number}" in text_of(body) else None


def test_a_refused_image_fails_its_own_request_at_once(server: ChatServer, connect: Connect) -> None:
    engine = connect()
    server.plan = for_verb(3, chat_server.refuse_image)
    futures = engine.submit(several())
    assert [future.result(WAIT_S).finish_reason for at, future in enumerate(futures) if at != 3] == ["stop"] * 5
    with pytest.raises(ImageUnreadable, match="cannot identify image file"):
        futures[3].result(WAIT_S)
    assert engine.stats()["retries"] == 0


@pytest.mark.parametrize(
    ("status", "message", "error"),
    [
        (413, "Request Entity Too Large", ImageUnreadable),
        (400, "This model's maximum context length is 4096 tokens", PromptTooLong),
        (400, "'max_tokens' is too large: 5000", PromptTooLong),
        (400, "something else", Refused),
        (422, "Input should be less than 1", Refused),
    ],
)
def test_what_the_server_refuses_fails_alone_by_its_reason(
    server: ChatServer, connect: Connect, status: int, message: str, error: type[Exception]
) -> None:
    engine = connect()
    server.plan = for_verb(1, lambda exchange: exchange.refuse(status, message))
    good, bad = engine.submit(several(2))
    assert good.result(WAIT_S).text
    with pytest.raises(error, match=message):
        bad.result(WAIT_S)


def test_a_request_that_breaks_the_server_each_time_fails_alone(server: ChatServer, connect: Connect) -> None:
    engine = connect()
    server.plan = for_verb(2, chat_server.broken())
    futures = engine.submit(several())
    assert all(future.result(WAIT_S).text for at, future in enumerate(futures) if at != 2)
    with pytest.raises(EngineError, match="in vain, while the server works"):
        futures[2].result(WAIT_S)
    assert len([body for body in server.asked if "verb 2" in text_of(body)]) == TRIES


@pytest.mark.parametrize("fault", [chat_server.broken(), chat_server.broken(401), chat_server.broken(404)])
def test_a_server_that_fails_everybody_is_waited_for(
    server: ChatServer, connect: Connect, caplog: pytest.LogCaptureFixture, fault: chat_server.Fault
) -> None:
    engine = connect()
    server.plan = lambda body: fault
    futures = engine.submit(several())
    wait_for(lambda: len(server.bodies) > 4 * TRIES, "the server is asked again and again")
    assert not any(future.done() for future in futures)
    assert "retrying, nothing is lost" in caplog.text
    server.plan = lambda body: None
    assert all(future.result(WAIT_S).text for future in futures)


def test_a_server_that_is_away_is_waited_for(
    server: ChatServer, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    engine = connect()
    server.leave()
    futures = engine.submit(several())
    wait_for(lambda: "no connection: " in caplog.text, "the log says so")
    assert not any(future.done() for future in futures)
    server.come_back()
    assert all(future.result(WAIT_S).text for future in futures)
    assert "answers again after" in caplog.text


def test_a_server_that_is_away_at_the_start_is_waited_for_too(
    server: ChatServer, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    server.leave()

    def come_back() -> None:
        wait_for(lambda: "the server does not work" in caplog.text, "the log says so")
        server.come_back()

    helper = Thread(target=come_back)
    helper.start()
    assert texts(connect(), several(1))
    helper.join()


def test_the_start_waits_for_a_busy_server(server: ChatServer, connect: Connect) -> None:
    answers = iter([chat_server.busy("1"), chat_server.broken(503)])
    server.plan = lambda body: next(answers, None)
    assert texts(connect(), several(1))


def test_a_busy_server_gets_fewer_at_once_and_then_more_again(
    server: ChatServer, behind: FakeEngine, connect: Connect
) -> None:
    engine = connect()
    texts(engine, several(40))
    grown = engine.stats()["limit"]
    server.plan = first(1, chat_server.busy())
    texts(engine, several(1))
    halved = engine.stats()["limit"]
    texts(engine, several(100))
    assert grown > 30
    assert halved <= grown / 2 + 1
    assert engine.stats()["limit"] > halved


def test_what_is_not_sent_yet_can_be_cancelled(behind: FakeEngine, server: ChatServer, connect: Connect) -> None:
    engine = connect(most_at_once=1)
    behind.free.clear()
    futures = engine.submit(several())
    wait_for(lambda: server.asked, "the first is at the server")
    assert futures[-1].cancel()
    behind.free.set()
    assert all(future.result(WAIT_S).text for future in futures[:-1])
    assert len(server.asked) == 5


def test_closing_cuts_what_is_at_the_server(behind: FakeEngine, server: ChatServer, connect: Connect) -> None:
    engine = connect()
    behind.free.clear()
    futures = engine.submit(several())
    wait_for(lambda: server.asked, "some are at the server")
    engine.close()
    for future in futures:
        with pytest.raises(EngineStopped):
            future.result(5)


def test_a_key_is_sent_and_never_told(server: ChatServer, connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server.key = KEY
    engine = connect(api_key=KEY)
    texts(engine, several(2))
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}

    def tell(exchange: Exchange) -> None:
        exchange.refuse(400, f"key {KEY} may not see this image")

    server.plan = for_verb(0, tell)
    with pytest.raises(ImageUnreadable) as failure:
        engine.submit(several(1))[0].result(WAIT_S)
    server.plan = first(1, lambda exchange: exchange.refuse(500, f"{KEY} broke me"))
    texts(engine, several(1))
    with pytest.raises(ServerRefuses) as refusal:
        connect(api_key=KEY + "x")
    config = ServerConfig(base_url=server.url, model=MODEL, api_key=KEY)
    for said in (caplog.text, str(failure.value), str(refusal.value), repr(config)):
        assert KEY not in said
    assert "may not see this image" in str(failure.value)
    assert "broke me" in caplog.text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "another"}, f"does not serve 'another'; it has {MODEL}"),
        ({"api_key": "wrong"}, "--api-key-env"),
    ],
)
def test_a_server_that_cannot_serve_is_refused_at_the_start(
    server: ChatServer, connect: Connect, change: dict[str, str], words: str
) -> None:
    server.key = "right"
    with pytest.raises(ServerRefuses, match=words):
        connect(**({"api_key": "right"} | change))


def test_a_setting_that_the_server_rejects_is_refused_at_the_start(server: ChatServer, connect: Connect) -> None:
    server.plan = lambda body: lambda exchange: exchange.refuse(400, "temperature: only 1 is supported")
    with pytest.raises(ServerRefuses, match="only 1 is supported"):
        connect()


def test_a_server_without_the_extensions_gets_none(
    server: ChatServer, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    server.unknown = ("top_k", "min_tokens")
    assert texts(connect(), several(1))
    assert {"top_k", "min_tokens"}.isdisjoint(server.asked[0])
    assert "does not know 'top_k'" in caplog.text


def test_a_text_model_is_refused_at_the_start(server: ChatServer, connect: Connect) -> None:
    server.plan = lambda body: lambda exchange: exchange.refuse(400, "served-model is not a multimodal model")
    with pytest.raises(ServerRefuses, match="not a multimodal model"):
        connect()


def test_finish_reasons_and_counts_are_the_servers(server: ChatServer, connect: Connect) -> None:
    def cut_off(exchange: Exchange) -> None:
        choice = {"message": {"content": "a te"}, "finish_reason": "length"}
        exchange.answer(200, {"choices": [choice], "usage": {"prompt_tokens": 41, "completion_tokens": 2}})

    def filtered(exchange: Exchange) -> None:
        exchange.answer(200, {"choices": [{"message": {"content": None}, "finish_reason": "content_filter"}]})

    engine = connect()
    server.plan = lambda body: {"verb 0": cut_off, "verb 1": filtered}.get(_verb(body))
    cut, refused = engine.submit(several(2))
    completion = cut.result(WAIT_S)
    assert (completion.text, completion.finish_reason) == ("a te", "length")
    assert (completion.tokens, completion.prompt_tokens) == (2, 41)
    with pytest.raises(Refused, match="content_filter"):
        refused.result(WAIT_S)


def _verb(body: dict[str, Any]) -> str:
    return next((verb for verb in ("verb 0", "verb 1") if verb in text_of(body)), "")


def test_a_transparent_or_grey_image_is_sent_as_rgb(server: ChatServer, connect: Connect) -> None:
    grey = replace(image(0), key="grey", load=lambda: Image.new("L", (64, 48), 90))
    texts(connect(), [request(grey)])
    assert image_of(server.asked[0]).mode == "RGB"
