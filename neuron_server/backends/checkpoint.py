"""Finding a model: a local directory, or one of the HuggingFace hub, fetched in two steps.

First what is needed to plan and to tokenize, then the weights, so that a plan that cannot work costs no
download. Weights are safetensors only; a pickle is never fetched, because loading one can run code.
"""

from __future__ import annotations

import errno
import fnmatch
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    XetDownloadError,
    XetError,
)

from neuron_server.backends.download import download_file, megabytes
from neuron_server.compiled_model import StaticFacts, lacks_weights, read_static
from neuron_server.errors import ModelError
from neuron_server.json_object import JsonObject
from neuron_server.weights import INDEX, SINGLE

logger = logging.getLogger(__name__)

#: Configuration, tokenizer, chat template. ``*.py`` is added only where the user trusts the model's code.
_TEXT_FILES = ("*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja", "tokenizer*")
#: A hub that is slow to say what it knows does not hold up the start.
_ASK_S = 10.0
#: What optimum-neuron stores beside the configuration: graphs, and weights in one of three places.
_COMPILED_FILES = ("model.pt", "model_*.pt", "compiled/*", "checkpoint/*", "model*.safetensors")
_NEVER = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.h5", "*.msgpack", "*.onnx")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model's directory and, if it is from the hub, the commit it is of.

    ``pipeline_tag``: what the hub says the model is for; ``None`` where it was not asked or does not say.
    """

    path: Path
    revision: str | None = None
    pipeline_tag: str | None = None


@dataclass(frozen=True, slots=True)
class _About:
    """What the hub tells of a commit: the pipeline tag, and the files' sizes in bytes."""

    pipeline_tag: str | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)


def find(
    model_id: str,
    revision: str | None = None,
    *,
    config_only: bool = False,
    trust_remote_code: bool = False,
    compiled: bool = False,
) -> Checkpoint:
    """The model ``model_id``, a local directory or a hub id; what the hub's cache holds is not fetched again.

    ``compiled``: of a model that was compiled for Neuron, fetch the graphs too, and the weights from where
    its configuration says that they are; else only weights that lie beside the configuration.

    Raises ``ModelError`` (``model_missing``: no such model, revision or ``config.json``; ``weights_missing``:
    no safetensors; ``download_failed``: anything else) that names the id, the revision and the cause.
    """
    if Path(model_id).is_dir():
        if compiled and not config_only:
            _fetch_checkpoint(Path(model_id))
        return Checkpoint(Path(model_id).resolve())
    path = _fetch_config(model_id, revision, trust_remote_code=trust_remote_code)
    commit = path.name
    if config_only:
        return Checkpoint(path, commit)
    about = _ask_about(model_id, commit)
    if compiled and _static(path) is not None:
        _fetch_files(model_id, commit, path, _compiled_names(about.sizes), about.sizes)
        _fetch_checkpoint(path)
    else:
        _fetch_files(model_id, commit, path, _weight_names(path), about.sizes)
    return Checkpoint(path, commit, about.pipeline_tag)


def _ask_about(model_id: str, commit: str) -> _About:
    """Nice to know, and not needed: a hub that does not answer keeps no cached model from being served."""
    try:
        info = HfApi().model_info(model_id, revision=commit, files_metadata=True, timeout=_ASK_S)
    except (OSError, ValueError) as error:
        logger.info("The hub was not asked about %s: %s", model_id, type(error).__name__)
        return _About()
    sizes = {file.rfilename: file.size for file in info.siblings or [] if file.size is not None}
    return _About(info.pipeline_tag, sizes)


def _fetch_config(model_id: str, revision: str | None, *, trust_remote_code: bool) -> Path:
    code = ("*.py",) if trust_remote_code else ()
    with _explained(model_id, revision):
        path = Path(
            snapshot_download(
                model_id,
                revision=revision,
                allow_patterns=[*_TEXT_FILES, *code],
                ignore_patterns=list(_NEVER),
            )
        )
    if not (path / "config.json").is_file():
        raise ModelError(f"{_name(model_id, revision)} holds no config.json", rule="model_missing")
    logger.info("Configuration of %s at commit %s: %s", model_id, path.name, path)
    return path


def _static(path: Path) -> StaticFacts | None:
    return (
        read_static(path, JsonObject.load(path / "config.json")) if (path / "config.json").is_file() else None
    )


def _compiled_names(sizes: Mapping[str, int]) -> list[str]:
    """Graphs and weights of a compiled model among the hub's files; none where the hub did not answer."""
    wanted = (n for n in sizes if any(fnmatch.fnmatchcase(n, pattern) for pattern in _COMPILED_FILES))
    return sorted(name for name in wanted if not name.endswith(".bin"))


