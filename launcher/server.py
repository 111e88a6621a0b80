"""``text-generation-server download-weights``: fill the cache before a machine is offline, or into an image.

The verb and its flags are those of TGI's program of that name. Its other verb, ``serve``, is not offered:
it would start a shard for TGI's own router, which this project's generator does not speak to.
"""

from __future__ import annotations

import argparse
import os
import sys
from argparse import BooleanOptionalAction
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launcher.download import PROGRAM, is_local
from launcher.environment import hub_environment
from launcher.exit_codes import exit_code
from neuron_server.errors import ModelError

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
    argv = [*PROGRAM, args.model_id]
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
    download.add_argument("--extension", default=".safetensors", help="accepted without effect")
    download.add_argument("--auto-convert", action=BooleanOptionalAction, help="accepted without effect")
    download.add_argument("--merge-lora", action=BooleanOptionalAction, help="accepted without effect")
    return parser


def main() -> None:
    """The console entry point: become the download."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["serve"]:
        sys.stderr.write(_SERVE)
        sys.exit(2)
    try:
        made = command(arguments, os.environ)
    except ModelError as error:
        sys.stderr.write(f"Error: {error}\n")
        sys.exit(exit_code(error.rule))
    for warning in made.warnings:
        sys.stderr.write(f"{warning}\n")
    sys.stderr.flush()
    os.execve(made.argv[0], made.argv, made.env)  # noqa: S606 our own program


if __name__ == "__main__":
    main()
