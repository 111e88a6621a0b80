"""The bodies of TGI's own routes, in TGI's field order. Defaults hold when ``parameters`` is present."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, GetJsonSchemaHandler, ValidationInfo, field_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from neuron_server.router.documented import INLINE, ShownAs, documented, told
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


class _JsonGrammar(Schema):
    model_config = INLINE

    type: Literal["json"]
    value: Any = told("A JSON Schema with `properties`: an object, or a string that holds one.")


class _RegexGrammar(Schema):
    model_config = INLINE

    type: Literal["regex"]
    value: str


class _JsonSchemaGrammar(Schema):
    model_config = INLINE

    type: Literal["json_schema"]
    value: JsonSchemaConfig


_Forms = Annotated[_JsonGrammar | _RegexGrammar | _JsonSchemaGrammar, Field(discriminator="type")]


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

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {
            **ShownAs(_Forms).__get_pydantic_json_schema__(schema, handler),
            "description": "What the text must be.",
        }


class GenerateParameters(Schema):
    """``None`` means absent; ranges are checked by ``validation``, types and integer widths here."""

    best_of: USIZE | None = documented(
        None,
        "Generate this many sequences and answer with the likeliest; the others are in its details.",
        exclusiveMinimum=0,
    )
    temperature: F32 | None = documented(
        None, "Divides the logits: below 1 likely tokens become likelier.", exclusiveMinimum=0, example=0.5
    )
    repetition_penalty: F32 | None = documented(
        None,
        "Makes tokens that stand in the prompt or the answer already less likely; 1 changes nothing.",
        exclusiveMinimum=0,
        example=1.03,
    )
    frequency_penalty: F32 | None = documented(
        None,
        "Lowers a token's logit by this for each time it was generated.",
        exclusiveMinimum=-2,
        example=0.1,
    )
    top_k: I32 | None = documented(
        None, "Draw from this many of the likeliest tokens.", exclusiveMinimum=0, example=10
    )
    top_p: F32 | None = documented(
        None,
        "Draw from the likeliest tokens that together have this probability. Less than 1.",
        exclusiveMinimum=0,
        maximum=1,
        example=0.95,
    )
    typical_p: F32 | None = documented(
        None,
        "Draw from the tokens of the most typical information content that together have this probability "
        "(locally typical sampling). Less than 1.",
        exclusiveMinimum=0,
        maximum=1,
        example=0.95,
    )
    do_sample: bool = documented(False, "Draw tokens by chance; if not, take the likeliest.")
    max_new_tokens: U32 | None = documented(
        None, "Generate at most this many tokens. Without it, as many as the model has room for.", example=20
    )
    return_full_text: bool | None = documented(None, "Put the prompt before the generated text.")
    stop: Strings = Field(
        default_factory=list,
        description="End the generation when it contains one of these.",
        json_schema_extra={"maxItems": 4},
    )
    truncate: USIZE | None = documented(None, "Keep only this many tokens, the last ones, of the prompt.")
    watermark: bool = documented(False, "Not served: true is refused.")
    details: bool = documented(
        False, "Answer with the tokens, their log-probabilities and the reason of the end."
    )
    decoder_input_details: bool = documented(
        False, "Answer with the tokens of the prompt, too. Not for streams."
    )
    seed: U64 | None = documented(
        None, "The same seed draws the same tokens.", exclusiveMinimum=0, example=42
    )
    top_n_tokens: U32 | None = documented(
        None, "Tell the likeliest tokens of each step, this many.", exclusiveMinimum=0, example=5
    )
    grammar: GrammarType | None = documented(None, "A constraint on the text.")
    adapter_id: str | None = documented(None, "Not served: an adapter is refused.")


def _default_parameters() -> GenerateParameters:
    """TGI samples when the ``parameters`` key is absent, and only then."""
    return GenerateParameters(do_sample=True)


class GenerateRequest(Schema):
    """Body of ``/generate`` and ``/generate_stream``."""

    inputs: str
    parameters: GenerateParameters = Field(default_factory=_default_parameters)


class CompatGenerateRequest(GenerateRequest):
    """Body of ``/``: ``stream`` chooses the form of the answer."""

    stream: bool = documented(False, "Answer with a stream of tokens.")
