"""The bodies of TGI's own routes, in TGI's field order. Defaults hold when ``parameters`` is present."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from neuron_server.router.serde import (
    F32,
    I32,
    U32,
    U64,
    USIZE,
    Schema,
    Strings,
    check,
    refused,
    unexpected,
)


class JsonSchemaConfig(Schema):
    """A JSON Schema with a name; the name has no effect."""

    name: str | None = None
    #: Not looked into here: a schema that cannot be used is refused as a grammar, not as a body.
    schema_: Any = Field(validation_alias="schema")


class GrammarType(Schema):
    """A constraint on the text.

    ``value`` is text for ``regex``, what ``JsonSchemaConfig`` says for ``json_schema`` (left as a ``dict``),
    any JSON for the others.
    """

    type: Literal["json", "json_object", "regex", "json_schema"]
    value: Any

    @field_validator("value")
    @classmethod
    def _suits_its_type(cls, value: Any, info: ValidationInfo) -> Any:
        kind = info.data.get("type")
        if kind == "regex" and not isinstance(value, str):
            raise refused(f"invalid type: {unexpected(value)}, expected a string")
        if kind == "json_schema":
            check(JsonSchemaConfig, value)
        return value


class GenerateParameters(Schema):
    """``None`` means absent; ranges are checked by ``validation``, types and integer widths here."""

    best_of: USIZE | None = None
    temperature: F32 | None = None
    repetition_penalty: F32 | None = None
    frequency_penalty: F32 | None = None
    top_k: I32 | None = None
    top_p: F32 | None = None
    typical_p: F32 | None = None
    do_sample: bool = False
    max_new_tokens: U32 | None = None
    return_full_text: bool | None = None
    stop: Strings = Field(default_factory=list)
    truncate: USIZE | None = None
    watermark: bool = False
    details: bool = False
    decoder_input_details: bool = False
    seed: U64 | None = None
    top_n_tokens: U32 | None = None
    grammar: GrammarType | None = None
    adapter_id: str | None = None


def _default_parameters() -> GenerateParameters:
    """TGI samples when the ``parameters`` key is absent, and only then."""
    return GenerateParameters(do_sample=True)


class GenerateRequest(Schema):
    """Body of ``/generate`` and ``/generate_stream``."""

    inputs: str
    parameters: GenerateParameters = Field(default_factory=_default_parameters)


class CompatGenerateRequest(GenerateRequest):
    """Body of ``/``: ``stream`` chooses the form of the answer."""

    stream: bool = False
