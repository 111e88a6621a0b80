"""The reference page of all flags and exit statuses, made from the tables."""

from __future__ import annotations

import sys

from launcher.exit_codes import EXIT_CODES
from launcher.flags import FLAGS, Flag, Treatment
from launcher.parameters import shown

_HEAD = """# The flags of `text-generation-launcher`

Made from the launcher's tables by `python -m launcher.reference > docs/flags.md`; do not edit by hand.

Every flag has an environment variable; a flag wins over its variable, and an empty variable counts as unset.
Switches take `true` or `false` there. `--max-input-length` and `--max-input-tokens` are one parameter: a flag
of either name beats a variable of either name. An unknown flag is a usage error (exit status 2).
"""

_INTRODUCTIONS = {
    Treatment.IGNORED: "Accepted so that a command line made for TGI starts; each one given is logged once.",
    Treatment.REFUSED: "Giving one of these stops the launcher with exit status 3.",
}


def render() -> str:
    """The whole page as Markdown."""
    parts = [_HEAD]
    for group in dict.fromkeys(flag.group for flag in FLAGS):
        flags = [flag for flag in FLAGS if flag.group == group]
        honoured = flags[0].treatment is Treatment.HONOURED
        parts.append(f"## {group}\n")
        if not honoured:
            parts.append(_INTRODUCTIONS[flags[0].treatment] + "\n")
        parts.append(_honoured(flags) if honoured else _others(flags))
    return "\n".join([*parts, _exit_statuses()])


def _honoured(flags: list[Flag]) -> str:
    rows = ["| flag | variable | default | meaning |", "|---|---|---|---|"]
    for flag in flags:
        variable = f"`{flag.variable}`" if flag.variable else ""
        default = f"`{shown(flag.default)}`" if flag.default is not None else ""
        rows.append(f"| {_name(flag)} | {variable} | {default} | {_cell(flag.text)} |")
    return "\n".join(rows) + "\n"


def _others(flags: list[Flag]) -> str:
    rows = ["| flag | variable | reason |", "|---|---|---|"]
    rows += [f"| {_name(flag)} | `{flag.variable}` | {_cell(flag.text)} |" for flag in flags]
    return "\n".join(rows) + "\n"


def _name(flag: Flag) -> str:
    names = f"`{flag.option}`" + (f", `{flag.short}`" if flag.short else "")
    return names + (": " + ", ".join(flag.choices) if flag.choices else "")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _exit_statuses() -> str:
    rows = ["## Exit status\n", "| status | rule | meaning |", "|---|---|---|"]
    rows.append("| 0 | | stopped by a signal after draining, or `--version` |")
    rows += [f"| {e.code} | `{rule}` | {_cell(e.meaning)} |" for rule, e in EXIT_CODES.items()]
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.stdout.write(render())
