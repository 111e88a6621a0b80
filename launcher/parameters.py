"""The launcher's parameters: a value for every flag, and where each value came from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from launcher.flags import BY_NAME, FLAGS, Default, Treatment
from neuron_server.errors import ConfigError

Value = Default | tuple[str, ...]

#: A user name and password in a URL.
_USER_INFO = re.compile(r"//[^/@\s]*@")


class Source(str, Enum):
    """Where a value came from; what the table of values shows."""

    FLAG = "flag"
    ENVIRONMENT = "environment"
    MODEL = "model"
    DERIVED = "derived"
    DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Given:
    """A value and its source. ``name`` is the flag that carried it, which may be a legacy name."""

    value: Value
    source: Source
    name: str

    @property
    def by_user(self) -> bool:
        """Whether somebody chose it, by flag or by environment."""
        return self.source in (Source.FLAG, Source.ENVIRONMENT)

    @property
    def count(self) -> int:
        """The value as the integer that it must be; ``TypeError`` for anything else, unset included."""
        if isinstance(self.value, int) and not isinstance(self.value, bool):
            return self.value
        raise TypeError(f"{self.name} is {self.value!r}, not an integer")

    def __str__(self) -> str:
        """``--max-batch-size is 8 (environment MAX_BATCH_SIZE)``: how error messages begin."""
        flag = BY_NAME[self.name]
        where = f"environment {flag.variable}" if self.source is Source.ENVIRONMENT else self.source.value
        return f"{flag.option} is {shown(self.value)} ({where})"


def shown(value: Value) -> str:
    """A value as a user writes it."""
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join(value)
    return str(value)


class Parameters:
    """All parameters of one start. An unknown name is a ``KeyError``, a wrong type a ``TypeError``."""

    def __init__(self, given: Mapping[str, Given]) -> None:
        unset = {f.name: Given(() if f.many else f.default, Source.DEFAULT, f.name) for f in FLAGS}
        self._given = _one_name({**unset, **given})

    @classmethod
    def of(cls, *, source: Source = Source.FLAG, **values: Value) -> Parameters:
        """Parameters with these values given and everything else at its default."""
        return cls({name: Given(value, source, BY_NAME[name].name) for name, value in values.items()})

    def replaced(self, given: Mapping[str, Given]) -> Parameters:
        """These parameters with other values for some; nothing is checked again."""
        other = Parameters.__new__(Parameters)
        other._given = {**self._given, **given}
        return other

    def __getitem__(self, name: str) -> Given:
        return self._given[name]

    def integer(self, name: str) -> int | None:
        """The value of an integer flag."""
        given = self._given[name]
        return None if given.value is None else given.count

    def counted(self, name: str) -> int:
        """The value of an integer flag that always has one."""
        return self._given[name].count

    def number(self, name: str) -> float:
        """The value of a float flag that always has one."""
        value = self._given[name].value
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        raise TypeError(f"{name} is {value!r}, not a number")

    def text(self, name: str) -> str | None:
        """The value of a text flag; an empty text counts as unset."""
        value = self._given[name].value
        if value is None or isinstance(value, str):
            return value or None
        raise TypeError(f"{name} is {value!r}, not a text")

    def texts(self, name: str) -> tuple[str, ...]:
        """The values of a flag that may be repeated."""
        value = self._given[name].value
        if isinstance(value, tuple):
            return value
        raise TypeError(f"{name} is {value!r}, not a list")

    def switch(self, name: str) -> bool:
        """The value of a switch."""
        value = self._given[name].value
        if isinstance(value, bool):
            return value
        raise TypeError(f"{name} is {value!r}, not a switch")

    def without_effect(self) -> tuple[str, ...]:
        """One sentence for each flag that was given and does nothing."""
        given = (self._given[f.name] for f in FLAGS if f.treatment is Treatment.IGNORED)
        return tuple(
            f"{_where(g)} has no effect: {BY_NAME[g.name].reason}"
            for g in given
            if g.by_user and g.value is not False
        )

    def refuse_refused(self) -> None:
        """Raise ``ConfigError`` (rule ``refused_flag``) for the first flag given that is refused."""
        for flag in FLAGS:
            given = self._given[flag.name]
            if flag.treatment is Treatment.REFUSED and given.by_user:
                raise ConfigError(f"{given}, but is refused: {flag.reason}", rule="refused_flag")

    def dump(self) -> str:
        """All values for the log, secrets masked; the form of TGI's ``Args {``."""
        lines = ["Args {"]
        for flag in FLAGS:
            value = self._given[flag.name].value
            text = "***" if flag.secret and value is not None else _USER_INFO.sub("//***@", shown(value))
            lines.append(f"    {flag.name}: {text},")
        return "\n".join([*lines, "}"])


def _where(given: Given) -> str:
    flag = BY_NAME[given.name]
    return f"{flag.variable} (environment)" if given.source is Source.ENVIRONMENT else flag.option


def _one_name(given: dict[str, Given]) -> dict[str, Given]:
    """``--max-input-length`` and ``--max-input-tokens`` are one parameter, whichever name carried it.

    The flag beats the variable across the two names: a container that exports ``MAX_INPUT_TOKENS`` must not
    clash with a user who types ``--max-input-length``. Both names given the same way is TGI's error, except
    for two equal variables, which can only mean one thing.
    """
    new, old = given["max_input_tokens"], given["max_input_length"]
    flags = old.source is new.source is Source.FLAG
    if flags or (old.source is new.source is Source.ENVIRONMENT and old.value != new.value):
        raise ConfigError(
            f"Both `max_input_tokens` ({shown(new.value)}) and `max_input_length` ({shown(old.value)}) are "
            "set. Please define only `max_input_tokens` as `max_input_length is deprecated for naming "
            "consistency."
        )
    legacy_wins = old.by_user and (old.source is Source.FLAG or not new.by_user)
    one = old if legacy_wins else new
    return {**given, "max_input_tokens": one, "max_input_length": one}
