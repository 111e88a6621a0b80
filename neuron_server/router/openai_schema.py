"""The bodies of OpenAI's routes as TGI takes them, in TGI's field order.

Looser than TGI in two places, on purpose: ``stop`` may also be one string, and ``response_format`` may also
be spelled as OpenAI spells it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AliasChoices,
    BeforeValidator,
    Field,
    GetJsonSchemaHandler,
    PlainValidator,
    ValidationError,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from neuron_server.router.documented import INLINE, Named, ShownAs, documented, told
from neuron_server.router.serde import (
    F32,
    U32,
    U64,
    FailFast,
    Lenient,
    Schema,
    Strings,
    Untagged,
    no_variant,
    refused,
)
from neuron_server.router.tgi_schema import GrammarType, JsonSchemaConfig

#: A JSON value of any shape: nothing here looks into it.
JsonValue = Any

#: Newer clients of OpenAI send the second name.
MaxTokens = Annotated[
    U32 | None,
    Field(validation_alias=AliasChoices("max_tokens", "max_completion_tokens")),
    told("Generate at most this many tokens. Without it, as many as there is room for.", default=None),
]
Model = Annotated[str | None, told("Any name: one model is served.")]
FrequencyPenalty = Annotated[
    F32 | None, told("Lowers a token's logit by this for each time it was generated. From -2 to 2.")
]
Seed = Annotated[U64 | None, told("The same seed draws the same tokens.", example=42)]
Stream = Annotated[bool, told("Answer with a stream of chunks, closed by `[DONE]`.")]
Temperature = Annotated[
    F32 | None, told("Divides the logits: below 1 likely tokens become likelier. 0 takes the likeliest.")
]
TopP = Annotated[
    F32 | None, told("Draw from the likeliest tokens that together have this probability.", example=0.95)
]

# -- messages ------------------------------------------------------------------------------------------------


class Url(Schema):
    """Where an image is."""

    url: str


class TextChunk(Schema):
    """A piece of a message's text."""

    model_config = INLINE

    type: Literal["text"]
    text: str


class ImageChunk(Schema):
    """An image in a message. Text models see it as the markdown ``![](url)``."""

    model_config = INLINE

    type: Literal["image_url"]
    image_url: Url


MessageChunk = Annotated[TextChunk | ImageChunk, Field(discriminator="type"), Named("MessageChunk")]
MessageContent = Annotated[str | Annotated[list[MessageChunk], FailFast()], Named("MessageContent")]


class FunctionDefinition(Schema):
    """A function that is offered (``arguments`` is its JSON Schema) or was called (its arguments)."""

    description: str | None = None
    name: str
    arguments: JsonValue = Field(validation_alias=AliasChoices("arguments", "parameters"))


class ToolCall(Schema):
    """A call that the model made earlier in the conversation."""

    id: str
    type: str
    function: FunctionDefinition


class _Content(Schema):
    model_config = INLINE

    content: MessageContent


class _Calls(Schema):
    model_config = INLINE

    tool_calls: list[ToolCall]


class _Author(Schema):
    model_config = INLINE

    role: str
    name: str | None = None


_MessageForm = ShownAs(Annotated[_Content | _Calls, Named("MessageBody")], _Author)


class Message(Schema):
    """One message: ``content``, or else ``tool_calls``; exactly one of them is not ``None``.

    Content wins when both fit. ``name`` and ``tool_call_id`` are accepted and never shown to the template.
    """

    role: str
    content: Annotated[MessageContent | None, Lenient()] = None
    tool_calls: Annotated[Annotated[list[ToolCall], FailFast()] | None, Lenient()] = None
    name: str | None = None

    @model_validator(mode="after")
    def _has_a_body(self) -> Message:
        if self.content is None and self.tool_calls is None:
            raise no_variant("MessageBody")
        return self

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return _MessageForm.__get_pydantic_json_schema__(schema, handler)


# -- tools ---------------------------------------------------------------------------------------------------


class Tool(Schema):
    """What the model may call."""

    type: str
    function: FunctionDefinition


class FunctionName(Schema):
    """Names one of the request's tools."""

    name: str


class NamedToolChoice(Schema):
    """The one function that must be called."""

    model_config = INLINE

    type: Literal["function"]
    function: FunctionName


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """``name`` is set when ``mode`` is ``function``, and only then."""

    mode: Literal["auto", "none", "required", "function"] = "auto"
    name: str | None = None


def _tool_choice(value: object) -> ToolChoice:
    """One of the words (``null`` is ``auto``), or the name of a function, by itself or as OpenAI has it."""
    if value is None or value == "auto":
        return ToolChoice()
    if value == "none" or value == "required":
        return ToolChoice("none" if value == "none" else "required")
    if isinstance(value, str):
        return ToolChoice("function", value)
    try:
        return ToolChoice("function", NamedToolChoice.model_validate(value).function.name)
    except ValidationError:
        raise no_variant("ToolChoice") from None


