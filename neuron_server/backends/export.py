"""Compiling a model for Neuron with optimum-neuron: three generations of it, one request.

Compiling needs no device where optimum-neuron is 0.2 or later, and a device before. It must happen in a
process of its own: the number of cores that a process has is fixed by the first model.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import threading
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from neuron_server.compiled_model import TARGETS
from neuron_server.errors import ModelError

logger = logging.getLogger(__name__)

#: Seconds between two lines while the compiler is at work.
HEARTBEAT_S = 30.0
TASK, MODE = "text-generation", "inference"
#: Our names of types -> those that optimum-neuron up to 0.3 takes.
_CAST = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_LAST_WORDS = 15


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """What to compile. ``path``: the model's directory; of a hub model its configuration is enough (before
    optimum-neuron 0.2: the whole model).

    ``model_id`` and ``revision``: of the hub, ``None`` for a directory that is nowhere else; such a model's
    weights are stored beside the graphs, unless ``store_weights`` is false. ``None`` among the others means
    optimum-neuron's own default. ``instance_type``: ``inf2``; needed where no device is.
    """

    path: Path
    model_id: str | None
    revision: str | None
    batch_size: int
    sequence_length: int
    tensor_parallel: int
    dtype: str
    on_device_sampling: bool | None = None
    max_context_length: int | None = None
    instance_type: str | None = None
    trust_remote_code: bool = False
    store_weights: bool = True


class _Compiled(Protocol):
    """What every generation's export returns, as far as we use it."""

    config: Any  # Any: a PretrainedConfig of whichever transformers is installed

    def save_pretrained(self, save_directory: str) -> None: ...


def set_target(instance_type: str | None, environ: MutableMapping[str, str]) -> None:
    """Tell the compiler its target; must happen before anything of optimum-neuron is imported."""
    if instance_type is not None:
        environ["NEURON_PLATFORM_TARGET_OVERRIDE"] = TARGETS[instance_type]


def export(request: ExportRequest, output: Path, work: Path) -> None:
    """Compile into the directory ``output``; ``work`` is scratch.

    Raises ``ModelError`` with rule ``export_failed`` (the compiler's last lines in it) or
    ``backend_unavailable``; whatever optimum-neuron raises is its cause.
    """
    # Its default is one directory of /tmp for everybody.
    os.environ.setdefault("BASE_COMPILE_WORK_DIR", os.path.join(work, "nxd", ""))
    modern = _generation()
    logger.info("Compiling %s: minutes to an hour, or seconds where the graphs are cached", _name(request))
    try:
        with heartbeat("Compiling"):
            compiled = _nxd(request) if modern else _legacy(request)
        logger.info("Saving")
        with heartbeat("Saving"):
            compiled.save_pretrained(str(output))
    except ModelError:
        raise
    except (Exception, SystemExit) as error:
        logger.debug("export failed", exc_info=True)
        words = compiler_words(work)
        tail = f"; the compiler's last lines:\n{words}" if words else ""
        raise ModelError(
            f"{_name(request)} could not be compiled: {type(error).__name__}: {error}{tail}",
            rule="export_failed",
        ) from error


def _generation() -> bool:
    """Whether optimum-neuron is of the NxD generation (0.2 and later)."""
    try:
        importlib.import_module("optimum.neuron")
    except ModuleNotFoundError as error:
        raise ModelError(
            f"optimum-neuron, or something that it needs, is not installed here ({error}): compile in the "
            "neuron image, which needs no device for it",
            rule="backend_unavailable",
        ) from error
    try:
        importlib.import_module("optimum.neuron.models.auto_model")
    except ModuleNotFoundError:
        return False
    return True


