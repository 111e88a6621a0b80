"""A body that does not fit its schema, worded as serde words it.

pydantic in strict mode accepts and refuses what serde does; only its words differ. Clients match on the
status and the prefix, people read the rest.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, get_args, get_origin

import orjson
from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError
from pydantic_core import ErrorDetails

from neuron_server.router.json_body import SCHEMA, BodyRefusedError, Document, RepeatedKeys
from neuron_server.router.position import line_and_column, locate


@dataclass(frozen=True, slots=True)
class Rust:
    """Marks a number with the type TGI has for it, as refusals call it."""

    name: str


U32 = Annotated[int, Field(ge=0, le=2**32 - 1), Rust("u32")]
U64 = Annotated[int, Field(ge=0, le=2**64 - 1), Rust("u64")]
USIZE = Annotated[int, Field(ge=0, le=2**64 - 1), Rust("usize")]
I32 = Annotated[int, Field(ge=-(2**31), le=2**31 - 1), Rust("i32")]
F32 = Annotated[float, Rust("f32")]
#: Gives up at the first bad item: a body of a million of them must not cost a million refusals.
Strings = Annotated[list[str], FailFast()]


class Schema(BaseModel):
    """Base of all request bodies: strict types, unknown keys ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


S = TypeVar("S", bound=Schema)
Path = Sequence[str | int]


def deserialize(model: type[S], document: Document) -> S:
    """``document`` as a ``model``; raises ``BodyRefusedError`` (422) naming the first thing that is wrong."""
    repeated = _repeated_field(model, document.value)
    if repeated is not None:
        position = locate(document.text, repeated, occurrence=2)
        raise _refusal(document, repeated[:-1], f"duplicate field `{repeated[-1]}`", position)
    try:
        return model.model_validate(document.value)
    except ValidationError as error:
        found = [(locate(document.text, _path(e)), e) for e in error.errors(include_url=False)]
        position, first = min(found, key=lambda pair: pair[0])
        path = _path(first)
        shown = path[:-1] if first["type"] == "missing" else path
        raise _refusal(document, shown, _reason(model, path, first), position) from None


def _refusal(document: Document, path: Path, reason: str, position: int) -> BodyRefusedError:
    dotted = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
    where = f"{dotted}: " if dotted else ""
    return BodyRefusedError(422, f"{SCHEMA}{where}{reason} at {line_and_column(document.text, position)}")


def _repeated_field(model: type[BaseModel], value: Any, path: tuple[str, ...] = ()) -> tuple[str, ...] | None:
    """Path of the first field of ``model`` that stands twice in ``value``; unknown keys may."""
    if not isinstance(value, dict):
        return None
    for name, info in model.model_fields.items():
        if isinstance(value, RepeatedKeys) and name in value.repeated:
            return (*path, name)
        inner = _bare(info.annotation)
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found = _repeated_field(inner, value.get(name), (*path, name))
            if found is not None:
                return found
    return None


def _path(error: ErrorDetails) -> tuple[str | int, ...]:
    return tuple(error["loc"])


def _reason(model: type[BaseModel], path: Path, error: ErrorDetails) -> str:
    kind, given = error["type"], error["input"]
    if kind == "missing":
        return f"missing field `{path[-1]}`"
    if kind == "literal_error" and isinstance(given, str):
        known = ", ".join(f"`{word}`" for word in get_args(_annotation(model, path)))
        return f"unknown variant `{given}`, expected one of {known}"
    problem = "value" if kind in ("greater_than_equal", "less_than_equal") else "type"
    return f"invalid {problem}: {_unexpected(given)}, expected {_expected(_annotation(model, path))}"


def _annotation(model: type[BaseModel], path: Path) -> Any:
    """The annotation a path leads to (``Any``: annotations have no common type)."""
    at: Any = model
    for part in path:
        at = _bare(at)
        if isinstance(part, int):
            at = get_args(at)[0]
        else:
            info = at.model_fields[part]
            marks = [m for m in info.metadata if isinstance(m, Rust)]
            at = Annotated[info.annotation, marks[0]] if marks else info.annotation
    return at


def _bare(annotation: Any) -> Any:
    """Without ``None`` and without metadata."""
    if get_origin(annotation) in (types.UnionType, typing.Union):
        return _bare(next(a for a in get_args(annotation) if a is not type(None)))
    if get_origin(annotation) is Annotated and not _mark(annotation):
        return _bare(get_args(annotation)[0])
    return annotation


def _mark(annotation: Any) -> str | None:
    return next((m.name for m in getattr(annotation, "__metadata__", ()) if isinstance(m, Rust)), None)


def _expected(annotation: Any) -> str:
    bare = _bare(annotation)
    if (mark := _mark(bare)) is not None:
        return mark
    if get_origin(bare) is list:
        return "a sequence"
    if isinstance(bare, type) and issubclass(bare, BaseModel):
        return f"struct {bare.__name__}"
    if bare is bool:
        return "a boolean"
    return "a string"


def _unexpected(value: Any) -> str:
    """serde's name for a JSON value that should not be there."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"boolean `{str(value).lower()}`"
    if isinstance(value, int):
        return f"integer `{value}`"
    if isinstance(value, float):
        return f"floating point `{orjson.dumps(value).decode()}`"
    if isinstance(value, str):
        return f"string {orjson.dumps(value).decode()}"
    return "map" if isinstance(value, dict) else "sequence"
