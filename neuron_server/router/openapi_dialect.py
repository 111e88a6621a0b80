"""Our schema classes in the dialect of JSON Schema that OpenAPI 3.0 has.

3.0 says ``nullable`` where JSON Schema has a type ``null``, a flag makes a bound exclusive, a constant is an
enumeration of one; and no title is worth showing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from neuron_server.router.documented import INLINE_MARK, NAME

REF = "#/components/schemas/"
_VERBATIM = ("default", "example", "enum", "required")


def describe(forms: Sequence[Any]) -> tuple[list[JsonSchemaValue], dict[str, JsonSchemaValue]]:
    """The schema of each form (``Any``: what pydantic reads), and the components they refer to, by name."""
    adapters = [(n, "validation", TypeAdapter(form)) for n, form in enumerate(forms)]
    by_key, document = TypeAdapter.json_schemas(
        adapters,  # type: ignore[arg-type]  # a list of ("validation") is one of its mode
        ref_template=REF + "{model}",
        schema_generator=_Dialect,
    )
    speller = _Speller(document.get("$defs", {}))
    schemas = [speller.spell(by_key[n, "validation"]) for n in range(len(forms))]
    return schemas, speller.components()


class _Dialect(GenerateJsonSchema):
    """Without titles, and without defaults that are not ``documented``."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        inner = self.generate_inner(schema["schema"])
        named = "$ref" in inner or NAME in inner
        return {"allOf": [inner], "nullable": True} if named else {**inner, "nullable": True}

    def literal_schema(self, schema: core_schema.LiteralSchema) -> JsonSchemaValue:
        return {"type": "string", "enum": list(schema["expected"])}

    def union_schema(self, schema: core_schema.UnionSchema) -> JsonSchemaValue:
        """Exactly one of the forms: they tell each other apart."""
        choices = [choice[0] if isinstance(choice, tuple) else choice for choice in schema["choices"]]
        return {"oneOf": [self.generate_inner(choice) for choice in choices]}

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def field_title_should_be_set(self, _: Any) -> bool:
        return False


class _Speller:
    """Writes inline classes out, gives named types their names, and spells what 3.0 spells differently."""

    def __init__(self, defined: Mapping[str, JsonSchemaValue]) -> None:
        self._inline = {
            REF + name: {k: v for k, v in schema.items() if k != INLINE_MARK}
            for name, schema in defined.items()
            if INLINE_MARK in schema
        }
        self._named: dict[str, JsonSchemaValue] = {}
        self._classes = {
            name: self.spell(schema) for name, schema in defined.items() if INLINE_MARK not in schema
        }

    def components(self) -> dict[str, JsonSchemaValue]:
        """All that was seen. ``Named`` wins over a class of this name: the class is what it is read as."""
        return dict(sorted({**self._classes, **self._named}.items()))

    def spell(self, node: Any) -> Any:
        """``node``, any JSON value, in the dialect of 3.0."""
        if isinstance(node, list):
            return [self.spell(item) for item in node]
        if not isinstance(node, dict):
            return node
        if node.get("$ref") in self._inline:
            return self.spell(self._inline[node["$ref"]])
        spelled = {key: self._value(key, value) for key, value in node.items() if key not in ("title", NAME)}
        for bound, flag in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
            if flag in spelled:
                spelled[bound], spelled[flag] = spelled[flag], True
        if NAME in node:
            self._named[node[NAME]] = spelled
            return {"$ref": REF + node[NAME]}
        return spelled

    def _value(self, key: str, value: Any) -> Any:
        if key in _VERBATIM:
            return value
        if key == "properties":
            return {name: self.spell(schema) for name, schema in value.items()}
        if key == "discriminator":
            return {"propertyName": value["propertyName"]}
        return self.spell(value)
