"""``text-generation-launcher doctor``: all checks, a line each, and an exit status."""

from __future__ import annotations

import inspect
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated

import typer

from launcher.command import parameters_of, signature
from launcher.device.rooted import machine_root
from launcher.doctor import machine, model, neuron
from launcher.doctor.case import Case
from launcher.doctor.finding import Finding, Status, fail
from launcher.parameters import Parameters
from launcher.report_output import print_report
from launcher.vertex import with_vertex_port

log = logging.getLogger("text_generation_launcher")

Check = Callable[[Case], Iterable[Finding]]

#: In the order of the report; the name stands for a check that breaks.
CHECKS: Mapping[str, Check] = {
    "devices": neuron.devices,
    "instance": neuron.instance,
    "driver": neuron.driver_and_runtime,
    "packages": neuron.packages,
    "cores": neuron.cores,
    "variables": neuron.variables,
    "memory": machine.memory,
    "model disk": machine.model_disk,
    "compile cache": machine.compile_cache,
    "limits": machine.limits,
    "port": machine.port,
    "hub": machine.hub,
    "flags": model.flags,
    "model": model.model,
}

HELP = """Look at this machine and these flags, and say what would keep a model from being served.

Takes the flags and variables of the launcher and starts nothing. One line for each check: ok, warn or FAIL,
what was found, and after -> what to do about it. Without a Neuron device models are served on the CPU, which
is no failure unless --backend neuron asks for one.

Exit status: 0 when nothing FAILs, 1 when something does, 2 for flags that cannot be parsed.
"""


def main(argv: Sequence[str]) -> int:
    """Run the verb; the exit status. Raises ``ConfigError`` when ``NEURON_TGI_ROOT`` is no directory."""
    try:
        build(report)(args=list(argv), prog_name="text-generation-launcher doctor")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0


def build(run: Callable[[Parameters, bool], int]) -> typer.Typer:
    """An app with the launcher's flags and ``--json``; ``run`` gets both and returns the status."""

    def command(ctx: typer.Context, *, as_json: bool, **values: object) -> None:
        raise typer.Exit(run(parameters_of(ctx, values), as_json))

    text = "Print a list of {check, status, found, fix} instead of lines."
    own = inspect.Parameter(
        "as_json",
        inspect.Parameter.KEYWORD_ONLY,
        default=False,
        annotation=Annotated[bool, typer.Option("--json", help=text, rich_help_panel="Report")],
    )
    command.__signature__ = signature(own)  # type: ignore[attr-defined]
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(help=HELP, context_settings={"help_option_names": ["--help", "-h"]})(command)
    return app


def report(parameters: Parameters, as_json: bool) -> int:
    """Examine this machine, print the report, and return the status."""
    case = Case(with_vertex_port(parameters, os.environ), os.environ, machine_root(os.environ))
    findings = examine(case)
    print_report(as_objects(findings) if as_json else as_lines(findings))
    return int(any(finding.status is Status.FAIL for finding in findings))


def examine(case: Case) -> tuple[Finding, ...]:
    """What all checks found; one that breaks is a finding itself, and the others go on."""
    findings: list[Finding] = []
    for name, check in CHECKS.items():
        try:
            for finding in check(case):
                findings.append(finding)  # one by one: what stood before the break stays
        except Exception as error:  # an edge: a check may meet any machine
            log.exception("the check %r broke", name)
            fix = "report it with what stderr says; the other checks are not affected"
            findings.append(fail(name, f"the check itself broke ({type(error).__name__}: {error})", fix))
    return tuple(findings)


def as_lines(findings: Sequence[Finding]) -> str:
    """The report for people."""
    counts = [f"{sum(f.status is status for f in findings)} {status.value}" for status in Status]
    return "".join(f"{finding}\n" for finding in findings) + f"\n{', '.join(counts)}\n"


def as_objects(findings: Sequence[Finding]) -> str:
    """The report for programs."""
    return json.dumps([finding.as_json() for finding in findings], indent=2) + "\n"
