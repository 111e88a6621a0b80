"""The typer command that the table of flags describes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Annotated, Any, Optional

import typer

from launcher.exit_codes import EXIT_CODES
from launcher.flags import FLAGS, Flag
from launcher.parameters import Given, Parameters, Source, Value

_SOURCES = {"COMMANDLINE": Source.FLAG, "ENVIRONMENT": Source.ENVIRONMENT}

HELP = """Serve a causal language model over TGI's HTTP API from one static batch of B x T.

Every flag has an environment variable of the same name (--max-total-tokens: MAX_TOTAL_TOKENS); the flag wins.

Two verbs serve nothing, each with its own --help: "text-generation-launcher plan" says which Inferentia2
instances a model fits, in which configuration, and how fast it would be; "text-generation-launcher doctor"
says what on this machine would keep a model from being served.
"""


def build(launch: Callable[[Parameters], int]) -> typer.Typer:
    """An app whose one command parses all flags and ends with the status that ``launch`` returns."""

    def command(ctx: typer.Context, **values: object) -> None:
        raise typer.Exit(launch(parameters_of(ctx, values)))

    command.__signature__ = signature()  # type: ignore[attr-defined]
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(help=HELP, epilog=_epilog(), context_settings={"help_option_names": ["--help", "-h"]})(
        command
    )
    return app


def signature(*extra: inspect.Parameter) -> inspect.Signature:
    """What typer reads off a command that takes all flags of the table, and ``extra`` ones of its own."""
    context = inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    return inspect.Signature([context, *map(_parameter, FLAGS), *extra])


def _parameter(flag: Flag) -> inspect.Parameter:
    names = [flag.option] + ([flag.short] if flag.short else [])
    option = typer.Option(
        *names,
        envvar=flag.variable,
        help=flag.text,
        rich_help_panel=flag.group,
        min=flag.least,
        max=flag.most,
        show_default=flag.default is not None and flag.kind is not bool,
    )
    return inspect.Parameter(
        flag.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=flag.default,
        annotation=Annotated[_annotation(flag), option],
    )


def _annotation(flag: Flag) -> Any:  # Any: a type expression
    kind: Any = Enum(flag.name, [(c, c) for c in flag.choices], type=str) if flag.choices else flag.kind
    if flag.many:
        return Optional[list[kind]]  # noqa: UP045 typer reads it at run time, on 3.10 too
    return kind if flag.kind is bool else Optional[kind]  # noqa: UP045


def parameters_of(ctx: typer.Context, values: Mapping[str, object]) -> Parameters:
    """The flags that were given, by command line or environment."""
    given = {}
    for flag in FLAGS:
        source = ctx.get_parameter_source(flag.name)
        if source is not None and source.name in _SOURCES:
            given[flag.name] = Given(_plain(values[flag.name]), _SOURCES[source.name], flag.name)
    return Parameters(given)


def _plain(value: object) -> Value:
    """A value as the table types it: an enum's text, a list as a tuple."""
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, list):
        return tuple(str(v) for v in value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a flag has the value {value!r}")


def _epilog() -> str:
    """The exit statuses; a blank line between two, as rich joins what is not a paragraph."""
    rows = ["0: stopped by a signal, or --version"]
    rows += [f"{code.code}: {code.meaning}" for code in EXIT_CODES.values()]
    return "Exit status\n\n" + "\n\n".join(rows)