def _fetch_checkpoint(path: Path) -> None:
    """The weights of a compiled model that has none of its own, from the model it was compiled of."""
    static = _static(path)
    if static is not None and static.checkpoint_id is not None and lacks_weights(path):
        logger.info("Its weights are those of %s", _name(static.checkpoint_id, static.checkpoint_revision))
        find(static.checkpoint_id, static.checkpoint_revision)


def _fetch_files(
    model_id: str, commit: str, directory: Path, wanted: Sequence[str], sizes: Mapping[str, int]
) -> None:
    """The lines are those of TGI's download, so that whoever watches for them finds them."""
    names = [name for name in wanted if not (directory / name).exists()]
    if not names:
        logger.info("Files are already present on the host. Skipping download.")
    started = time.monotonic()
    for done, name in enumerate(names):
        size = sizes.get(name)
        logger.info("Download file: %s%s", name, f" ({megabytes(size)})" if size is not None else "")
        began = time.monotonic()
        with _explained(model_id, commit, lambda: _what_else(model_id, commit)):
            path = download_file(model_id, name, commit, directory.parent.parent, size)
        now = time.monotonic()
        logger.info("Downloaded %s in %s.", path, timedelta(seconds=int(now - began)))
        rest = (now - started) / (done + 1) * (len(names) - done - 1)
        logger.info("Download: [%d/%d] -- ETA: %s", done + 1, len(names), timedelta(seconds=int(rest)))


def _weight_names(directory: Path) -> list[str]:
    """The files that ``transformers`` would load: those of the index, else the single one.

    Not every ``*.safetensors``: some repositories hold the same weights twice, in two layouts.
    """
    index = directory / INDEX
    if not index.is_file():
        return [SINGLE]
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index} cannot be read: {error!r}", rule="weights_corrupt") from error
    wrong = [name for name in names if not isinstance(name, str) or not name.endswith(".safetensors")]
    if wrong:
        raise ModelError(f"{index} names {wrong[0]!r}, which is no safetensors file", rule="weights_corrupt")
    return sorted(names)


def _what_else(model_id: str, commit: str) -> str:
    """What the repository offers instead of safetensors, for the message."""
    try:
        info = HfApi().model_info(model_id, revision=commit)
    except (OSError, HfHubHTTPError):
        return ""
    names = [file.rfilename for file in info.siblings or []]
    pickle = next((name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))), None)
    if pickle is None:
        return "; it holds no weights"
    return (
        f"; it holds {pickle}, but a pickle can run code and is not loaded: convert the model to safetensors"
    )


@contextmanager
def _explained(
    model_id: str, revision: str | None, instead: Callable[[], str] = lambda: ""
) -> Iterator[None]:
    """Turn what the hub client raises into a ``ModelError`` that names the model and the cause."""
    name = _name(model_id, revision)
    try:
        yield
    except GatedRepoError as error:
        raise ModelError(
            f"{name} is gated: accept its terms on the hub and set HF_TOKEN to a token of that account",
            rule="download_failed",
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"{name} is not on the hub, or is private and HF_TOKEN does not open it", rule="model_missing"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{name} does not exist: no such revision", rule="model_missing") from error
    except HFValidationError as error:
        raise ModelError(
            f"{name} is neither a directory nor a hub id (name or organisation/name)", rule="model_missing"
        ) from error
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"{name} is not in the local cache, and {_why(error)}", rule="download_failed"
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status == 404:
            raise ModelError(f"{name} has no safetensors{instead()}", rule="weights_missing") from error
        raise ModelError(
            f"{name}: the hub answered {status or error}{_REMEDIES.get(status, '')}", rule="download_failed"
        ) from error
    except (OSError, RuntimeError, XetError, XetDownloadError) as error:  # the compiled clients' errors too
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        hint = "; --huggingface-hub-cache may name a larger disk" if full else "; starting again resumes it"
        raise ModelError(f"{name} could not be downloaded: {error}{hint}", rule="download_failed") from error


#: By HTTP status, behind "the hub answered".
_REMEDIES: Mapping[int | None, str] = {
    401: ": it does not accept HF_TOKEN; set it to a valid token, or unset it",
    403: ": HF_TOKEN may not read this model; give the token that right, or take another one",
    429: ": too many requests from here; wait a while, or set HF_TOKEN",
}


def _name(model_id: str, revision: str | None) -> str:
    return f"model {model_id!r}" + (f" at revision {revision!r}" if revision else "")


def _why(error: LocalEntryNotFoundError) -> str:
    cause = error.__cause__
    if cause is None or isinstance(cause, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE forbids to fetch it: unset it, or fill the cache before"
    if isinstance(cause, HfHubHTTPError) and cause.response is not None:
        status = cause.response.status_code
        return f"the hub answered {status}{_REMEDIES.get(status, '')}"
    return f"the hub cannot be reached ({type(cause).__name__}): check the network, a proxy, and HF_ENDPOINT"
