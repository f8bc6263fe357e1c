"""What a task message must be. What is handed on is made anew of what was read: no odd field reaches Celery.

Whoever may write into Redis may put anything into a queue. A message that Celery or kombu stumbles over is held
unacknowledged or ends the consumer, so each is read here first, and strictly: two values of it count, the run's uuid
and the pair's id.
"""

from __future__ import annotations

import json
import re
import uuid
from base64 import b64decode, b64encode
from typing import Any

from app.queue import keys

LARGEST_BYTES = 64 * 1024  # one of ours takes less than 2 kB
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_LARGEST_ID = 2**63 - 1
_LONGEST_NAME = 200
_NOTHING_EMBEDDED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


class Unreadable(ValueError):
    """A queue's element is no task message of the farm; the message is one of a few reasons."""


def read_message(element: bytes, list_name: str) -> dict[str, Any]:
    """A queue's element as the message that kombu takes, with a delivery tag of its own. Raises Unreadable.

    A tag that the element brings along is not used: Redis keeps what is unacknowledged by tag, and two copies of one
    message must not share a place. ``list_name`` is where the message was and where it goes back to.
    """
    message = _object(_parsed(element), "no JSON object")
    if message.get("content-type") != "application/json" or message.get("content-encoding") != "utf-8":
        raise Unreadable("not JSON in UTF-8 by its content type")
    headers = _object(message.get("headers"), "no headers")
    properties = _object(message.get("properties"), "no properties")
    if headers.get("compression") is not None:
        raise Unreadable("compressed")
    if headers.get("task") != keys.TASK:
        raise Unreadable("not the farm's task")
    if not _is_name(headers.get("id")) or not _is_name(properties.get("delivery_tag")):
        raise Unreadable("no task id or delivery tag")
    if properties.get("body_encoding") != "base64":
        raise Unreadable("body not in base64")
    arguments = _arguments(message.get("body"))
    return _message(arguments, headers["id"], list_name, redelivered=headers.get("redelivered") is True)


def names_a_pair(arguments: Any) -> bool:
    """Whether these are a run's uuid and a pair's id, as a database can hold them; messages come from outside."""
    if not isinstance(arguments, list | tuple) or len(arguments) != 2:
        return False
    run_uuid, pair_id = arguments
    return (
        isinstance(run_uuid, str)
        and _UUID.fullmatch(run_uuid) is not None
        and type(pair_id) is int
        and 0 < pair_id <= _LARGEST_ID
    )


def _parsed(text: bytes) -> Any:
    if len(text) > LARGEST_BYTES:
        raise Unreadable("too large")
    try:
        return json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError):
        raise Unreadable("no JSON") from None


def _object(value: Any, otherwise: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Unreadable(otherwise)
    return value


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _LONGEST_NAME and value.isprintable()


def _arguments(body: Any) -> list[Any]:
    try:
        decoded = b64decode(body, validate=True)
    except (ValueError, TypeError):
        raise Unreadable("body not in base64") from None
    call = _parsed(decoded)
    if not isinstance(call, list) or len(call) != 3 or not names_a_pair(call[0]) or call[1] != {}:
        raise Unreadable("other arguments than a run and a pair")
    return list(call[0])


def _message(arguments: list[Any], task_id: str, list_name: str, *, redelivered: bool) -> dict[str, Any]:
    body = json.dumps([arguments, {}, _NOTHING_EMBEDDED])
    return {
        "body": b64encode(body.encode()).decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {
            "lang": "py", "task": keys.TASK, "id": task_id, "root_id": task_id, "parent_id": None, "retries": 0,
            "argsrepr": repr(arguments), "kwargsrepr": "{}", "ignore_result": True, "redelivered": redelivered,
        },
        "properties": {
            "correlation_id": task_id, "reply_to": "", "delivery_mode": 2, "priority": 0, "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()),
            "delivery_info": {"exchange": "", "routing_key": list_name, "redelivered": redelivered},
        },
    }  # fmt: skip
