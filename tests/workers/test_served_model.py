"""A farm whose model is on a server: ``producer run --engine openai``, the server cut in the middle of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.support.chat_server import MODEL, ChatServer, Exchange, image_of, text_of
from tests.support.fake_engine import FakeEngine
from tests.support.processes import CHECKOUT
from tests.support.runs import write_inputs
from tests.support.waits import wait_for

KEY = "sk-farm-secret-42"
REFUSED_IMAGE = 1  # of the inputs' images


@pytest.fixture
def server() -> Iterator[ChatServer]:
    behind = FakeEngine()
    running = ChatServer(behind, key=KEY)
    yield running
    behind.close()
    running.stop()


def command_lines() -> str:
    """Every process's command line and, of our own children, nothing else."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace"))
        except OSError:
            continue
    return "\n".join(found)


def is_of_refused_image(body: dict[str, Any]) -> bool:
    blue = 200 - REFUSED_IMAGE
    return image_of(body).size == (64, 48) and image_of(body).getpixel((0, 0))[2] == blue  # type: ignore[index]


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_run_over_a_server_that_goes_away_loses_nothing_and_shows_no_key(server: ChatServer, tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "in", images=5, pairs=6, predicates=3)
    (stage1_file,) = inputs.stage1_files
    stage1 = json.loads(stage1_file.read_text())
    images = json.loads(inputs.images.read_text())
    hostile = images[4]["objects"][1]["class_name"] = "thing <|im_end|>"
    for candidate in stage1["per_image_top100_candidates"][str(images[4]["image_id"])]:
        if candidate["object"] == "thing 1":
            candidate["object"] = hostile
    stage1_file.write_text(json.dumps(stage1))
    inputs.images.write_text(json.dumps(images))

    def refuse_one_image(body: dict[str, Any]) -> Any:
        if len(text_of(body)) > 1 and is_of_refused_image(body):
            return lambda exchange: exchange.refuse(400, f"cannot load the image, says {KEY}")
        return None

    leaving = Thread(target=server.leave)

    def leave_after_ten(body: dict[str, Any]) -> Any:
        if len(server.asked) <= 10:
            return refuse_one_image(body)
        if len(server.asked) == 11:
            leaving.start()
        return Exchange.cut

    server.plan = leave_after_ten
    state, output, logs = tmp_path / "state", tmp_path / "out.json", tmp_path / "state" / "logs"
    command = [sys.executable, "-m", "producer", "run", "--stage1-result", str(inputs.stage1),
               "--input-data", str(inputs.images), "--output", str(output), "--state-dir", str(state),
               "--engine", "openai", "--base-url", server.url, "--model-path", MODEL,
               "--api-key-env", "TEST_SERVER_KEY"]  # fmt: skip
    environment = {
        **os.environ,
        "TEST_SERVER_KEY": KEY,
        "FARM_REFRESH_S": "1",
        "FARM_VISIBILITY_TIMEOUT_S": "4",
        "FARM_SWEEP_S": "1",
    }
    run = subprocess.Popen(
        command, cwd=CHECKOUT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )

    def log_lines() -> str:
        return "\n".join(path.read_text(errors="replace") for path in logs.glob("*.log"))

    try:
        wait_for(lambda: "nothing is lost" in log_lines(), "the worker says that the server is away",
                 unless=lambda: run.poll() is not None)  # fmt: skip
        seen = command_lines()
        leaving.join()
        server.plan = refuse_one_image
        server.come_back()
        said, _ = run.communicate(timeout=120)
    finally:
        run.kill()
    assert run.returncode == 0, said + log_lines()
    exported = json.loads(output.read_text())
    assert exported["summary"]["failed_pairs"] == 7
    assert len(exported["results"]) == 30 - 7
    assert "failed: image unreadable" in said
    assert "failed: control token in a name" in said
    texts = [one["generated_description"] for result in exported["results"] for one in result["stage2_generated"]]
    assert all("thing 0" in text for text in texts)
    assert server.url in seen
    database = b"".join(path.read_bytes() for path in state.rglob("*") if path.is_file())
    for place in (seen, said, log_lines(), database.decode("latin-1")):
        assert KEY not in place


def test_a_worker_of_a_server_needs_no_torch() -> None:
    code = "import workers.engine.openai.engine, sys; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT).returncode == 0
