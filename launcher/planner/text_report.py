"""The plan for people: a header, a table per instance, sentences for what does not fit, lines to paste."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterable, Iterator

from launcher.device.instances import CORE_BYTES, INSTANCES
from launcher.planner.anchors import serving_near
from launcher.planner.candidates import Candidate, Verdict, gibibytes, gigabytes
from launcher.planner.choice import choose
from launcher.planner.dimensions import count
from launcher.planner.instance_plan import InstancePlan
from launcher.planner.memory import COMFORTABLE
from launcher.planner.prediction import NotPredicted
from launcher.planner.report import Report

WIDTH = 108
_KEY = 12
#: Columns of the table: title and width.
_COLUMNS = (
    ("", 1),
    ("tp", 3),
    ("replicas", 8),
    ("slots x tokens", 14),
    ("weights", 8),
    ("KV cache", 8),
    ("total/core", 15),
    ("host", 9),
    ("verdict", 7),
    ("tokens/s", 9),
    ("TTFT", 7),
)


def text_report(report: Report) -> str:
    """The whole report, ending in a newline."""
    lines = [*_header(report)]
    for plan in report.plans:
        lines += ["", *_instance(report, plan)]
    lines += ["", *_footer(report)]
    return "\n".join(lines) + "\n"


def _header(report: Report) -> Iterator[str]:
    model, support, work = report.question.model, report.question.support, report.question.workload
    sizes, positions = model.sizes, model.facts.max_positions
    heads = f"{sizes.heads} heads" + (f" ({sizes.kv_heads} of KV)" if sizes.kv_heads != sizes.heads else "")
    yield from _entry(
        "model",
        f"{model.name}: {sizes.model_type}, {count(model.parameters)} parameters ({model.source}), "
        f"{sizes.layers} layers, {heads} of {sizes.head_dim}, "
        + ("any length" if positions is None else f"up to {positions} tokens"),
    )
    why = f" ({support.reason})" if support.reason else ""
    yield from _entry("served by", f"{support.release}{why}, in {support.image}")
    for note in (*support.notes, *model.notes):
        yield from _entry("note", note)
    if static := model.facts.static:
        yield from _entry("compiled", f"{static.form}: the only configuration it has")
    yield from _entry("type", f"{report.dtype} weights and KV cache")
    yield from _entry(
        "workload",
        f"{work.prompt_tokens} prompt and {work.new_tokens} new tokens, slots always full (assumed)",
    )


def _instance(report: Report, plan: InstancePlan) -> Iterator[str]:
    instance = plan.instance
    yield (
        f"{instance.name}: {instance.cores} cores of {gigabytes(CORE_BYTES)}, "
        f"{gibibytes(instance.host_bytes)} host memory"
    )
    rows = list(_best_rows(report, plan))
    if rows:
        yield _row(tuple(title for title, _ in _COLUMNS))
        for candidate in rows:
            yield _row(_cells(candidate, chosen=candidate is plan.choice))
    for candidate in rows:
        if candidate.why:
            yield from _item(f"{candidate.verdict.value}: tp {candidate.tensor_parallel}: {candidate.why}")
    yield from _refusals(plan)
    if plan.choice is not None:
        yield from _about_choice(report, plan, plan.choice)


def _refusals(plan: InstancePlan) -> Iterator[str]:
    """One sentence for each degree ruled out, one for all that the instance has too few cores for."""
    too_many = [r for r in plan.refused if r.tensor_parallel > plan.instance.cores]
    for refused in plan.refused:
        if len(too_many) < 2 or refused not in too_many:
            yield from _item(f"no: tp {refused.tensor_parallel}: {refused.why}")
    if len(too_many) > 1:
        degrees = ", ".join(str(r.tensor_parallel) for r in too_many)
        yield from _item(f"no: tp {degrees}: {plan.instance.name} has {plan.instance.cores} cores")


def _best_rows(report: Report, plan: InstancePlan) -> Iterator[Candidate]:
    """The best configuration of each degree that has one."""
    for degree in sorted({c.tensor_parallel for c in plan.candidates}):
        of_degree = [c for c in plan.candidates if c.tensor_parallel == degree]
        best, _ = choose(of_degree, plan.instance, report.question.model)
        if plan.choice is not None and plan.choice.tensor_parallel == degree:
            best = plan.choice
        if best is not None:
            yield best


def _about_choice(report: Report, plan: InstancePlan, choice: Candidate) -> Iterator[str]:
    yield from _item(f"*: {plan.chosen_because}")
    for note in choice.split.notes:
        yield from _item(f"heads: {note}")
    yield from _item(
        f"room: {choice.memory.room_tokens} tokens of KV cache would fill a replica to {COMFORTABLE:.0%}, "
        f"with {gigabytes(choice.memory.reserve)} of working memory set aside"
    )
    figures = choice.prediction
    if isinstance(figures, NotPredicted):
        yield from _item(f"speed: not predicted: {figures.reason}")
    else:
        yield from _item(
            f"{figures.label}: {figures.tokens_per_s:.0f} tokens/s, {figures.requests_per_s:.1f} requests/s, "
            f"TTFT {figures.ttft_s:.2f} s alone and {figures.burst_ttft_s:.1f} s for the last of "
            f"{choice.shape.batch_size} at once, {1000 * figures.step_s:.0f} ms between tokens"
        )
        yield from _item(f"from: {figures.source}; {figures.basis}")
    for figure in serving_near(report.question.model.parameters, plan.instance.name):
        if (figure.tensor_parallel, figure.replicas) != (choice.tensor_parallel, choice.replicas):
            continue
        yield from _item(
            f"published: {figure.model}, {figure.tensor_parallel} x {figure.replicas}, {figure.slots} slots: "
            f"{figure.tokens_per_s:.0f} tokens/s ({figure.server}, {figure.date})"
        )
    recipe = report.recipe(choice)
    if recipe.export:
        held, legacy = recipe.export_host_bytes or 0, report.question.support.generation == "legacy"
        where = "on an instance with" if legacy else "on a machine with"
        if held > plan.instance.host_bytes:
            yield f"  compile, {where} more memory ({gibibytes(held)} beside the compiler's):"
        else:
            yield "  compile" + (
                ", on an instance with devices, which this generation needs:" if legacy else ":"
            )
        yield from _command_line(recipe.export)
    yield "  serve:"
    yield from _command_line(recipe.serve)


def _cells(candidate: Candidate, *, chosen: bool) -> tuple[str, ...]:
    memory, figures = candidate.memory, candidate.prediction
    rate, first = "-", "-"
    if not isinstance(figures, NotPredicted):
        rate = f"{figures.tokens_per_s:.0f} {figures.label[0]}"
        first = f"{figures.ttft_s:.2f} s"
    return (
        "*" if chosen else "",
        str(candidate.tensor_parallel),
        str(candidate.replicas),
        str(candidate.shape),
        gigabytes(memory.weights),
        gigabytes(memory.cache),
        f"{gigabytes(memory.total)} {memory.share:4.0%}",
        f"{gibibytes(candidate.host.most)}",
        candidate.verdict.value,
        rate,
        first,
    )


def _footer(report: Report) -> Iterator[str]:
    smallest, tight = report.smallest, report.smallest_tight
    if smallest is None:
        yield f"Nothing fits{_remedy(report)}."
    elif len(report.plans) > 1:
        able = smallest.choice is not None and smallest.choice.verdict is Verdict.FITS
        yield (
            f"Smallest instance that does: {smallest.instance.name}"
            + ("" if able else ", where it is tight")
            + (f"; on {tight.instance.name} it is tight" if tight else "")
        )
    for assumption in report.assumptions:
        yield from textwrap.wrap(assumption, WIDTH, break_on_hyphens=False)


def _remedy(report: Report) -> str:
    """What else could be asked for, where something can."""
    wish, asked = report.question.wish, {plan.instance.name for plan in report.plans}
    ways = []
    if report.question.model.facts.static is not None:
        ways.append("compile it for other cores or fewer slots")
    elif wish.batch_size is not None:
        ways.append("give it fewer or shorter slots")
    elif wish.tensor_parallel is not None:
        ways.append("give it more cores per replica")
    if max(INSTANCES.values(), key=lambda i: i.cores).name not in asked:
        ways.append("plan for a larger instance")
    return f": {', or '.join(ways)}" if ways else " any Inferentia2 instance"


def _row(cells: Iterable[str]) -> str:
    return (
        "  " + " ".join(cell.rjust(width) for cell, (_, width) in zip(cells, _COLUMNS, strict=True)).rstrip()
    )


def _entry(key: str, text: str) -> Iterator[str]:
    yield from textwrap.wrap(
        text,
        WIDTH,
        initial_indent=key.ljust(_KEY),
        subsequent_indent=" " * _KEY,
        break_on_hyphens=False,
    )


def _command_line(line: str) -> Iterator[str]:
    """A command that can be pasted, broken before a flag where it is long."""
    row, part = "   ", ""
    for word in [*shlex.split(line), "--"]:
        if word.startswith("--"):
            if row.strip() and len(row) + len(part) > WIDTH - 5:
                yield f"{row} \\"
                row = "       "
            row, part = row + part, ""
        part += f" {shlex.quote(word)}"
    yield row


def _item(text: str) -> Iterator[str]:
    yield from textwrap.wrap(
        text, WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False
    )
