"""A body as a schema, or refused as serde refuses it.

pydantic in strict mode accepts and refuses what serde does; its words differ, and what it does not know
stands here: a field given twice (under one name or under two), enums without a tag, variants told apart by
their contents. Clients match on the status and the prefix, people read the rest.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, TypeVar, cast, get_args, get_origin

import orjson
from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    ValidatorFunctionWrapHandler,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, ErrorDetails, PydanticCustomError, core_schema

from neuron_server.router.json_body import SCHEMA, BodyRefusedError, Document, RepeatedKeys
from neuron_server.router.position import line_and_column, locate, order

Path = Sequence[str | int]

_MAX_QUOTED = 500

# -- types ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rust:
    """Marks a number with TGI's type for it: refusals name it, the API description shows its format."""

    name: str

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        kept = {k: v for k, v in handler(schema).items() if k == "type" or (k, v) == ("minimum", 0)}
        return {**kept, **_FORMAT.get(self.name, {})}


#: OpenAPI's formats know no sign; TGI describes ``usize`` without one.
_FORMAT: dict[str, JsonSchemaValue] = {
    "u32": {"format": "int32"},
    "i32": {"format": "int32"},
    "u64": {"format": "int64"},
    "f32": {"format": "float"},
}


U32 = Annotated[int, Field(ge=0, le=2**32 - 1), Rust("u32")]
U64 = Annotated[int, Field(ge=0, le=2**64 - 1), Rust("u64")]
USIZE = Annotated[int, Field(ge=0, le=2**64 - 1), Rust("usize")]
I32 = Annotated[int, Field(ge=-(2**31), le=2**31 - 1), Rust("i32")]
F32 = Annotated[float, Rust("f32")]


@dataclass(frozen=True, slots=True)
class FailFast:
    """Marks a list that is given up at its first bad item: a million of them must not cost as many refusals.

    pydantic's own mark cannot be hashed, and so not stand in a union.
    """

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        assert schema["type"] == "list", f"FailFast marks lists, not {source}"
        return cast("core_schema.ListSchema", {**schema, "fail_fast": True})


Strings = Annotated[list[str], FailFast()]


def refused(reason: str) -> PydanticCustomError:
    """For validators to raise: ``reason`` is told in these words."""
    return PydanticCustomError("refused", "{reason}", {"reason": reason})


def no_variant(enum: str) -> PydanticCustomError:
    """For validators to raise: the value is none of the enum's variants."""
    return refused(f"data did not match any variant of untagged enum {enum}")


def _repeated(names: tuple[str, ...]) -> PydanticCustomError:
    """The field with these names was given twice, under one of them or under two."""
    return PydanticCustomError("repeated", "a field is given twice", {"names": names})


@dataclass(frozen=True, slots=True)
class Untagged:
    """Marks a type as an enum without a tag: the first variant that fits; refused by its ``name``."""

    name: str

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        def first_fit(value: object, inner: ValidatorFunctionWrapHandler) -> object:
            try:
                return inner(value)
            except ValidationError:
                raise no_variant(self.name) from None

        schema = handler(source)
        if schema["type"] == "union":
            schema = cast("core_schema.UnionSchema", {**schema, "mode": "left_to_right"})
        return core_schema.no_info_wrap_validator_function(first_fit, schema)


@dataclass(frozen=True, slots=True)
class Lenient:
    """Marks a field that is ``None`` where its value does not fit: another may stand in for it."""

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        def fit_or_none(value: object, inner: ValidatorFunctionWrapHandler) -> object:
            try:
                return inner(value)
            except ValidationError:
                return None

        return core_schema.no_info_wrap_validator_function(fit_or_none, handler(source))