def _nxd(request: ExportRequest) -> _Compiled:
    import torch
    from transformers import AutoConfig

    registry = importlib.import_module("optimum.neuron.models.auto_model")
    config = AutoConfig.from_pretrained(
        str(request.path), trust_remote_code=request.trust_remote_code
    ).get_text_config()
    kind = registry.get_neuron_model_class(config.model_type, TASK, MODE)
    config.torch_dtype = getattr(torch, request.dtype)
    options: dict[str, Any] = {  # Any: arguments of several types
        "config": config,
        "batch_size": request.batch_size,
        "sequence_length": request.sequence_length,
        "tensor_parallel_size": request.tensor_parallel,
    }
    if "instance_type" in inspect.signature(kind.get_neuron_config).parameters:
        options["instance_type"] = request.instance_type
    else:  # 0.2 and 0.3
        options["auto_cast_type"] = _CAST[request.dtype]
    # The directory, not the id: with an id it would ask the hub for the revision that we know already.
    neuron_config = kind.get_neuron_config(str(request.path), **options)
    _apply(request, neuron_config)
    source = request.model_id or str(request.path)
    # A directory here makes it store a copy of the weights.
    config._name_or_path = source if request.store_weights else ""
    compiled = kind.export(source, config=config, neuron_config=neuron_config, revision=request.revision,
                           load_weights=False)  # fmt: skip
    return cast("_Compiled", compiled)


def _apply(request: ExportRequest, neuron_config: Any) -> None:  # Any: of optimum-neuron
    """What get_neuron_config has no argument for."""
    neuron_config.checkpoint_id = request.model_id
    neuron_config.checkpoint_revision = request.revision
    if request.max_context_length is not None:
        neuron_config.max_context_length = request.max_context_length
    wanted, default = request.on_device_sampling, neuron_config.on_device_sampling
    if wanted is not None and wanted != default:
        if wanted:
            logger.warning(
                "optimum-neuron does not sample on the device for this model and shape unless told to, "
                "because some of them answered wrongly so: compare its answers before you serve it"
            )
        neuron_config.on_device_sampling = wanted


def _legacy(request: ExportRequest) -> _Compiled:
    for name, value in (
        ("--max-context-length", request.max_context_length),
        ("--on-device-sampling", request.on_device_sampling or None),
    ):
        if value is not None:
            raise ModelError(
                f"{name} is {value}, but the installed optimum-neuron, which is before 0.2, has no such "
                "thing: leave it out",
                rule="export_failed",
            )
    model_class = importlib.import_module("optimum.neuron").NeuronModelForCausalLM
    compiled = model_class.from_pretrained(
        str(request.path),
        export=True,
        task=TASK,
        batch_size=request.batch_size,
        sequence_length=request.sequence_length,
        num_cores=request.tensor_parallel,
        auto_cast_type=_CAST[request.dtype],
        trust_remote_code=request.trust_remote_code,
    )
    if request.model_id is not None or not request.store_weights:
        # Without an id it stores a copy of the weights.
        compiled.config.neuron.update(checkpoint_id=_name(request), checkpoint_revision=request.revision)
    return cast("_Compiled", compiled)


# -- what a user sees meanwhile ------------------------------------------------------------------------------


@contextmanager
def heartbeat(what: str, interval_s: float | None = None) -> Iterator[None]:
    """Say every ``interval_s`` how long it has taken, in a thread of its own, and at the end."""
    done, began = threading.Event(), time.monotonic()
    every = HEARTBEAT_S if interval_s is None else interval_s

    def run() -> None:
        while not done.wait(every):
            logger.info("%s: %.0f s", what, time.monotonic() - began)

    thread = threading.Thread(target=run, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
        logger.info("%s took %.0f s", what, time.monotonic() - began)
    finally:
        done.set()
        thread.join()


def compiler_words(work: Path) -> str:
    """The last lines of the newest log that neuronx-cc left below ``work``; empty when it left none."""
    logs = sorted(work.rglob("log-neuron-cc.txt"), key=lambda path: path.stat().st_mtime)
    if not logs:
        return ""
    with logs[-1].open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 64 * 1024))
        lines = file.read().decode(errors="replace").splitlines()
    return "\n".join("    " + line[:500] for line in lines[-_LAST_WORDS:])


def _name(request: ExportRequest) -> str:
    return request.model_id or str(request.path)
