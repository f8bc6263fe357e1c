"""What a model is called: its name or folder as given, a hash of its configuration, and the queues that follow."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from app.errors import ModelMissing

SMALL_MODEL = Path(__file__).parent / "small_model"
_SHIPPED = {"small": SMALL_MODEL}


_HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?")


_CONFIGURATION = (
    *("config.json", "generation_config.json", "preprocessor_config.json", "tokenizer_config.json"),
    *("tokenizer.json", "vocab.json", "merges.txt", "chat_template.json", "chat_template.jinja"),
)
_WEIGHTS = ("*.safetensors", "*.bin")
_BLOCKS, _BLOCK_BYTES = 64, 1 << 16


@dataclass(frozen=True)
class ModelIdentity:
    """A model as producer and workers agree on it, whether or not the producer's host has its files."""

    name: str  # as given
    revision: str | None
    config_hash: str | None = None  # of config.json, where a folder is given and is there
    hash: str | None = None  # of all of it, weights by samples; None where its files are not here
    base_url: str | None = None  # of the server that has the model

    @property
    def source(self) -> str:
        """What ``from_pretrained`` takes, or the name under which a server has the model."""
        if self.base_url:
            return self.name
        return str(_SHIPPED.get(self.name, self.name))

    def refuse_missing(self) -> None:
        """Raise ModelMissing if the name can only be a folder, and there is no model in it on this host."""
        if self.base_url:
            return  # its server says whether it has it
        folder = Path(self.source)
        if not _HUB_NAME.fullmatch(self.name) and self.name not in _SHIPPED and not (folder / "config.json").is_file():
            raise ModelMissing(f"model {self.name!r}: no config.json in that folder, and it is no hub name")

    @property
    def key(self) -> str:
        """The fingerprint that names its queues: of the content where that can be read, never of a path's spelling."""
        if self.hash:
            return f"model-{self.hash[:16]}"
        return f"config-{self.config_hash}" if self.config_hash else self._name_key

    @property
    def keys_served(self) -> list[str]:
        """The keys of the queues that a worker with this model consumes.

        A producer on a host without the model's files publishes under its name, or under its configuration's hash; a
        worker, whose files are there, serves these too, and binds the run to its weights.
        """
        if self.base_url:  # a server's model is known by its address: its own workers alone serve it
            return [self.key]
        config = f"config-{self.config_hash}" if self.config_hash else self.key
        return list(dict.fromkeys((self.key, config, self._name_key)))

    @property
    def _name_key(self) -> str:
        name = os.path.normpath(self.name)
        slug = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[-32:]
        text = "\n".join((name, self.revision or ""))
        return f"{slug}-{hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()[:12]}"


def identify_model(name: str, revision: str | None = None, base_url: str | None = None) -> ModelIdentity:
    """The identity of a model given by the shipped one's name ("small"), a folder or a hub name.

    With ``base_url`` it is the name under which that server has it; address and name stand for the weights' hash.
    """
    if base_url:
        served = hashlib.sha256(f"{base_url}\n{name}".encode("utf-8", "surrogateescape")).hexdigest()
        return ModelIdentity(name, revision, hash=served, base_url=base_url)
    folder = Path(_SHIPPED.get(name, name))
    if not (folder / "config.json").is_file():
        return ModelIdentity(name, revision, hash=_hub_commit(name, revision))
    config_hash = hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()[:16]
    return ModelIdentity(name, revision, config_hash, _folder_hash(folder.resolve()))


@lru_cache(maxsize=8)
def _folder_hash(folder: Path) -> str | None:
    """Over a model's configuration, tokenizer, template and samples of its weights; None where it has no weights.

    Of each weights file its size and 64 blocks of 64 KiB at fixed places: a header alone cannot tell two checkpoints of
    one training apart, and reading all of it takes minutes.
    """
    shards = sorted(path for pattern in _WEIGHTS for path in folder.glob(pattern))
    if not shards:
        return None
    digest = hashlib.sha256()
    for name in _CONFIGURATION:
        path = folder / name
        digest.update(f"{name}\0".encode() + (path.read_bytes() if path.is_file() else b""))
    for shard in shards:
        size = shard.stat().st_size
        digest.update(f"{shard.name}\0{size}\0".encode())
        with shard.open("rb") as file:
            for block in range(_BLOCKS):
                file.seek(max(0, size - _BLOCK_BYTES) * block // (_BLOCKS - 1))
                digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()


def _hub_commit(name: str, revision: str | None) -> str | None:
    """The commit that stands for a hub's model, where it lies in this host's cache; None elsewhere."""
    if not _HUB_NAME.fullmatch(name) or find_spec("huggingface_hub") is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(found).parent.name if isinstance(found, str) else None