class Schema(BaseModel):
    """Base of all request bodies: strict types, unknown keys ignored, no field twice."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _no_field_twice(cls, value: Any) -> Any:  # Any: it has not met the schema yet
        if isinstance(value, RepeatedKeys):
            for names in _names(cls):
                if any(name in value.repeated for name in names):
                    raise _repeated(names)
        if isinstance(value, dict):
            for names in _aliased(cls):
                if sum(name in value for name in names) > 1:
                    raise _repeated(names)
        return value


S = TypeVar("S", bound=Schema)

# -- deserialisation -----------------------------------------------------------------------------------------


def deserialize(model: type[S], document: Document) -> S:
    """``document`` as a ``model``; raises ``BodyRefusedError`` (422) naming the first thing that is wrong."""
    try:
        return model.model_validate(document.value)
    except ValidationError as error:
        errors = error.errors(include_url=False)
    first = min(errors, key=lambda e: order(document.value, e["loc"]))
    raise _refusal(model, document, first)


def deserialize_untagged(name: str, models: Sequence[type[S]], document: Document) -> S:
    """``document`` as the first of ``models`` that fits; raises ``BodyRefusedError`` (422)."""
    for model in models:
        try:
            return model.model_validate(document.value)
        except ValidationError:
            continue
    reason = f"data did not match any variant of untagged enum {name}"
    where = line_and_column(document.text, locate(document.text, (), behind=True))
    raise BodyRefusedError(422, f"{SCHEMA}{reason} at {where}")


def check(model: type[Schema], value: object) -> None:
    """For validators: whether ``value`` fits ``model``; raises the ``refused`` that says why not."""
    try:
        model.model_validate(value)
    except ValidationError as error:
        raise refused(_reason(model, error.errors(include_url=False)[0])) from None


def _refusal(model: type[Schema], document: Document, error: ErrorDetails) -> BodyRefusedError:
    kind, path, text = error["type"], error["loc"], document.text
    if kind == "repeated":
        position = locate(text, (*path, error["ctx"]["names"]), occurrence=2)
    elif kind == "missing":  # seen at the end of the object
        position = locate(text, path[:-1], behind=True)
    else:
        position = locate(text, path, behind=kind == "refused")
    shown = path[:-1] if kind == "missing" else path
    dotted = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in shown).lstrip(".")
    where = f"{dotted}: " if dotted else ""
    reason = _reason(model, error)
    return BodyRefusedError(422, f"{SCHEMA}{where}{reason} at {line_and_column(text, position)}")


def _reason(model: type[BaseModel], error: ErrorDetails) -> str:
    kind, given, path = error["type"], error["input"], error["loc"]
    if kind == "repeated":
        return f"duplicate field `{error['ctx']['names'][0]}`"
    if kind == "refused":
        return str(error["ctx"]["reason"])
    if kind == "missing":
        return f"missing field `{path[-1]}`"
    annotation = _annotation(model, path)
    if kind == "literal_error" and isinstance(given, str):
        known = ", ".join(f"`{word}`" for word in get_args(_bare(annotation)))
        return f"unknown variant `{_cut(given)}`, expected one of {known}"
    problem = "value" if kind in ("greater_than_equal", "less_than_equal") else "type"
    return f"invalid {problem}: {unexpected(given)}, expected {_expected(annotation)}"


# -- what a schema says --------------------------------------------------------------------------------------


@cache
def _names(model: type[BaseModel]) -> tuple[tuple[str, ...], ...]:
    """Of each field all the names it may be given under, its own first."""
    return tuple(_names_of(name, info) for name, info in model.model_fields.items())


@cache
def _aliased(model: type[BaseModel]) -> tuple[tuple[str, ...], ...]:
    return tuple(names for names in _names(model) if len(names) > 1)


def _names_of(name: str, info: FieldInfo) -> tuple[str, ...]:
    alias = info.validation_alias
    if isinstance(alias, AliasChoices):
        return tuple(choice for choice in alias.choices if isinstance(choice, str))
    return (alias if isinstance(alias, str) else name,)


def _annotation(model: type[BaseModel], path: Path) -> Any:
    """The annotation a path leads to (``Any``: annotations have no common type)."""
    at: Any = model
    for part in path:
        at = _bare(at)
        if isinstance(part, int):
            at = get_args(at)[0]
        else:
            info = next(i for n, i in at.model_fields.items() if part in _names_of(n, i))
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


def unexpected(value: object) -> str:
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
        return f"string {orjson.dumps(_cut(value)).decode()}"
    return "map" if isinstance(value, dict) else "sequence"


def _cut(given: str) -> str:
    """What a refusal repeats of a text that may be megabytes."""
    return given if len(given) <= _MAX_QUOTED else f"{given[:_MAX_QUOTED]}…"
