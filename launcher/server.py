"""``text-generation-server``: ``download-weights`` and ``export``.

The former and its flags are those of TGI's program of that name: fill the cache before a machine is offline,
or into an image. ``export`` compiles for Neuron (``launcher/export_command.py``). TGI's other verb,
``serve``, is not offered: it would start a shard for TGI's own router, which this project's generator does
not speak to.
"""

from __future__ import annotations

import argparse
import os
import sys
from argparse import BooleanOptionalAction
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launcher import download_export, export_command
from launcher.download import PROGRAM, is_local
from launcher.environment import hub_environment
from launcher.exit_codes import LaunchError, exit_code
from launcher.export_command import ExportOptions
from launcher.parameters import Parameters
from neuron_server.errors import ConfigError, ModelError

_SERVE = """text-generation-server serve is not offered: TGI's router talks to its shards in TGI's own gRPC
protocol, and the generator of this project has another one. text-generation-launcher starts generator and
router together; python -m neuron_server.serve_generator --help tells how to start a generator by hand.
"""


@dataclass(frozen=True, slots=True)
class Command:
    """A command line and its environment, and what to tell before."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    warnings: tuple[str, ...]


def command(arguments: Sequence[str], environ: Mapping[str, str]) -> Command:
    """The download that was asked for; ends with a usage text when that cannot be read.

    What was compiled for Neuron is fetched with its graphs, and with the weights of the model that it was
    compiled of where it has none.

    Raises ``ModelError`` (rule ``model_missing``) for what is neither a directory nor a hub id.
    """
    args = _parser().parse_args(list(arguments))
    warnings = [
        f"{flag} has no effect: {why}"
        for flag, given, why in (
            ("--extension", args.extension != ".safetensors", "weights are safetensors only"),
            ("--auto-convert", args.auto_convert, "a pickle can run code, so none is fetched or converted"),
            ("--merge-lora", args.merge_lora, "adapters are not merged here"),
        )
        if given
    ]
    if is_local(args.model_id) and args.revision:
        warnings.append("--revision has no effect on a local directory")
    argv = [*PROGRAM, args.model_id, "--compiled"]
    argv += [f"--revision={args.revision}"] if args.revision else []
    argv += [flag for flag, on in (("--trust-remote-code", args.trust_remote_code),
                                   ("--json-output", args.json_output)) if on]  # fmt: skip
    env = {**hub_environment(environ), "LOG_LEVEL": args.logger_level}
    return Command(tuple(argv), env, tuple(warnings))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="text-generation-server", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    download = verbs.add_parser("download-weights", help="fetch a model into the cache of the hub client")
    download.add_argument("model_id", help="hub id, or a local directory (then nothing is fetched)")
    download.add_argument("--revision", help="branch, tag or commit; default main")
    download.add_argument("--logger-level", default="INFO", help="default INFO")
    download.add_argument("--json-output", action=BooleanOptionalAction, help="log one JSON object per line")
    download.add_argument(
        "--trust-remote-code", action=BooleanOptionalAction, help="fetch the model's own code too"
    )
    download.add_argument(
        "--export", action="store_true",
        help="on a machine with Neuron devices: compile a plain model too, as the compile cache has it",
    )  # fmt: skip
    for name, what in (
        ("max-batch-size", "slots"), ("max-total-tokens", "tokens of a slot"), ("num-shard", "NeuronCores"),
    ):  # fmt: skip
        download.add_argument(f"--{name}", type=int, help=f"with --export: {what}, as for the launcher")
    download.add_argument("--dtype", choices=export_command.DTYPES, help="with --export: as for the launcher")
    download.add_argument("--extension", default=".safetensors", help="accepted without effect")
    download.add_argument("--auto-convert", action=BooleanOptionalAction, help="accepted without effect")
    download.add_argument("--merge-lora", action=BooleanOptionalAction, help="accepted without effect")
    exporting = verbs.add_parser("export", help="compile a model for Neuron into a directory")
    export_command.add_arguments(exporting)
    return parser


def parse_export(arguments: Sequence[str]) -> ExportOptions:
    """The options of ``export``; ends with a usage text when they cannot be read."""
    return export_command.parse_options(_parser().parse_args(["export", *arguments]))


def _download_and_export(args: argparse.Namespace) -> int:
    names = ("revision", "max_batch_size", "max_total_tokens", "num_shard", "dtype")
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    parameters = Parameters.of(**given, trust_remote_code=bool(args.trust_remote_code))
    return download_export.run(args.model_id, parameters, os.environ, json_output=bool(args.json_output))


def main() -> None:
    """The console entry point: become the download, or export."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["serve"]:
        sys.stderr.write(_SERVE)
        sys.exit(2)
    try:
        if arguments[:1] == ["export"]:
            sys.exit(export_command.run(parse_export(arguments[1:]), os.environ))
        if "--export" in arguments:
            sys.exit(_download_and_export(_parser().parse_args(arguments)))
        made = command(arguments, os.environ)
    except (ConfigError, ModelError, LaunchError) as error:
        sys.stderr.write(f"Error: {error}\n")
        sys.exit(exit_code(error.rule))
    for warning in made.warnings:
        sys.stderr.write(f"{warning}\n")
    sys.stderr.flush()
    os.execve(made.argv[0], made.argv, made.env)  # noqa: S606 our own program


if __name__ == "__main__":
    main()