_ToolChoiceForm = Annotated[
    Annotated[Literal["auto"], told("The model chooses between words and calls.")]
    | Annotated[Literal["none"], told("The model may not call.")]
    | Annotated[Literal["required"], told("The model must call.")]
    | NamedToolChoice,
    Named("ToolChoice"),
]

#: As it stands in a body it is JSON; from here on it is a ``ToolChoice``.
ToolChoiceField = Annotated[
    ToolChoice, PlainValidator(_tool_choice, json_schema_input_type=_ToolChoiceForm | None)
]


# -- requests ------------------------------------------------------------------------------------------------


def _one_or_many(value: object) -> object:
    return [value] if isinstance(value, str) else value


Stop = Annotated[
    Annotated[Strings, BeforeValidator(_one_or_many, json_schema_input_type=str | list[str])] | None,
    told("End the generation when it contains one of these."),
]


def _response_format(value: object) -> object:
    """OpenAI's spellings as TGI's; everything else is left to ``GrammarType``."""
    if not isinstance(value, dict):
        return value
    kind = value.get("type")
    if kind == "text":
        return None
    if kind == "json_object" and "value" not in value:
        return {"type": "json_object", "value": {"type": "object", "properties": {}}}
    if kind == "json_schema" and "value" not in value and "json_schema" in value:
        return {"type": "json_schema", "value": value["json_schema"]}
    return value


class _OpenAIJsonSchema(Schema):
    model_config = INLINE

    type: Literal["json_schema"]
    json_schema: JsonSchemaConfig


class _OpenAIJsonObject(Schema):
    model_config = INLINE

    type: Literal["json_object"]


class _OpenAIText(Schema):
    model_config = INLINE

    type: Literal["text"]


_ResponseForm = GrammarType | _OpenAIJsonSchema | _OpenAIJsonObject | _OpenAIText
ResponseFormat = Annotated[
    GrammarType | None, BeforeValidator(_response_format, json_schema_input_type=_ResponseForm | None)
]


class StreamOptions(Schema):
    """``include_usage`` asks for one more chunk, with the counts."""

    include_usage: Annotated[bool, told("End with a chunk that has the usage and no choices.")] = False


class ChatRequest(Schema):
    """Body of ``/v1/chat/completions`` and ``/chat_tokenize``. ``n`` and ``logit_bias`` have no effect."""

    messages: Annotated[list[Message], FailFast()] = told("The conversation so far.")
    model: Model = None
    frequency_penalty: FrequencyPenalty = None
    logit_bias: Annotated[Annotated[list[F32], FailFast()] | None, told("Without effect.")] = None
    logprobs: Annotated[bool | None, told("Answer with the tokens' log-probabilities.")] = None
    top_logprobs: Annotated[U32 | None, told("Tell the likeliest tokens of each step, this many.")] = None
    max_tokens: MaxTokens = None
    n: Annotated[U32 | None, told("Without effect: there is one choice.")] = None
    presence_penalty: Annotated[F32 | None, told("This plus 2 is the repetition penalty.")] = None
    response_format: ResponseFormat = documented(None, "A constraint on the answer. Not with tools.")
    seed: Seed = None
    stop: Stop = None
    stream: Stream = False
    temperature: Temperature = None
    top_p: TopP = None
    tools: Annotated[Annotated[list[Tool], FailFast()] | None, told("What the model may call.")] = None
    tool_prompt: Annotated[str | None, told("How to call, told to the model behind the tools.")] = None
    tool_choice: Annotated[ToolChoiceField, told("Whether to call, and what.", default="auto")] = ToolChoice()
    stream_options: Annotated[StreamOptions, told("What a stream also tells.")] = StreamOptions()


def _not_empty(prompts: list[str]) -> list[str]:
    if not prompts:
        raise refused("Empty array detected. Do not use an empty array for the prompt.")
    return prompts


#: One text or several; a list in any case, of one or more.
Prompt = Annotated[
    Strings,
    BeforeValidator(_one_or_many, json_schema_input_type=str | Annotated[list[str], Field(min_length=1)]),
    Untagged("Prompt"),
    AfterValidator(_not_empty),
    Named("Prompt"),
]


class CompletionRequest(Schema):
    """Body of ``/v1/completions``."""

    prompt: Prompt = told("One text, or several at once.")
    model: Model = None
    max_tokens: MaxTokens = None
    temperature: Temperature = None
    top_p: TopP = None
    stream: Stream = False
    seed: Seed = None
    suffix: Annotated[str | None, told("Not served: any text here is refused.")] = None
    repetition_penalty: Annotated[
        F32 | None, told("Makes tokens that are there already less likely; 1 changes nothing.")
    ] = None
    frequency_penalty: FrequencyPenalty = None
    stop: Stop = None
