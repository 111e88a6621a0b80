"""Compile a model for Neuron, or ask the compile cache what it has of it: a program of its own.

It runs in the environment of the generator, where optimum-neuron is, and fetches no model: ``--path`` is one
that is here. Its last line on stdout is an object: ``{"path": ...}``, ``{"entries": [...], ...}``, or
``{"error": ..., "rule": ...}`` with status 1.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from neuron_server import logs
from neuron_server.compiled_model import CHECKPOINT
from neuron_server.errors import ModelError
from neuron_server.finished_directory import RECEIPT, filling, write_receipt
from neuron_server.lifeline import die_with_parent

logger = logging.getLogger("neuron_server.export_model")

#: Beside the configuration and the graphs: what tokenizes, and what says how to generate.
_COPIED = ("*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja", "tokenizer*", "LICENSE*", "*.md")
_NOT_COPIED = ("config.json", "neuron_config.json", RECEIPT)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, do it, report; the exit status."""
    args = _parser().parse_args(argv)
    logs.setup(json_output=args.json_output)
    signal.signal(signal.SIGTERM, _interrupt)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        die_with_parent()  # a launcher that was killed must not leave a compilation of half an hour behind
        result = _entries(args) if args.verb == "entries" else _export(args)
    except ModelError as error:
        sys.stderr.write(f"Error: {error}\n")
        sys.stderr.flush()
        _report({"error": str(error), "rule": error.rule})
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted: nothing is left of it\n")
        return 128 + signal.SIGINT
    _report(result)
    return 0


def _interrupt(number: int, frame: object) -> NoReturn:  # noqa: ARG001 as signal.signal wants it
    raise KeyboardInterrupt


def _report(result: Mapping[str, Any]) -> None:  # Any: JSON
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()


def _entries(args: argparse.Namespace) -> dict[str, Any]:  # Any: JSON
    from neuron_server.backends import compile_cache

    entries = compile_cache.cached_entries(args.model_id or str(args.path), args.path)
    return {"entries": entries, "repository": compile_cache.repository()}


def _export(args: argparse.Namespace) -> dict[str, Any]:  # Any: JSON
    from neuron_server.backends import export

    request = export.ExportRequest(
        path=args.path.resolve(),
        model_id=args.model_id,
        revision=args.revision,
        batch_size=args.batch_size,
        sequence_length=args.sequence_length,
        tensor_parallel=args.tensor_parallel_size,
        dtype=args.dtype,
        on_device_sampling=args.on_device_sampling,
        max_context_length=args.max_context_length,
        instance_type=args.instance_type,
        trust_remote_code=args.trust_remote_code,
        store_weights=args.weights is None,
    )
    output, weights = args.output.absolute(), args.weights and args.weights.resolve()
    export.set_target(args.instance_type, os.environ)
    here = os.getcwd()
    try:
        with filling(output) as directory:
            # Below the output, so that what a killed process leaves goes with it.
            with tempfile.TemporaryDirectory(prefix=".work-", dir=directory) as work:
                os.chdir(work)  # the compiler leaves its logs where it runs
                try:
                    export.export(request, directory, Path(work))
                finally:
                    os.chdir(here)
            code = ("*.py",) if args.trust_remote_code else ()
            copied = _copy_text_files(request.path, directory, (*_COPIED, *code))
            logger.info("Copied beside it: %s", ", ".join(copied) or "nothing; there is no tokenizer")
            if weights is not None and not (directory / CHECKPOINT).exists():
                (directory / CHECKPOINT).symlink_to(weights, target_is_directory=True)
            write_receipt(directory, {"model_id": args.model_id, "revision": args.revision})
    except OSError as error:
        raise ModelError(f"--output {output} cannot be written: {error}", rule="export_failed") from error
    logger.info("Compiled model: %s", output)
    return {"path": str(output)}


def _copy_text_files(source: Path, target: Path, patterns: Sequence[str]) -> list[str]:
    """Copy what tokenizes, byte for byte, where the export has not written it itself."""
    found = {f for pattern in patterns for f in source.glob(pattern) if f.is_file()}
    copied = []
    for file in sorted(found):
        other = file.name in _NOT_COPIED or file.name.endswith(".index.json")
        if not other and not (target / file.name).exists():
            shutil.copyfile(file, target / file.name)
            copied.append(file.name)
    return copied


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m neuron_server.export_model", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    entries = verbs.add_parser("entries", help="what the compile cache has of the model")
    compiling = verbs.add_parser("export", help="compile the model")
    for verb in (entries, compiling):
        verb.add_argument("--path", type=Path, required=True, help="the model's directory")
        verb.add_argument("--model-id", help="its hub id, if it has one")
        verb.add_argument("--revision", help="the commit of --path")
        verb.add_argument("--trust-remote-code", action="store_true")
        verb.add_argument("--json-output", action="store_true", help="log as JSON lines")
    compiling.add_argument("--output", type=Path, required=True)
    compiling.add_argument("--weights", type=Path, help="directory to link as its checkpoint")
    for name in ("batch-size", "sequence-length", "tensor-parallel-size"):
        compiling.add_argument(f"--{name}", type=int, required=True)
    compiling.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), required=True)
    compiling.add_argument("--on-device-sampling", action=argparse.BooleanOptionalAction)
    compiling.add_argument("--max-context-length", type=int)
    compiling.add_argument("--instance-type", choices=("inf2", "trn1", "trn1n", "trn2"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
