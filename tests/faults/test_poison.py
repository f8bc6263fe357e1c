"""An image that kills the process which decodes it."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.support.drawn_inputs import draw_inputs
from tests.support.farm import Farm
from tests.support.processes import CHECKOUT
from tests.support.servers import open_server
from tests.support.waits import wait_for

# Python imports this module at its start wherever it is on the path; the product knows nothing of it.
DEADLY = """
import os, signal
from PIL import PngImagePlugin
load = PngImagePlugin.PngImageFile.load
def deadly(self):
    if "deadly" in self.info:
        os.kill(os.getpid(), signal.SIGSEGV)
    return load(self)
PngImagePlugin.PngImageFile.load = deadly
"""


def test_a_deadly_image_fails_alone_and_its_neighbours_are_done(tmp_path: Path) -> None:
    inputs = draw_inputs(tmp_path / "inputs", 18, seed=2, bad_images=0)
    _keep_one_pair_of_image_1(inputs.stage1)
    _mark(inputs.images.with_name("1.png"))
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(DEADLY)
    environment = {"PYTHONPATH": f"{tmp_path / 'path'}:{CHECKOUT}"}
    server = open_server("sqlite", tmp_path)
    with Farm(tmp_path, server, environment=environment, max_attempts=1, pairs_in_flight=8) as farm:
        farm.start_launcher()
        assert farm.produce(inputs).wait(120) == 0
        wait_for(lambda: farm.ended() >= 13, "13 pairs end", 180)
        assert set(farm.failures().values()) == {"kills its worker"}
        assert {image for image, _, _ in farm.failures()} == {"1"}
        assert len(farm.published()["results"]) == 12
        assert farm.launcher is not None
        assert farm.launcher.said.count("was ended by SIGSEGV") == 2


def _mark(path: Path) -> None:
    """Say in the image's own file that it is the deadly one: who decodes it may know no name."""
    text = PngInfo()
    text.add_text("deadly", "yes")
    with Image.open(path) as image:
        image.load()
        image.save(path, pnginfo=text)


def _keep_one_pair_of_image_1(stage1: Path) -> None:
    """One deadly pair costs two starts of a worker."""
    whole = json.loads(stage1.read_text())
    candidates = whole["per_image_top100_candidates"]
    candidates["1"] = candidates["1"][:1]
    stage1.write_text(json.dumps(whole))
