"""What an operator sees of a farm that works: its log lines, its summaries, its metrics."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from producer.run_request import Inputs
from tests.support.drawn_inputs import draw_inputs
from tests.support.farm import QUICK, Farm
from tests.support.processes import Process
from tests.support.servers import SqliteFile
from tests.support.waits import wait_for

PAIRS, BAD = 18, 6  # the last of three images is cut off


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Farm]:
    """A farm of `workers up` with two workers and a run that has ended: one image of three is cut off."""
    folder = tmp_path_factory.mktemp("operated")
    settings = QUICK | {"log_format": "json", "summary_s": 0.5, "metrics_port": free_ports(2)}
    with Farm(folder, SqliteFile(folder / "farm.sqlite"), model=tiny_model, **settings) as made:
        drawn = draw_inputs(folder / "in", PAIRS, seed=1)
        made.enqueue(Inputs(drawn.stage1, drawn.images, drawn.images.parent), max_new_tokens=8)
        made.start_launcher(workers=2)
        assert made.wait_done().failed == BAD
        yield made


def free_ports(number: int) -> int:
    """The first of so many ports in a row that nobody has at present."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as first:
            port = int(first.getsockname()[1])
            try:
                for more in range(1, number):
                    socket.create_server(("127.0.0.1", port + more)).close()
            except OSError:
                continue
            return port


def lines(farm: Farm) -> list[dict[str, Any]]:
    """The workers' logs; what Celery prints before logging is set up is no part of them."""
    logs = "".join(path.read_text() for path in (farm.folder / "logs").glob("cpu-*.log"))
    return [json.loads(line) for line in logs.splitlines() if line.startswith("{")]


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return str(answer.read().decode())


def test_every_line_about_a_pair_names_it(farm: Farm) -> None:
    failed = [line for line in lines(farm) if line["message"].startswith("pair failed")]
    images = {item["image_id"]: item for item in json.loads((farm.folder / "in" / "images.json").read_text())}
    assert len(failed) == BAD
    assert {(line["run"], line["image"]) for line in failed} == {("default", "2")}
    names = {each["class_name"] for each in images[2]["objects"]}
    assert {name for line in failed for name in (line["subject"], line["object"])} <= names


def test_a_worker_sums_up_what_it_did(farm: Farm) -> None:
    def summed() -> list[dict[str, Any]] | None:
        found = [line for line in lines(farm) if line["message"].startswith("summary of")]
        return found if sum(line["pairs"] + line["failed"] for line in found) == PAIRS else None

    found = wait_for(summed, "all pairs are summed up")
    busiest = max(found, key=lambda line: line["pairs"])
    assert busiest["tokens_per_s"] > 0
    assert busiest["descriptions_per_s"] > 0
    assert busiest["rows_possible"] >= busiest["rows_at_work"] > 0
    assert busiest["memory"]["resident"] > 2**20
    assert any("image unreadable" in line["last_error"] for line in found)


@pytest.fixture(scope="module")
def prometheus(farm: Farm) -> Iterator[str]:
    """The address of a real Prometheus that scrapes the workers and `results status --serve`."""
    if (program := shutil.which("prometheus")) is None:
        pytest.skip("there is no prometheus on this machine (Debian: apt-get install prometheus)")
    workers = int(farm.settings.metrics_port or 0)
    status = free_ports(2)
    own = status + 1
    targets = [f"127.0.0.1:{port}" for port in (workers, workers + 1, status)]
    scraped = {"job_name": "farm", "scrape_interval": "1s", "static_configs": [{"targets": targets}]}
    (farm.folder / "prometheus.yml").write_text(json.dumps({"scrape_configs": [scraped]}))
    log = farm.folder / "prometheus.log"
    serving: list[str | Path] = [Path(sys.executable).parent / "results", "status", "--serve", str(status)]
    scraping = [program, f"--config.file={farm.folder / 'prometheus.yml'}", f"--storage.tsdb.path={farm.folder / 'db'}",
                f"--web.listen-address=127.0.0.1:{own}"]  # fmt: skip
    processes = [Process(serving, farm.environment, log), Process(scraping, dict(os.environ), log)]
    try:
        yield f"http://127.0.0.1:{own}"
    finally:
        assert processes[0].stop() == 0, processes[0].said
        processes[1].kill()


def asked(prometheus: str, query: str) -> dict[tuple[str, ...], float]:
    """What Prometheus answers: values by the labels that tell them apart."""
    try:
        document = json.loads(get(f"{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': query})}"))
    except OSError:
        return {}  # it starts
    found = document["data"]["result"]
    hidden = ("__name__", "job", "instance")
    return {
        tuple(value for name, value in sorted(each["metric"].items()) if name not in hidden): float(each["value"][1])
        for each in found
    }


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("sum by (outcome) (farm_pairs_total)", {("done",): PAIRS - BAD, ("failed",): BAD, ("duplicate",): 0}),
        ("sum by (reason) (farm_failures_total)", {("image unreadable",): BAD}),
        ("sum(farm_images_encoded_total) >= bool 2", {(): 1}),
        ("sum(farm_prefix_cache_hits_total) > bool 0", {(): 1}),
        ("sum(farm_tokens_total) > bool 0", {(): 1}),
        ("sum(farm_step_seconds_total) > bool 0", {(): 1}),
        ("min(farm_memory_bytes) > bool 1e6", {(): 1}),
        ("sum(farm_out_of_memory_rounds_total)", {(): 0}),
        ("farm_run_pairs{state=~'done|failed|pending'}",
         {("default", "done"): PAIRS - BAD, ("default", "failed"): BAD, ("default", "pending"): 0}),
        ("farm_run_failures", {("image unreadable", "default"): BAD}),
        ("farm_run_messages", {("default",): 0}),
        ("farm_workers_up + farm_database_up + farm_broker_up", {(): 4}),
        ("count(farm_up_worker_rows_possible)", {(): 2}),
    ],
)  # fmt: skip
def test_prometheus_sees_the_farm(prometheus: str, query: str, wanted: dict[tuple[str, ...], float]) -> None:
    wait_for(lambda: asked(prometheus, query) == wanted, query)


def test_a_restart_is_counted_and_the_new_process_answers(farm: Farm) -> None:
    ports = [int(farm.settings.metrics_port or 0) + number for number in (0, 1)]
    killed = next(pid for pid, worker in farm.pids().items() if ":cpu-1:" in worker)
    os.kill(killed, signal.SIGKILL)

    def restarts() -> list[str]:
        try:
            pages = [get(f"http://127.0.0.1:{port}/metrics") for port in ports]
        except OSError:
            return []
        return [line for page in pages for line in page.splitlines() if line.startswith("farm_worker_restarts ")]

    wait_for(lambda: restarts() == ["farm_worker_restarts 0.0", "farm_worker_restarts 1.0"], "the restart is seen")


def test_metrics_are_for_this_machine_unless_said(farm: Farm) -> None:
    with socket.socket() as other, pytest.raises(OSError, match="refused"):
        other.connect(("127.0.0.2", int(farm.settings.metrics_port or 0)))
