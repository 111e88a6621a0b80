"""The command lines of a configuration: how to compile the model for it, and how to serve it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import PurePath

from launcher.flags import BY_NAME
from launcher.planner.candidates import Candidate, Question
from launcher.planner.memory import export_memory

_PERMITS = BY_NAME["max_concurrent_requests"].default


@dataclass(frozen=True, slots=True)
class Recipe:
    """``export`` is ``None`` for a model that is compiled; ``flags`` are those of ``serve``.

    ``export_host_bytes``: what the export holds in host memory at least, beside the compiler; ``None`` where
    it needs no weights.
    """

    export: str | None
    serve: str
    flags: str
    export_host_bytes: int | None = None


def recipe(candidate: Candidate, question: Question, dtype: str) -> Recipe:
    """Lines to paste into a shell."""
    name, shape = question.model.name, candidate.shape
    revision = () if question.model.revision is None else ("--revision", question.model.revision)
    flags = [
        *("--num-shard", candidate.tensor_parallel, "--data-parallel-size", candidate.replicas),
        *("--max-batch-size", shape.batch_size, "--max-total-tokens", shape.max_length),
    ]
    width, prompt = question.wish.prefill_width, question.workload.prompt_tokens
    if question.model.facts.static is None and width is not None:
        flags += ["--max-input-tokens", width]
    elif prompt > shape.max_length // 2:
        flags += ["--max-input-tokens", prompt]  # the launcher's default is half a slot
    slots = candidate.replicas * shape.batch_size
    if isinstance(_PERMITS, int) and slots > _PERMITS:
        flags += ["--max-concurrent-requests", slots]
    words = [str(flag) for flag in flags]
    if question.model.facts.static is not None:
        serve = _line("text-generation-launcher", "--model-id", name, *revision, *words)
        return Recipe(None, serve, _line(*words))
    form = f"tp{candidate.tensor_parallel}-b{shape.batch_size}-s{shape.max_length}"
    output = f"./{PurePath(name).name or 'model'}-{form}"
    export = [
        *("text-generation-server", "export", name, *revision, "--output", output),
        *("--batch-size", shape.batch_size, "--sequence-length", shape.max_length),
        *(() if width is None else ("--max-context-length", width)),
        *("--tensor-parallel-size", candidate.tensor_parallel, "--dtype", dtype, "--instance-type", "inf2"),
    ]
    serve = _line("text-generation-launcher", "--model-id", output, *words)
    held = question.model.stores_weights or question.support.generation == "legacy"
    weights = export_memory(candidate.memory.weights * candidate.tensor_parallel) if held else None
    return Recipe(_line(*map(str, export)), serve, _line(*words), weights)


def _line(*words: str) -> str:
    return shlex.join(words)
