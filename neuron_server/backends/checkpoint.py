"""Finding a model: a local directory, or one of the HuggingFace hub, fetched in two steps.

First what is needed to plan and to tokenize, then the weights, so that a plan that cannot work costs no
download. Weights are safetensors only; a pickle is never fetched, because loading one can run code.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from neuron_server.errors import ModelError
from neuron_server.weights import INDEX, SINGLE

logger = logging.getLogger(__name__)

#: Configuration, tokenizer, chat template. ``*.py`` is added only where the user trusts the model's code.
_TEXT_FILES = ("*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja", "tokenizer*")
_NEVER = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.h5", "*.msgpack", "*.onnx")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model's directory and, if it is from the hub, the commit it is of."""

    path: Path
    revision: str | None = None


def find(
    model_id: str, revision: str | None = None, *, config_only: bool = False, trust_remote_code: bool = False
) -> Checkpoint:
    """The model ``model_id``, a local directory or a hub id; what the hub's cache holds is not fetched again.

    Raises ``ModelError`` (``model_missing``: no such model, revision or ``config.json``; ``weights_missing``:
    no safetensors; ``download_failed``: anything else) that names the id, the revision and the cause.
    """
    if Path(model_id).is_dir():
        return Checkpoint(Path(model_id).resolve())
    path = _fetch_config(model_id, revision, trust_remote_code=trust_remote_code)
    commit = path.name
    if not config_only:
        _fetch_weights(model_id, commit, path)
    return Checkpoint(path, commit)


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


def _fetch_weights(model_id: str, commit: str, directory: Path) -> None:
    names = _weight_names(directory)
    started = time.monotonic()
    for done, name in enumerate(names):
        logger.info("Download file: %s (%d of %d)", name, done + 1, len(names))
        with _explained(model_id, commit, lambda: _what_else(model_id, commit)):
            path = hf_hub_download(model_id, name, revision=commit)
        elapsed = time.monotonic() - started
        rest = elapsed / (done + 1) * (len(names) - done - 1)
        size = Path(path).stat().st_size / 1e6
        logger.info("Downloaded %s (%.1f MB); %.0f s so far, about %.0f s left", name, size, elapsed, rest)


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
        hint = ": it does not accept HF_TOKEN; set it to a valid token, or unset it" if status == 401 else ""
        raise ModelError(
            f"{name}: the hub answered {status or error}{hint}", rule="download_failed"
        ) from error
    except OSError as error:
        raise ModelError(f"{name} could not be downloaded: {error}", rule="download_failed") from error


def _name(model_id: str, revision: str | None) -> str:
    return f"model {model_id!r}" + (f" at revision {revision!r}" if revision else "")


def _why(error: LocalEntryNotFoundError) -> str:
    cause = error.__cause__
    if cause is None or isinstance(cause, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE forbids to fetch it"
    if isinstance(cause, HfHubHTTPError) and cause.response is not None:
        return f"the hub answered {cause.response.status_code}"
    return f"the hub cannot be reached ({type(cause).__name__})"
