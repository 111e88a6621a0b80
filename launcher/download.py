"""Fetching a model from the hub, in a program of its own: the launcher imports nothing heavy."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.child import Child, Forward, ended_before, stop
from launcher.exit_codes import LaunchError
from launcher.log_lines import DOWNLOAD, DOWNLOADING
from launcher.parameters import Parameters
from launcher.program import program
from launcher.stopping import Stopping
from neuron_server.errors import ModelError

log = logging.getLogger("text_generation_launcher")

PROGRAM = program("neuron_server.download_weights")
_GRACE_S = 10.0
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True, slots=True)
class Fetched:
    """Where the model lies now, the commit it is of, and what the hub says it is for, if it says so."""

    path: str
    revision: str | None
    pipeline_tag: str | None = None


def is_local(model_id: str) -> bool:
    """Whether ``model_id`` is a directory; False for a hub id.

    Raises ``ModelError`` (rule ``model_missing``) when it can be neither, or looks like a path to nothing.
    """
    path = Path(model_id)
    try:
        if path.is_dir():
            return True
        exists = path.exists()
    except OSError as error:  # closed to us, or longer than any path
        shown = model_id if len(model_id) <= 200 else f"{model_id[:200]}..."
        raise ModelError(
            f"--model-id is {shown}, which cannot be looked into: {error.strerror}", rule="model_missing"
        ) from error
    if exists:
        raise ModelError(f"--model-id is {model_id}, which is a file, not a directory", rule="model_missing")
    if not _HUB_ID.fullmatch(model_id) or ".." in model_id:
        raise ModelError(
            f"--model-id is {model_id}, and there is no such directory (nor is it a hub id, which looks like "
            "name or organisation/name)",
            rule="model_missing",
        )
    return False


async def fetch(
    model_id: str,
    parameters: Parameters,
    env: Mapping[str, str],
    forward: Forward,
    stopping: Stopping,
    *,
    config_only: bool,
    compiled: bool = False,
    program: Sequence[str] = PROGRAM,
) -> Fetched | None:
    """Download ``model_id``, or only what is needed to plan; ``None`` when asked to stop meanwhile.

    ``compiled``: what was compiled for Neuron too, where there is such.
    Raises ``LaunchError`` (rule ``download_failed``).
    """
    argv = [*program, model_id, "--json-output", *(["--config-only"] if config_only else [])]
    if compiled:
        argv.append("--compiled")
    if revision := parameters.text("revision"):
        argv += ["--revision", revision]
    if parameters.switch("trust_remote_code"):
        argv.append("--trust-remote-code")
    results: list[Fetched] = []

    def listen(name: str, line: bytes) -> None:
        result = _result(line)
        if result is None:
            forward(name, line)
        else:
            results.append(result)

    extra = DOWNLOADING.extra
    what = f"{model_id} (configuration)" if config_only else model_id
    log.info("Starting check and download process for %s", what, extra=extra)
    child = await Child.start(DOWNLOAD, argv, env, listen)
    if not await ended_before(child, stopping.requested):
        log.info("Terminating download", extra=extra)
        await stop(child, _GRACE_S, stopping.hurried)
        log.info("download terminated", extra=extra)
        return None
    if child.ended.result() != 0 or not results:
        how = child.how_it_ended()
        log.error("Download encountered an error: it %s\n%s", how, child.last_words, extra=extra)
        raise LaunchError(f"{model_id} could not be downloaded", rule="download_failed", kind="DownloadError")
    if not config_only:
        log.info("Successfully downloaded weights for %s", model_id, extra=extra)
    return results[-1]


def _result(line: bytes) -> Fetched | None:
    """The program's last line, an object with ``path``, ``revision`` and ``pipeline_tag``; else ``None``."""
    if not line.startswith(b"{"):
        return None
    try:
        value = json.loads(line)
    except ValueError:
        return None
    if not isinstance(value, dict) or not isinstance(value.get("path"), str):
        return None
    revision, tag = (
        v if isinstance(v := value.get(key), str) else None for key in ("revision", "pipeline_tag")
    )
    return Fetched(value["path"], revision, tag)
