"""The program that compiles models and asks the compile cache, as the launcher runs it."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.child import Child, Forward, ended_before, stop
from launcher.log_lines import DOWNLOAD
from launcher.program import generator_python, program
from launcher.stopping import Stopping
from neuron_server.compiled_model import static_of
from neuron_server.errors import ModelError
from neuron_server.models import StaticFacts

log = logging.getLogger("text_generation_launcher")

MODULE = "neuron_server.export_model"
_GRACE_S = 30.0  # a compiler is no program that stops at once


@dataclass(frozen=True, slots=True)
class Runner:
    """How programs are run for one launch: environment, where their lines go, and what stops them."""

    env: Mapping[str, str]
    forward: Forward
    stopping: Stopping


@dataclass(frozen=True, slots=True)
class Source:
    """A plain model on disk; ``model_id`` and ``revision`` are ``None`` for one that is nowhere else."""

    path: Path
    model_id: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False

    @property
    def name(self) -> str:
        """What a user calls it."""
        return self.model_id or str(self.path)

    def argv(self) -> list[str]:
        """The arguments that every verb takes."""
        argv = [f"--path={self.path}"]
        argv += [f"--model-id={self.model_id}"] if self.model_id else []
        argv += [f"--revision={self.revision}"] if self.revision else []
        return [*argv, *(["--trust-remote-code"] if self.trust_remote_code else [])]


async def cached(runner: Runner, source: Source) -> tuple[StaticFacts, ...] | None:
    """What the compile cache has of the model; ``None`` when asked to stop meanwhile.

    An entry that cannot be read is left out, with a line in the log. Raises ``ModelError``.
    """
    result = await _run(runner, ["entries", *source.argv()], "asking the compile cache", "no_cached_config")
    if result is None:
        return None
    found: list[StaticFacts] = []
    entries = result.get("entries")
    for number, entry in enumerate(entries if isinstance(entries, list) else []):
        try:
            found.append(static_of(entry, f"entry {number} of the compile cache"))
        except (ModelError, TypeError) as error:
            log.warning("%s; it is left out", error)
    log.info("%s has %d configuration(s) of %s", result.get("repository"), len(found), source.name)
    return tuple(found)


async def export(
    runner: Runner,
    source: Source,
    static: StaticFacts,
    output: Path,
    *,
    instance_type: str | None = None,
    weights: Path | None = None,
    sampling: bool | None = None,
) -> Path | None:
    """Compile ``source`` as ``static`` says into ``output``; its path, or ``None`` when asked to stop.

    ``weights``: a directory to link as its checkpoint, where otherwise a local model's are copied.
    ``sampling`` overrules what ``static`` says. Raises ``ModelError``.
    """
    argv = ["export", *source.argv(), f"--output={output}", f"--batch-size={static.batch_size}"]
    argv += [f"--sequence-length={static.sequence_length}", f"--dtype={static.dtype or 'float32'}"]
    argv += [f"--tensor-parallel-size={static.tensor_parallel or 1}"]
    if static.max_context_length < static.sequence_length:
        argv.append(f"--max-context-length={static.max_context_length}")
    if sampling is not None:
        argv.append("--on-device-sampling" if sampling else "--no-on-device-sampling")
    argv += [f"--instance-type={instance_type}"] if instance_type else []
    argv += [f"--weights={weights}"] if weights else []
    result = await _run(runner, argv, "compiling", "export_failed")
    return None if result is None else Path(str(result.get("path")))


async def _run(
    runner: Runner, arguments: Sequence[str], doing: str, rule: str
) -> Mapping[str, Any] | None:  # Any: JSON
    """The object on the last line; raises ``ModelError`` with the rule the program gives, else ``rule``."""
    argv = [*program(MODULE, python=generator_python(runner.env)), *arguments, "--json-output"]
    results: list[Mapping[str, Any]] = []  # Any: JSON

    def listen(name: str, line: bytes) -> None:
        result = _result(line)
        if result is None:
            runner.forward(name, line)
        else:
            results.append(result)

    try:
        child = await Child.start(DOWNLOAD, argv, runner.env, listen)
    except OSError as error:
        raise ModelError(f"{argv[0]} cannot be run: {error}", rule=rule) from error
    if not await ended_before(child, runner.stopping.requested):
        log.info("Terminating: %s", doing)
        await stop(child, _GRACE_S, runner.stopping.hurried)
        return None
    last = results[-1] if results else {}
    if "error" in last:
        raise ModelError(str(last["error"]), rule=str(last.get("rule", rule)))
    if child.ended.result() != 0 or not last:
        words = f"; its last lines:\n{child.last_words}" if child.last_words else ""
        raise ModelError(f"{doing} failed: the program {child.how_it_ended()}{words}", rule=rule)
    return last


def _result(line: bytes) -> Mapping[str, Any] | None:  # Any: JSON
    """One of the program's three kinds of last line; ``None`` for a line of its log."""
    if not line.startswith(b"{"):
        return None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    known = isinstance(value, dict) and any(key in value for key in ("entries", "path", "error"))
    return value if known and "message" not in value else None
