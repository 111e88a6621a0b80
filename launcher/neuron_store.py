"""Where models lie that were compiled here from plain ones: beneath the cache of the hub client.

A directory for each model, commit, configuration and pair of versions, so that the next start finds it at
once and without a network. Which one answered a wish is remembered beside it: a start with the same flags
serves the same configuration, whatever is compiled or cached meanwhile.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from launcher.cached_config import Wanted, differences
from launcher.device.stack import Stack
from neuron_server.compiled_model import CHECKPOINT
from neuron_server.errors import ModelError
from neuron_server.finished_directory import filling, read_receipt
from neuron_server.models import StaticFacts, read_model

log = logging.getLogger("text_generation_launcher")

_DIRECTORY = "neuronx-tgi"
_WISHES = "wishes"


def hub_cache(environ: Mapping[str, str]) -> Path:
    """The cache of the hub client, by its own variables and TGI's."""
    named = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE")
    if named:
        return Path(named).expanduser()
    home = environ.get("HF_HOME")
    if home:
        return Path(home).expanduser() / "hub"
    base = environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path("~/.cache")).expanduser() / "huggingface" / "hub"


def fingerprint(path: Path) -> str:
    """What tells a local model from what it was: configuration, and names, sizes and times of its weights.

    Raises ``ModelError`` (rule ``model_missing``).
    """
    try:
        digest = hashlib.sha256((path / "config.json").read_bytes())
        for file in sorted(path.glob("*.safetensors*")):
            status = file.stat()
            digest.update(f"{file.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error}", rule="model_missing") from error
    return digest.hexdigest()[:40]


@dataclass(frozen=True, slots=True)
class Store:
    """What was compiled of one model, with one set of installed versions.

    ``name``: hub id, or the absolute path of a directory. ``revision``: commit, or ``fingerprint``.
    """

    root: Path
    name: str
    revision: str
    versions: str

    @classmethod
    def of(cls, environ: Mapping[str, str], name: str, revision: str, stack: Stack) -> Store:
        """The store in the hub's cache."""
        versions = f"optimum-neuron {stack.optimum_neuron}, neuronx-cc {stack.compiler}"
        return cls(hub_cache(environ) / _DIRECTORY, name, revision, versions)

    @property
    def directory(self) -> Path:
        """Everything of this model, commit and versions."""
        readable = "models--" + self.name.strip("/").replace("/", "--")[-100:]
        return self.root / f"{readable}--{_digest(self.name, self.revision, self.versions)}"

    def place(self, static: StaticFacts) -> Path:
        """The directory of one configuration; it need not exist."""
        sampling = "device" if static.on_device_sampling else "host"
        parts = (
            *(f"b{static.batch_size}", f"s{static.sequence_length}", f"c{static.max_context_length}"),
            *(f"tp{static.tensor_parallel}", static.dtype or "unknown", sampling, static.target or "here"),
        )
        return self.directory / "-".join(parts)

    def remembered(self, wanted: Wanted) -> Path | None:
        """What served this very wish before, if it is still whole."""
        with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
            about = json.loads(self._wish(wanted).read_bytes())
            path: Path = self.directory / os.path.basename(about["directory"])
            if any(path == found for found, _ in self.stored(wanted)):
                return path
        return None

    def remember(self, wanted: Wanted, path: Path) -> None:
        """Let ``remembered`` find ``path``; a cache that cannot be written to forgets."""
        wish = self._wish(wanted)
        with contextlib.suppress(OSError):
            wish.parent.mkdir(parents=True, exist_ok=True)
            partial = wish.with_name(f".{wish.name}.{os.getpid()}")
            partial.write_text(json.dumps({"wanted": asdict(wanted), "directory": path.name}) + "\n")
            partial.replace(wish)

    def stored(self, wanted: Wanted) -> Iterator[tuple[Path, StaticFacts]]:
        """The whole ones that are what is wanted, in no order that means anything."""
        for path in sorted(self.directory.glob("b*-s*")) if self.directory.is_dir() else ():
            if not self.whole(path):
                continue
            with contextlib.suppress(ModelError):
                static = read_model(path).static
                if static is not None and not differences(wanted, static):
                    yield path, static

    def whole(self, place: Path) -> bool:
        """Whether ``place`` holds a model with all its files."""
        return read_receipt(place) is not None

    def clear(self, place: Path) -> None:
        """Remove what is there but not whole."""
        if place.is_dir() and not self.whole(place):
            log.warning("%s is damaged: it is compiled again", place)
            shutil.rmtree(place, ignore_errors=True)

    def _wish(self, wanted: Wanted) -> Path:
        return self.directory / _WISHES / f"{_digest(json.dumps(asdict(wanted), sort_keys=True))}.json"


def with_weights(environ: Mapping[str, str], compiled: Path, weights: Path) -> Path:
    """A directory with links to the files of ``compiled`` and, as its checkpoint, to ``weights``.

    For compiled models whose weights lie in another repository: a directory that is whole loads without a
    network, and is checked before it does. Raises ``ModelError`` (rule ``model``) when it cannot be made.
    """
    links = {file.name: file.absolute() for file in sorted(compiled.iterdir()) if file.name != CHECKPOINT}
    links[CHECKPOINT] = weights.absolute()
    name = f"linked-{_digest(*(f'{name} {target}' for name, target in links.items()))}"
    path = hub_cache(environ) / _DIRECTORY / name
    with contextlib.suppress(OSError):
        if all((path / name).samefile(target) for name, target in links.items()):
            return path
    try:
        with filling(path) as directory:
            for name, target in links.items():
                (directory / name).symlink_to(target)
    except FileExistsError:
        if not all((path / name).exists() for name in links):
            raise ModelError(f"{path} is damaged: remove it", rule="model") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be made: {error}", rule="model") from error
    return path


def _digest(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
