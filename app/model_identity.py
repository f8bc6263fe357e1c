"""What a model is called: its name or folder as given, a hash of its configuration, and the queues that follow."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from app.errors import ModelMissing

SMALL_MODEL = Path(__file__).parent / "small_model"
_SHIPPED = {"small": SMALL_MODEL}


_HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True)
class ModelIdentity:
    """A model as producer and workers agree on it, whether or not the producer's host has its files."""

    name: str  # as given
    revision: str | None
    config_hash: str | None  # of config.json, where a folder is given and is there; of a server's address and name
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
        """The fingerprint that names its queues."""
        return self._key(self.config_hash)

    @property
    def keys_served(self) -> list[str]:
        """The keys of the queues that a worker with this model consumes.

        A producer on a host without the model's folder cannot hash its configuration: it publishes under the key
        without the hash, and a worker, whose folder is there, serves both. A server's model is known by its address:
        nobody but its own workers serves it, and they serve nothing else.
        """
        if self.base_url:
            return [self.key]
        return list(dict.fromkeys((self.key, self._key(None))))

    def _key(self, config_hash: str | None) -> str:
        slug = re.sub(r"[^A-Za-z0-9]+", "-", self.name).strip("-")[-32:]
        text = "\n".join((self.name, self.revision or "", config_hash or ""))
        return f"{slug}-{hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()[:12]}"


def identify_model(name: str, revision: str | None = None, base_url: str | None = None) -> ModelIdentity:
    """The identity of a model given by the shipped one's name ("small"), a folder or a hub name.

    With ``base_url`` it is the name under which that server has it; address and name stand for the weights' hash.
    """
    if base_url:
        served = hashlib.sha256(f"{base_url}\n{name}".encode("utf-8", "surrogateescape")).hexdigest()[:16]
        return ModelIdentity(name, revision, served, base_url)
    config = Path(_SHIPPED.get(name, name)) / "config.json"
    digest = hashlib.sha256(config.read_bytes()).hexdigest()[:16] if config.is_file() else None
    return ModelIdentity(name, revision, digest)
