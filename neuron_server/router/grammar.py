"""A client's grammar to the one that travels to the generator: rules 17 to 20 of TGI's validation.

What only compiling can tell (rule 21, and a regex that is none) the generator answers.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Executor
from functools import cache
from typing import Any, NoReturn

from neuron_server.errors import ValidationError
from neuron_server.grammar import Grammar, bounded
from neuron_server.router.tgi_schema import GrammarType

#: Schemas whose check is remembered: it takes 15 ms for one of 50 fields.
_REMEMBERED = 64

#: How much of a refusal's detail is shown, characters: it quotes the schema.
_MAX_DETAIL = 300

#: Where the names of the metaschema's parts begin.
_DRAFT = "https://json-schema.org/draft/2020-12/"

#: Would be taken by the generator's compiler as settings of its own.
_COMPILER_OPTIONS = "x-guidance"

#: Keywords that hold a schema, a list of them, or a map of them. ``$functions`` is that of TGI's tools.
_ONE = ("items", "additionalProperties", "contains", "then", "else", "propertyNames", "unevaluatedItems")
_MANY = ("anyOf", "oneOf", "prefixItems")
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "$functions")

#: Keywords that look at the same object as a ``properties`` beside them.
_BESIDE = ("anyOf", "oneOf", "$ref", "$dynamicRef", "if", "dependentSchemas", "patternProperties", "not")


class GrammarReader:
    """Reads grammars; schemas are checked by ``executor``, so that streams go on meanwhile."""

    def __init__(self, executor: Executor, *, disabled: bool) -> None:
        self._executor = executor
        self._disabled = disabled
        self._read: OrderedDict[str, Grammar] = OrderedDict()

    async def read(self, grammar: GrammarType) -> Grammar:
        """Raises ``ValidationError`` with TGI's texts, in TGI's order."""
        if self._disabled:
            raise ValidationError("grammar is not supported")
        if grammar.type == "regex":
            return Grammar("regex", bounded(grammar.value))
        value = grammar.value["schema"] if grammar.type == "json_schema" else grammar.value
        if not isinstance(value, dict | str) and grammar.type != "json_schema":
            raise ValidationError("grammar is not supported")
        text = bounded(value if isinstance(value, str) and grammar.type != "json_schema" else _dump(value))
        known = self._read.get(text)
        if known is None:
            loop = asyncio.get_running_loop()
            known = self._read[text] = await loop.run_in_executor(self._executor, read_schema, text)
            if len(self._read) > _REMEMBERED:
                self._read.popitem(last=False)
        self._read.move_to_end(text)
        return known


def read_schema(text: str) -> Grammar:
    """A JSON Schema as text, checked against the metaschema of 2020-12; may take half a second.

    Raises ``ValidationError``. The schema is read as TGI reads it: see ``_as_tgi``.
    """
    try:
        schema = json.loads(text, parse_constant=_not_json)
        problem = _problem(schema)
        if problem is None:
            if not isinstance(schema, dict) or "properties" not in schema:
                raise ValidationError("grammar is not valid: Grammar must have a 'properties' field")
            read = bounded(_dump(_as_tgi(schema)))
            read.encode()
            return Grammar("json_schema", read)
    except UnicodeEncodeError:
        problem = "lone leading surrogate in hex escape"
    except ValueError as error:
        problem = str(error)
    except RecursionError:
        problem = "it is nested too deeply"
    raise ValidationError(f"grammar is not valid: {problem[:_MAX_DETAIL]}")


def _problem(schema: object) -> str | None:
    error = next(_metaschema().iter_errors(schema), None)
    return None if error is None else f"{error.message[: _MAX_DETAIL // 2]} at {error.json_path}"


@cache
def _metaschema() -> Any:  # Any: jsonschema ships no types
    """The validator of 2020-12 schemas, with a ``uniqueItems`` of our own.

    The library compares every two items: at the longest grammar minutes, in which all streams crawl. It also
    returns to its own class wherever a schema says ``$schema``, so the metaschema is copied without that, and
    under another name, for the name itself leads to the library's.
    """
    # a tenth of a second, for those who use grammars
    from jsonschema import Draft202012Validator, validators  # type: ignore[import-untyped]
    from jsonschema_specifications import REGISTRY  # type: ignore[import-untyped]
    from referencing import Registry
    from referencing.jsonschema import DRAFT202012

    def copy(contents: dict[str, Any]) -> dict[str, Any]:
        kept = {key: value for key, value in contents.items() if key != "$schema"}
        renamed: dict[str, Any] = json.loads(json.dumps(kept).replace(_DRAFT, "https://metaschema.invalid/"))
        return renamed

    copies = [copy(REGISTRY.contents(uri)) for uri in REGISTRY if uri.startswith(_DRAFT)]
    resources = [(one["$id"], DRAFT202012.create_resource(one)) for one in copies]
    kind = validators.extend(Draft202012Validator, {"uniqueItems": _unique_items})
    return kind(copy(Draft202012Validator.META_SCHEMA), registry=Registry().with_resources(resources))


def _unique_items(_: Any, unique: object, items: object, __: Any) -> Iterator[Exception]:
    """See ``_metaschema``; ``jsonschema`` calls it."""
    from jsonschema import ValidationError as Problem

    if unique and isinstance(items, list):
        different = {json.dumps(item, sort_keys=True) for item in items}
        if len(different) < len(items):
            yield Problem(f"{items!r} has non-unique elements")


def _not_json(literal: str) -> NoReturn:
    raise ValueError(f"{literal} is not JSON")


# -- (dict[str, Any] throughout: JSON Schemas are any JSON) --------------------------------------------------


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _as_tgi(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with two things said that TGI takes for granted.

    The text is an object, and so is whatever has ``properties``. And an object whose schema names properties
    has no others unless ``additionalProperties`` stands there: TGI's regex knows none, and a model that may
    invent keys may never come to an end. Schemas that look at one object together (``allOf``, a ``$ref``
    beside ``properties`` ...) are left as they are, as each would forbid what the other names.
    """
    read = schema if _combines(schema) else _close(schema)
    return {"type": "object", **{key: value for key, value in read.items() if key != _COMPILER_OPTIONS}}


def _combines(value: Any) -> bool:
    """Whether two schemas look at the same object anywhere in ``value``; a false alarm does no harm."""
    if isinstance(value, list):
        return any(map(_combines, value))
    if not isinstance(value, dict):
        return False
    if "allOf" in value or "unevaluatedProperties" in value:
        return True
    return ("properties" in value and any(key in value for key in _BESIDE)) or any(
        map(_combines, value.values())
    )


def _close(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    closed = dict(schema)
    closed |= {key: _close(schema[key]) for key in _ONE if key in schema}
    closed |= {key: [_close(one) for one in schema[key]] for key in _MANY if key in schema}
    for key in _NAMED:
        if isinstance(schema.get(key), dict):
            closed[key] = {name: _close(one) for name, one in schema[key].items()}
    if closed.get("properties"):
        closed = {"type": "object", "additionalProperties": False, **closed}
    return closed
