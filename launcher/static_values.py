"""B, T and what follows from them: the static-shape rules that are checked before anything loads.

A compiled model fixes B and T; a plain model takes them from the flags. Pure arithmetic: parameters and model
facts in, values with their sources out, or a ``ConfigError`` naming the flag, its value and what is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

from launcher.parameters import Given, Parameters, Source
from neuron_server.errors import ConfigError
from neuron_server.models import ModelFacts
from neuron_server.shape import StaticShape

#: Four clients can stream at once, while the KV cache of a model of 1B parameters stays below half a GB.
DEFAULT_BATCH_SIZE = 4
#: TGI's default, where the positions of the model allow it.
DEFAULT_MAX_LENGTH = 2048


@dataclass(frozen=True, slots=True)
class StaticValues:
    """``shape`` is what is allocated; the others are the flags' final values with their sources.

    ``max_total_tokens`` is what clients may use of T: T itself, or less where a compiled model is longer than
    asked for. ``prefill_width`` is C, the longest prompt the prefill graph takes.
    """

    shape: StaticShape
    prefill_width: int
    max_batch_size: Given
    max_total_tokens: Given
    max_input_tokens: Given
    max_batch_prefill_tokens: Given
    max_batch_total_tokens: Given


def static_values(parameters: Parameters, facts: ModelFacts) -> StaticValues:
    """Derive and check; raises ``ConfigError``, one rule (and exit status) for each flag."""
    _check_as_tgi(parameters)
    total = _max_total_tokens(parameters, facts)
    length = facts.static.sequence_length if facts.static else total.count
    batch = _max_batch_size(parameters, facts, length)
    shape = StaticShape(batch.count, length)
    longest = min(facts.static.max_context_length if facts.static else length, length - 1)
    max_input = _max_input_tokens(parameters, facts, total.count, longest)
    return StaticValues(
        shape=shape,
        # A plain model has no prefill graph: its width is what the clients may use.
        prefill_width=longest if facts.static else max_input.count,
        max_batch_size=batch,
        max_total_tokens=total,
        max_input_tokens=max_input,
        max_batch_prefill_tokens=_max_batch_prefill_tokens(parameters, shape, max_input.count),
        max_batch_total_tokens=_max_batch_total_tokens(parameters, shape),
    )


def _check_as_tgi(parameters: Parameters) -> None:
    """The checks that TGI's launcher and router make themselves, in their words."""
    max_input, total = parameters["max_input_tokens"], parameters["max_total_tokens"]
    if max_input.by_user and total.by_user and max_input.count >= total.count:
        raise ConfigError(
            f"`max_input_tokens`({max_input.value}) must be < `max_total_tokens`({total.value})"
        )
    batch_total = parameters["max_batch_total_tokens"]
    if total.by_user and batch_total.by_user and total.count > batch_total.count:
        raise ConfigError(
            "`max_total_tokens` must be <= `max_batch_total_tokens`. "
            f"Given: {total.value} and {batch_total.value}"
        )
    if parameters["max_batch_size"].value == 0:
        raise ConfigError("`max_batch_size` must be > 0")


def _max_total_tokens(parameters: Parameters, facts: ModelFacts) -> Given:
    given = parameters["max_total_tokens"]
    if given.by_user and given.count < 2:
        raise ConfigError(
            f"{given}, but must be at least 2: one prompt token and one new token", rule="max_total_tokens"
        )
    if facts.static is not None:
        compiled = facts.static.sequence_length
        if given.by_user and given.count > compiled:
            raise ConfigError(
                f"{given}, but the model was compiled for {compiled}: set it to {compiled}, or leave it out",
                rule="max_total_tokens",
            )
        return given if given.by_user else Given(compiled, Source.MODEL, given.name)
    limit = facts.max_positions
    if given.by_user:
        if limit is not None and given.count > limit:
            raise ConfigError(
                f"{given}, but the model has {limit} positions: set it to {limit} or less",
                rule="max_positions",
            )
        return given
    return _derived_length(parameters, limit)


