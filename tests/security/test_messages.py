"""JSON alone on the wire: a message that would run code when read is refused, and the pairs behind it are done."""

from __future__ import annotations

import base64
import json
import os
import pickle  # noqa: TID251 - what an attacker would send
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.database.connection import open_to_read, reading
from app.database.run_rows import find_run
from app.queue.celery_app import make_app
from app.queue.embedded import EmbeddedBroker
from app.queue.keys import PREFIX, shard_lists
from app.queue.publisher import Broker
from app.settings import Settings, load_settings
from tests.support.commands import Commands
from tests.support.waits import comes_true


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_messages_that_would_run_code_are_refused_and_the_pairs_are_done(tmp_path: Path, short_folder: Path) -> None:
    settings = load_settings(state_dir=short_folder / "state")
    commands = Commands(short_folder)
    try:
        assert commands.enqueue().returncode == 0
        sprung = tmp_path / "sprung"
        refused = _set_traps(settings, sprung)
        with commands.worker() as worker:
            assert worker.says("ready, up to"), worker.said[-3000:]
            assert comes_true(lambda: commands.status()["pending"] == 0, 120, unless=lambda: not worker.alive)
        assert "dead letter" in worker.said
        status = commands.status()
        assert (status["failed"], status["dead_letters"]) == (0, refused)
        assert not sprung.exists()
    finally:
        EmbeddedBroker(settings.state_dir.resolve() / "broker").stop()


def _set_traps(settings: Settings, sprung: Path) -> int:
    """Put them where the worker looks first; gives how many."""
    broker = Broker(make_app(settings))
    with reading(open_to_read(settings)) as connection:
        run = find_run(connection, None)
    queues = [PREFIX + name for name in shard_lists(run.model_key, run.uuid, settings.queue_shards)]
    queue = next(name for name in queues if broker.redis.llen(name))
    good: dict[str, Any] = json.loads(broker.redis.lrange(queue, -1, -1)[0])
    pickled = pickle.dumps(Trap(sprung))
    traps = [
        _trap(good, pickled, "application/x-python-serialize", "binary"),
        _trap(good, f"!!python/object/apply:os.mkdir ['{sprung}']".encode(), "application/x-yaml", "utf-8"),
        _trap(good, pickled, "application/json", "binary"),  # under a false name
    ]
    broker.redis.rpush(queue, *traps)
    broker.close()
    return len(traps)


def _trap(good: dict[str, Any], body: bytes, content_type: str, encoding: str) -> str:
    properties = good["properties"] | {"delivery_tag": os.urandom(8).hex()}
    return json.dumps(
        good
        | {"body": base64.b64encode(body).decode(), "content-type": content_type, "content-encoding": encoding}
        | {"properties": properties}
    )
