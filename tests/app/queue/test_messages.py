"""What is read out of a queue: a message of the farm, or one of a few reasons, whatever lies there."""

from __future__ import annotations

import json
from typing import Any

import pytest
from kombu.transport.virtual import Message

from app.queue.celery_app import make_app
from app.queue.keys import TASK
from app.queue.messages import Unreadable, names_a_pair, read_message
from tests.conftest import MakeSettings
from tests.support.odd_messages import odd_messages, readable_messages

RUN = "01234567-89ab-cdef-0123-456789abcdef"
LIST = "model/01234567-89ab/3"


@pytest.fixture
def good(make_settings: MakeSettings) -> dict[str, Any]:
    """A message as Celery itself makes it."""
    app = make_app(make_settings(redis_url="redis://localhost:1"))
    task = app.amqp.create_task_message("an-id", TASK, args=[RUN, 7], kwargs={})
    channel = app.connection_for_write("memory://", transport="memory").default_channel
    body = json.dumps(task.body)
    message = channel.prepare_message(
        body, 0, "application/json", "utf-8", task.headers, {"delivery_mode": 2, **task.properties}
    )
    channel._inplace_augment_message(message, "", LIST)
    return message  # type: ignore[no-any-return]


def test_a_message_of_celery_names_its_pair(good: dict[str, Any]) -> None:
    read = read_message(json.dumps(good).encode(), LIST)
    from kombu.transport.memory import Channel

    message = Message(read, channel=object.__new__(Channel))
    assert message.decode()[:2] == [[RUN, 7], {}]
    assert message.headers["id"] == "an-id"
    assert message.delivery_info["routing_key"] == LIST
    assert set(read) == set(good)


def test_copies_of_a_message_have_tags_of_their_own(good: dict[str, Any]) -> None:
    tags = {read_message(json.dumps(good).encode(), LIST)["properties"]["delivery_tag"] for _ in range(3)}
    assert len(tags) == 3


def test_whatever_is_odd_has_its_reason(good: dict[str, Any]) -> None:
    reasons = set()
    for number, element in enumerate(odd_messages(good)):
        with pytest.raises(Unreadable) as refused:
            pytest.fail(f"element {number} was taken for a message: {read_message(element, LIST)}, {element[:300]!r}")
        reasons.add(str(refused.value))
    assert number > 200
    assert 8 < len(reasons) < 16, reasons


def test_odd_values_where_none_is_looked_for_change_nothing(good: dict[str, Any]) -> None:
    plain = read_message(json.dumps(good).encode(), LIST)
    for element in readable_messages(good):
        read = read_message(element, LIST)
        assert {**read, "properties": 0, "headers": 0} == {**plain, "properties": 0, "headers": 0}
        assert read["headers"] | {"redelivered": 0} == plain["headers"] | {"redelivered": 0}


@pytest.mark.parametrize(
    "arguments", [[RUN, 0], [RUN, 2**63], [RUN, True], [RUN], "ab", {RUN: 1, 2: 3}, [RUN.upper(), 1]]
)
def test_only_a_run_and_a_pair_that_a_database_can_hold_are_looked_up(arguments: Any) -> None:
    assert not names_a_pair(arguments)
    assert names_a_pair([RUN, 2**63 - 1])