def _derived_length(parameters: Parameters, limit: int | None) -> Given:
    """T of a plain model when nobody named it."""
    batch, batch_total = parameters["max_batch_size"], parameters["max_batch_total_tokens"]
    max_input = parameters["max_input_tokens"]
    if batch.by_user and batch_total.by_user and batch_total.count % batch.count == 0:
        length, source = batch_total.count // batch.count, Source.DERIVED
        if length < 2 or (limit is not None and length > limit):
            raise ConfigError(
                f"{batch_total}, which makes {length} tokens for each of the {batch.value} slots of "
                f"--max-batch-size; needed are 2 to {limit or 'any number of'} tokens",
                rule="max_batch_total_tokens",
            )
        return Given(length, source, "max_total_tokens")
    length, source = DEFAULT_MAX_LENGTH, Source.DEFAULT
    if max_input.by_user and 2 * max_input.count > length:
        length, source = 2 * max_input.count, Source.DERIVED
    if limit is not None and limit < length:
        length, source = limit, Source.MODEL
    return Given(length, source, "max_total_tokens")


def _max_batch_size(parameters: Parameters, facts: ModelFacts, length: int) -> Given:
    given, batch_total = parameters["max_batch_size"], parameters["max_batch_total_tokens"]
    if facts.static is not None:
        compiled = facts.static.batch_size
        if given.by_user and given.value != compiled:
            raise ConfigError(
                f"{given}, but the model was compiled for {compiled}: set it to {compiled}, or leave it out",
                rule="batch_size",
            )
        return given if given.by_user else Given(compiled, Source.MODEL, given.name)
    if given.by_user:
        return given
    if batch_total.by_user:
        slots, rest = divmod(batch_total.count, length)
        if rest or not slots:
            near = max(1, slots) * length
            raise ConfigError(
                f"{batch_total}, but must be a multiple of --max-total-tokens ({length}), one for each slot: "
                f"set it to {near}, or choose --max-batch-size",
                rule="max_batch_total_tokens",
            )
        return Given(slots, Source.DERIVED, given.name)
    return Given(DEFAULT_BATCH_SIZE, Source.DEFAULT, given.name)


def _max_input_tokens(parameters: Parameters, facts: ModelFacts, total: int, width: int) -> Given:
    given = parameters["max_input_tokens"]
    longest = min(width, total - 1)
    if not given.by_user:
        return Given(min(total // 2, longest), Source.DERIVED, "max_input_tokens")
    if not 1 <= given.count <= longest:
        why = "one of the T tokens of a slot must be left for an answer"
        if facts.static is not None and longest < total - 1:
            why = "the model was compiled with a prefill graph of that width"
        raise ConfigError(f"{given}, but must be from 1 to {longest}: {why}", rule="max_input_tokens")
    return given


def _max_batch_prefill_tokens(parameters: Parameters, shape: StaticShape, max_input: int) -> Given:
    given = parameters["max_batch_prefill_tokens"]
    most = shape.batch_size * max_input
    if not given.by_user:
        return Given(most, Source.DERIVED, given.name)
    if not max_input <= given.count <= most:
        raise ConfigError(
            f"{given}, but must be from {max_input} (--max-input-tokens, or a longest prompt could never "
            f"start) to {most} (that for each of the {shape.batch_size} slots)",
            rule="max_batch_prefill_tokens",
        )
    return given


def _max_batch_total_tokens(parameters: Parameters, shape: StaticShape) -> Given:
    given = parameters["max_batch_total_tokens"]
    if not given.by_user:
        return Given(shape.total_tokens, Source.DERIVED, given.name)
    if given.value != shape.total_tokens:
        raise ConfigError(
            f"{given}, but must be {shape.total_tokens}: {shape.batch_size} slots of {shape.max_length} "
            "tokens",
            rule="max_batch_total_tokens",
        )
    return given
