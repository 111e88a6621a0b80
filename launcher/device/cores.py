"""NeuronCores: which ones this process may use, and how they are shared out to replicas."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from launcher.device.instances import TENSOR_PARALLEL_DEGREES
from neuron_server.errors import ConfigError

#: The runtime's variables (AWS's runtime configuration guide); the first one wins over the second.
VISIBLE, NUMBER = "NEURON_RT_VISIBLE_CORES", "NEURON_RT_NUM_CORES"

_ITEM = re.compile(r"([0-9]{1,6})(?:\s*-\s*([0-9]{1,6}))?", re.ASCII)
#: Longer core numbers, lists or values are typing errors; refused before anything of that length is made.
_MOST_CORES = 4096
_MOST_CHARACTERS = 20_000
_FORMS = "one core (4), a range (0-7) or an ascending list without gaps (0,1,2)"


@dataclass(frozen=True, slots=True)
class CoreRange:
    """``count`` cores from ``first`` on; the runtime wants them contiguous and ascending."""

    first: int
    count: int

    def __str__(self) -> str:
        """The form of ``NEURON_RT_VISIBLE_CORES``: ``4``, or ``0-7``."""
        return str(self.first) if self.count == 1 else f"{self.first}-{self.first + self.count - 1}"

    @property
    def last(self) -> int:
        """The highest core."""
        return self.first + self.count - 1


def parse_visible_cores(text: str) -> CoreRange:
    """The cores that a value of ``NEURON_RT_VISIBLE_CORES`` names: ``4``, ``0-7``, ``0,1,2``, ``0-1,2-3``.

    optimum-neuron 0.4.5 counts a list as one core; the runtime itself takes lists. Blanks around numbers
    are allowed. Raises ``ConfigError`` (rule ``neuron_cores``) for gaps, reversed or repeated cores and for
    anything that is not a number.
    """
    if not text.strip():
        raise _wrong(text, f"must name cores: {_FORMS}; unset it to use all")
    if len(text) > _MOST_CHARACTERS:
        raise _wrong(text, f"must be {_FORMS}")
    spans = [_span(text, item) for item in text.split(",")]
    first, after = spans[0][0], spans[0][0]
    for start, end in spans:
        if start < after:
            what = "names a core twice" if start >= first else "does not ascend"
            raise _wrong(text, f"{what}: write {_ascending(spans)}")
        if start > after:
            raise _wrong(
                text,
                f"leaves a gap between {after - 1} and {start}: the runtime wants contiguous cores, such as "
                f"{CoreRange(first, sum(e - s + 1 for s, e in spans))}",
            )
        after = end + 1
    return CoreRange(first, after - first)


def _span(text: str, item: str) -> tuple[int, int]:
    """First and last core of one item of the list."""
    match = _ITEM.fullmatch(item.strip())
    if match is None:
        raise _wrong(text, f"must be {_FORMS}; {_short(item.strip())!r} is none of these")
    start = int(match.group(1))
    end = start if match.group(2) is None else int(match.group(2))
    if end < start:
        raise _wrong(text, f"has a reversed range: write {end}-{start}")
    if end >= _MOST_CORES:
        raise _wrong(text, f"names core {end}; an inf2.48xlarge, the largest of its kind, has 0-23")
    return start, end


def _ascending(spans: list[tuple[int, int]]) -> str:
    """What a list in the wrong order most likely meant."""
    first, last = sorted(spans)[0]
    for start, end in sorted(spans):
        if start > last + 1:
            return "them in ascending order, each once, without gaps"
        last = max(last, end)
    return str(CoreRange(first, last - first + 1))


def parse_number_of_cores(text: str) -> int | None:
    """The value of ``NEURON_RT_NUM_CORES``; 0 means all and is ``None`` here.

    Raises ``ConfigError`` (rule ``neuron_cores``).
    """
    stripped = text.strip()
    if not re.fullmatch(r"[0-9]{1,6}", stripped, re.ASCII):
        raise ConfigError(
            f"{NUMBER} is {_short(text)!r}, but must be a number of cores; 0, or unset, means all",
            rule="neuron_cores",
        )
    return int(stripped) or None


def available(total: int, environ: Mapping[str, str]) -> CoreRange:
    """The cores that the variables of the runtime leave of ``total`` (at least 1), numbered 0 .. total - 1.

    Raises ``ConfigError`` (rule ``neuron_cores``) for a malformed variable, or one that names cores which
    are not there. ``NEURON_RT_NUM_CORES`` above ``total`` means all, as in optimum-neuron.
    """
    if total < 1:
        raise ValueError(f"{total} cores")
    visible, number = environ.get(VISIBLE), environ.get(NUMBER)
    if visible is not None:
        cores = parse_visible_cores(visible)
        if cores.last >= total:
            raise _wrong(visible, f"only {total} cores can be seen from here: name some of 0-{total - 1}")
        return cores
    limit = None if number is None else parse_number_of_cores(number)
    return CoreRange(0, total if limit is None else min(limit, total))


def replica_ranges(available: CoreRange, tensor_parallel: int, replicas: int) -> tuple[CoreRange, ...]:
    """Consecutive slices of ``tensor_parallel`` cores, one for each replica, rank 0 first.

    Raises ``ConfigError`` (rule ``neuron_cores``) when there are too few cores.
    """
    if tensor_parallel < 1 or replicas < 1:
        raise ConfigError(
            f"{replicas} replicas of {tensor_parallel} cores: both must be at least 1", rule="neuron_cores"
        )
    needed = tensor_parallel * replicas
    if needed > available.count:
        raise ConfigError(
            f"{replicas} replica(s) (--data-parallel-size) of {tensor_parallel} core(s) (--num-shard) need "
            f"{needed} NeuronCores, but {available.count} can be used ({available}): "
            f"{_what_would_fit(available.count, tensor_parallel)}",
            rule="neuron_cores",
        )
    return tuple(
        CoreRange(available.first + rank * tensor_parallel, tensor_parallel) for rank in range(replicas)
    )


def _what_would_fit(count: int, tensor_parallel: int) -> str:
    if count >= tensor_parallel:
        return f"set --data-parallel-size to {count // tensor_parallel} or less"
    most = max((degree for degree in TENSOR_PARALLEL_DEGREES if degree <= count), default=count)
    return (
        f"one replica spans at most {most} here, so take a model compiled for --num-shard {most} or less, a "
        f"larger instance, or widen {VISIBLE}"
    )


def warn_degree(tensor_parallel: int, instance_type: str | None = None) -> str | None:
    """A warning when the devices' topology most likely refuses ``tensor_parallel``; else ``None``.

    Inferentia2's degrees are those that AWS's NxD Inference documents; an unknown instance is taken for one.
    Trn1 takes 1, 2, 8, 16 and multiples of 32 (aws-neuron-sdk issue 619).
    """
    family = (instance_type or "inf2").partition(".")[0]
    if family == "inf2" and tensor_parallel not in TENSOR_PARALLEL_DEGREES:
        degrees = ", ".join(map(str, TENSOR_PARALLEL_DEGREES[:-1]))
        return (
            f"--num-shard is {tensor_parallel}, but the tensor parallel degrees of Inferentia2 are {degrees} "
            f"and {TENSOR_PARALLEL_DEGREES[-1]}: others are expected to fail when the model is loaded"
        )
    if family in ("trn1", "trn1n") and tensor_parallel not in (1, 2, 8, 16) and tensor_parallel % 32:
        return (
            f"--num-shard is {tensor_parallel}, but the tensor parallel degrees of Trainium1 are 1, 2, 8, 16 "
            "and multiples of 32: others are expected to fail when the model is loaded"
        )
    return None


def _wrong(text: str, what: str) -> ConfigError:
    return ConfigError(f"{VISIBLE} is {_short(text)!r}, but {what}", rule="neuron_cores")


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."
