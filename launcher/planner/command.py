"""``text-generation-launcher plan``: the flags, the model, the report, the exit status."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Annotated, Optional  # typer reads Optional at run time, on 3.10 too

import typer

from launcher.download import fetch, is_local
from launcher.environment import child_environment
from launcher.exit_codes import exit_code
from launcher.parameters import Parameters
from launcher.planner.instance_plan import plan_instance
from launcher.planner.json_report import json_report
from launcher.planner.memory import RESERVE_SAYS
from launcher.planner.planned import read_planned
from launcher.planner.question import Settings, dtype_of, instances_of, question, support_of
from launcher.planner.report import Report
from launcher.planner.text_report import text_report
from launcher.report_output import print_report
from launcher.stopping import Stopping
from neuron_server.errors import ModelError
from neuron_server.models import read_model

_PROG = "text-generation-launcher plan"

HELP = """What fits which Inferentia2 instance, how fast it would be, and the flags to run it with.

Needs no device and no weights: a local directory, of which config.json is enough, or a hub id, of which only
the configuration is fetched.

Exit status: 0 something fits; 33 nothing fits; 22 a model that nobody serves on Inferentia2.
"""

ASSUMPTIONS = (
    f"Working memory of a core: {RESERVE_SAYS}.",
    "Host memory (the column shows the most): all replicas load at once, 2 GiB for each process (our "
    "assumption); of the weights up to one copy where they lie beside the graphs, cut for the cores, as "
    "after a compilation from a local directory; else one to two.",
    "Speeds: p predicted, e extrapolated, from published figures of optimum-neuron; nothing was measured by "
    "this project. Servers published so far reached 54 to 97 % of them.",
)


def main(argv: Sequence[str]) -> int:
    """Plan with these arguments; the exit status. Raises ``ConfigError``, ``ModelError``, ``LaunchError``."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(help=HELP, context_settings={"help_option_names": ["--help", "-h"]})(_command)
    try:
        app(args=list(argv), prog_name=_PROG)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _command(
    model_id: Annotated[str, typer.Option(help="Local directory or hub id.", envvar="MODEL_ID")],
    revision: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Branch, tag or commit of a hub model.", envvar="REVISION"),
    ] = None,
    instance: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="inf2.xlarge, inf2.8xlarge, inf2.24xlarge or inf2.48xlarge; may be repeated."),
    ] = None,
    max_total_tokens: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=2, help="T, tokens of a slot. Unset: 4096, or what the positions allow."),
    ] = None,
    max_input_tokens: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="The longest prompt: width of the prefill graph. Unset: T."),
    ] = None,
    max_batch_size: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="B, slots of a replica. Unset: 1 to 48 are tried."),
    ] = None,
    num_shard: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Cores of a replica. Unset: 1, 2, 4, 8 and 24 are tried."),
    ] = None,
    data_parallel_size: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Replicas. Unset: as many as the cores of the instance allow."),
    ] = None,
    dtype: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="float32, bfloat16 or float16. Unset: the checkpoint's if it has 16 bit."),
    ] = None,
    prompt_tokens: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Prompt of each request of the predicted workload. Unset: 1500."),
    ] = None,
    new_tokens: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="New tokens of each request of that workload. Unset: 250."),
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="All candidates, as one JSON object.")] = False,
) -> None:
    settings = Settings(
        instances=tuple(instance or ()),
        max_total_tokens=max_total_tokens,
        max_input_tokens=max_input_tokens,
        max_batch_size=max_batch_size,
        num_shard=num_shard,
        data_parallel_size=data_parallel_size,
        dtype=dtype,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
    )
    report = make_report(settings, model_id, revision)
    print_report(json_report(report) + "\n" if json_output else text_report(report))
    raise typer.Exit(0 if report.rule is None else exit_code(report.rule))


def make_report(settings: Settings, model_id: str, revision: str | None = None) -> Report:
    """The whole plan. Raises ``ConfigError``, ``ModelError`` and, for a hub id, ``LaunchError``."""
    instances = instances_of(settings)
    local = is_local(model_id)
    path = model_id if local else asyncio.run(_fetched(model_id, revision))
    facts = read_model(path)
    support = support_of(facts, model_id)
    model = read_planned(model_id, path, facts, None if local else revision)
    asked = question(settings, model, support)
    plans = tuple(plan_instance(instance, asked) for instance in instances)
    return Report(asked, dtype_of(settings, model), plans, ASSUMPTIONS)


async def _fetched(model_id: str, revision: str | None) -> str:
    """The directory of a hub model's configuration."""
    parameters = Parameters.of(model_id=model_id, revision=revision)

    def forward(_name: str, _line: bytes) -> None:
        """Keep the download's lines back: where it fails, the error has the last ones."""

    env = child_environment(parameters, os.environ)
    found = await fetch(model_id, parameters, env, forward, Stopping(), config_only=True)
    if found is None:
        raise ModelError(f"the download of {model_id} was stopped", rule="download_failed")
    return found.path
