"""The demo: the farm's main job on a handful of imaged, then a few results alongside what is in the imaged.

    python -m tools.demo

Everything runs as a user would run it (``producer run``), with the embedded broker and SQLite under ``demo/output``.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

DEMO = Path(__file__).resolve().parents[1] / "demo"
OUTPUT = DEMO / "output"
SOURCES = {"scenes": DEMO / "scenes", "photographs": DEMO / "photographs"}
_SHOWN = 4

Record = dict[str, Any]


@click.command()
@click.option("--max-new-tokens", default=64, show_default=True, help="Longest description.")
def main(max_new_tokens: int) -> None:
    """Describe the demo's imaged with the small model that comes along, and show some of it.

    Example: python -m tools.demo
    """
    images = gather()
    out = OUTPUT / "stage2_generated_results.json"
    command = [sys.executable, "-m", "producer", "run", "--stage1-result", str(OUTPUT / "recall_results.json"),
               "--input-data", str(OUTPUT / "images.json"), "--output", str(out), "--state-dir", str(OUTPUT / "state"),
               "--max-new-tokens", str(max_new_tokens), "--temperature", "0", "--strict"]  # fmt: skip
    click.echo(f"$ {' '.join(['producer', *command[3:]])}\n")
    subprocess.run(command, check=True)
    click.echo()
    show(json.loads(out.read_text())["results"], images)
    click.echo(f"The JSON: {out.relative_to(Path.cwd()) if out.is_relative_to(Path.cwd()) else out}")


def gather() -> dict[str, Record]:
    """Copy the imaged and join the input files under ``OUTPUT``; gives the images by id."""
    OUTPUT.mkdir(exist_ok=True)
    images: list[Record] = []
    candidates: dict[str, Any] = {}
    for name, folder in SOURCES.items():
        imaged = folder if name == "scenes" else photographs()
        if imaged is None:
            click.echo("scikit-image is not installed: the demo goes without photographs")
            continue
        for image in json.loads((folder / "images.json").read_text()):
            target = Path(name) / Path(image["image_path"]).name
            (OUTPUT / name).mkdir(exist_ok=True)
            shutil.copyfile(imaged / image["image_path"], OUTPUT / target)
            images.append({**image, "image_path": target.as_posix()})
        candidates |= json.loads((folder / "recall_results.json").read_text())["per_image_top100_candidates"]
    (OUTPUT / "images.json").write_text(json.dumps(images))
    (OUTPUT / "recall_results.json").write_text(json.dumps({"per_image_top100_candidates": candidates}))
    return {str(image["image_id"]): image for image in images}


def photographs() -> Path | None:
    """Where scikit-image keeps its imaged; the package itself is not imported (it wants more than its imaged)."""
    found = find_spec("skimage")
    locations = found.submodule_search_locations if found else None
    return Path(locations[0]) / "data" if locations else None


def show(results: list[Record], images: dict[str, Record]) -> None:
    """A few results, each alongside what is in the image."""
    drawn = [result for result in results if "scenes/" in images[str(result["image_id"])]["image_path"]]
    taken = [result for result in results if "photographs/" in images[str(result["image_id"])]["image_path"]]
    click.echo("Drawn scenes, which the small model was trained for:")
    for result in _spread(drawn):
        click.echo(_shown(result, images[str(result["image_id"])]))
    if taken:
        click.echo(
            "Photographs, of which the small model knows nothing: what it says of them is wrong.\n"
            "For them give a real model: --model-path Qwen/Qwen3-VL-8B-Instruct, on a GPU."
        )
        click.echo(_shown(taken[0], images[str(taken[0]["image_id"])]))


def _spread(results: list[Record]) -> list[Record]:
    return results[:: max(1, len(results) // _SHOWN)][:_SHOWN]


def _shown(result: Record, image: Record) -> str:
    generated = result["stage2_generated"][0]
    names = [_name(result, image, role) for role in ("subject", "object")]
    lines = [
        f"  {image['image_path']}: {result['subject']} {generated['predicate']} {result['object']}?",
        f"    the model:   {generated['generated_description']}",
    ]
    if truth := _truth(result, image):
        lines.append(
            f"    the drawing: {names[0]} {truth['direction']} {names[1]}, {_touch(truth)}; {_fit(generated, truth)}"
        )
    return "\n".join(lines) + "\n"


def _truth(result: Record, image: Record) -> Record | None:
    """What the drawing program wrote down about the two objects."""
    wanted = (result.get("subject_id"), result.get("object_id"))
    relations = image.get("relations", [])
    return next((item for item in relations if (item["subject_id"], item["object_id"]) == wanted), None)


def _touch(truth: Record) -> str:
    return "overlapping" if truth["overlap"] else "apart"


def _fit(generated: Record, truth: Record) -> str:
    fits = generated["predicate"] in truth["predicates"]
    return f'"{generated["predicate"]}" {"fits" if fits else "does not fit"}'


def _name(result: Record, image: Record, role: str) -> str:
    by_id = {str(item["id"]): item for item in image["objects"]}
    found = by_id.get(str(result.get(f"{role}_id")), {})
    return " ".join(filter(None, (found.get("colour"), result[role])))


if __name__ == "__main__":
    main()
